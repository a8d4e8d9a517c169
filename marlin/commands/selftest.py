"""`metal-marlin selftest`: every kernel on stored vectors, beside the CPU device, in one report.

The vectors, with answers that the tests' oracle computed, are in selftest.safetensors beside this
file (tests/support/make_selftest.py writes it). Knows how to run any recorded dispatch and nothing
of what one computes.
"""

import json
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open

from marlin.commands import determinism, info
from marlin.config import add_options
from marlin.device import abi
from marlin.device.device import Device
from marlin.device.program import Recorder, View
from marlin.errors import DeviceError

VECTORS = Path(__file__).with_name("selftest.safetensors")
# Around every buffer, so that a kernel that writes one element too many is caught.
GUARD_BYTES = 64
STALE = 0xA5


@dataclass(frozen=True, slots=True)
class Case:
    """Some dispatches over buffers, and what the buffers hold afterwards.

    Attributes:
        name: what the report calls it.
        variables: a step's vars.
        dispatches: mappings with kernel, params (hexadecimal) and bindings, which are
            [buffer name, access] or None.
        inputs: {buffer name: array} of those that hold something before.
        answers: {buffer name: (array, magnitude)}; a magnitude is the size of what was added up,
            which errors are shares of and may be one number for all; None means the array's own.
        sizes: {buffer name: bytes}; a buffer longer than its input repeats it.
        tolerances: {buffer name: (largest error, what counts as nothing)}.
    """

    name: str
    variables: list
    dispatches: list
    inputs: dict
    answers: dict
    sizes: dict
    tolerances: dict

    @property
    def kernels(self):
        return [dispatch["kernel"] for dispatch in self.dispatches]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one kernel did over all its cases.

    Attributes:
        stored_error, cpu_error: largest error against the stored answers and the CPU device, as
            shares of the magnitude; None where nothing is compared (probe_dot's result is any).
        tolerance: largest error allowed in any of its buffers.
        problem: why it failed, or None.
    """

    kernel: str
    cases: int = 0
    stored_error: float | None = None
    cpu_error: float | None = None
    tolerance: float = 0.0
    problem: str | None = None

    @property
    def passed(self):
        return self.cases > 0 and self.problem is None


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    add_options(parser, ["device"])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--determinism",
        metavar="MODEL",
        help="show that its seeds give the same alone, batched, cached, put back and guessed",
    )


def run(arguments, open_device=Device, file=None):
    """Test a device and print the report.

    Args:
        arguments: the parsed command line.
        open_device: callable(kind=, isa=, num_threads=) -> Device.
        file: where to print; None is standard output.

    Returns:
        Exit code: 0, or 1 when anything failed.
    """
    file = file or sys.stdout
    if arguments.determinism is not None:
        rows = determinism.check(arguments.determinism, arguments.device)
        file.write(determinism.report(rows, arguments.json) + "\n")
        return 0 if all(row.passed for row in rows) else 1
    report = {"versions": info.versions(), "machine": info.machine()}
    report |= _test_device(arguments.device, open_device)
    if arguments.json:
        json.dump(report, file, indent=1)
        file.write("\n")
    else:
        print_report(report, file)
    return 0 if report["passed"] else 1


def _test_device(kind, open_device):
    marks = [time.perf_counter()]
    try:
        device = open_device(kind=kind)
    except DeviceError as error:
        return {"passed": False, "problem": error.message}
    marks.append(time.perf_counter())
    # A CPU is compared with its plainest instruction set.
    scalar = {"isa": "scalar", "num_threads": 1} if device.kind == "cpu" else {}
    cpu = open_device(kind="cpu", **scalar)
    try:
        cases = read_cases()
        compile_kernels(device, cases)
        marks.append(time.perf_counter())
        outcomes = check_kernels(device, cpu, cases)
        marks.append(time.perf_counter())
        facts = {"device": device.info(), "beside": cpu.info()}
    finally:
        device.close()
        cpu.close()
    spans = zip(("open_s", "compile_s", "run_s"), marks, marks[1:], strict=False)
    facts |= {name: round(end - start, 3) for name, start, end in spans}
    return facts | {
        "kernels": [_as_json(outcome) for outcome in outcomes],
        "passed": all(outcome.passed for outcome in outcomes),
    }


def _as_json(outcome):
    fields = asdict(outcome) | {"passed": outcome.passed}
    for name in ("stored_error", "cpu_error"):  # JSON has no infinity
        fields[name] = str(fields[name]) if fields[name] == float("inf") else fields[name]
    return fields


def read_cases(path=VECTORS):
    """The stored Cases."""
    with safe_open(path, framework="np") as file:
        return [_read_case(file, fields) for fields in json.loads(file.metadata()["cases"])]


def _read_case(file, fields):
    def tensors(part):
        return {name: file.get_tensor(stored) for name, stored in fields[part].items()}

    magnitudes = tensors("magnitudes")
    answers = {key: (value, magnitudes.get(key)) for key, value in tensors("answers").items()}
    return Case(
        fields["name"],
        fields["variables"],
        fields["dispatches"],
        tensors("inputs"),
        answers,
        fields["sizes"],
        fields["tolerances"],
    )


def check_kernels(device, cpu, cases):
    """An Outcome of each of abi.KERNELS; a kernel without a case has failed."""
    outcomes = {name: Outcome(name) for name in abi.KERNELS}
    for case in cases:
        stored, beside, problem = _check_case(device, cpu, case)
        tolerance = max((share for share, _ in case.tolerances.values()), default=0.0)
        for kernel in dict.fromkeys(case.kernels):
            seen = outcomes[kernel]
            outcomes[kernel] = replace(
                seen,
                cases=seen.cases + 1,
                stored_error=_larger((seen.stored_error, stored)),
                cpu_error=_larger((seen.cpu_error, beside)),
                tolerance=max(seen.tolerance, tolerance),
                problem=seen.problem or (problem and f"{case.name}: {problem}"),
            )
    return list(outcomes.values())


def _check_case(device, cpu, case):
    """(error against the stored answers, against the CPU, what is wrong), each None for none."""
    try:
        results, problem = run_case(device, case)
        beside, _ = run_case(cpu, case)
    except DeviceError as error:
        return None, None, error.message
    stored_errors, cpu_errors = [], []
    for name, (answer, magnitude) in case.answers.items():
        largest, negligible = case.tolerances[name]
        magnitude = answer if magnitude is None else magnitude
        stored = largest_error(results[name], answer, magnitude, negligible)
        other = largest_error(results[name], beside[name], magnitude, negligible)
        if max(stored, other) > largest:
            against = "the stored answer" if stored > largest else "the CPU"
            off = max(stored, other)
            problem = problem or f"{name} is {off:.1e} off {against}, at most {largest:.1e}"
        stored_errors.append(stored)
        cpu_errors.append(other)
    return _larger(stored_errors), _larger(cpu_errors), problem


def _larger(errors):
    return max((error for error in errors if error is not None), default=None)


def run_case(device, case):
    """Replay a case once.

    Returns:
        ({buffer name: array} as case.answers, what a kernel did to memory not its own or None).

    Raises:
        DeviceError: as the device does.
    """
    with _recorded(device, case) as (program, views):
        program.run(*case.variables)
        results = {}
        for name, (answer, _) in case.answers.items():
            view = views[name]
            array = view.buffer.array(answer.dtype, answer.shape, view.offset)
            results[name] = array.copy()
        problems = [_problem(case, name, view) for name, view in views.items()]
        return results, next(filter(None, problems), None)


@contextmanager
def _recorded(device, case):
    """(Program, {buffer name: View}) of a case, for as long as it is needed."""
    views = {name: _place(device, case, name) for name in case.sizes}
    try:
        recorder = Recorder(device)
        for dispatch in case.dispatches:
            bindings = [bound and (views[bound[0]], bound[1]) for bound in dispatch["bindings"]]
            params = np.frombuffer(bytes.fromhex(dispatch["params"]), np.uint8)
            recorder.dispatch(dispatch["kernel"], params, bindings)
        program = recorder.finish()
        try:
            yield program, views
        finally:
            program.close()
    finally:
        for view in views.values():
            view.buffer.release()


def compile_kernels(device, cases):
    """Record every case, so that a GPU compiles all that it will run."""
    for case in cases:
        with suppress(DeviceError), _recorded(device, case):  # check_kernels() tells of errors
            pass


def _place(device, case, name):
    num_bytes = case.sizes[name]
    buffer = device.create(num_bytes + 2 * GUARD_BYTES)
    raw = buffer.array(np.uint8)
    raw[:] = STALE
    if name in case.inputs:
        raw[GUARD_BYTES : GUARD_BYTES + num_bytes] = _bytes_before(case, name)
    return View(buffer, GUARD_BYTES, num_bytes)


def _bytes_before(case, name):
    stored = case.inputs[name].reshape(-1).view(np.uint8)
    return np.tile(stored, case.sizes[name] // len(stored))


def _problem(case, name, view):
    """What is wrong with a buffer's bytes after a replay, whatever its answer is, or None."""
    raw = view.buffer.array(np.uint8)
    inside, after = raw[view.offset :][: view.num_bytes], raw[view.offset + view.num_bytes :]
    if (raw[: view.offset] != STALE).any() or (after != STALE).any():
        return f"wrote outside {name}"
    written = any(
        bound and bound[0] == name and bound[1] & abi.WRITE
        for dispatch in case.dispatches
        for bound in dispatch["bindings"]
    )
    if not written and not np.array_equal(inside, _bytes_before(case, name)):
        return f"wrote into {name}, which it may only read"
    if name not in case.inputs and (inside == STALE).all():
        return f"wrote nothing into {name}"
    return None


def largest_error(actual, expected, magnitude, negligible=0.0):
    """Largest difference as a share of the magnitude; inf for one from nothing, or for a NaN.

    Args:
        actual, expected: arrays of one shape.
        magnitude: what to divide by.
        negligible: difference that counts as none.
    """
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    size = np.abs(magnitude.astype(np.float64))
    with np.errstate(all="ignore"):
        error = np.where(actual == expected, 0.0, np.abs(actual - expected) - negligible)
        share = np.where(error <= 0, 0.0, error / size)
    return float(np.where(np.isnan(share), np.inf, share).max())


def print_report(report, file):
    """The report as text: device, system and versions first."""

    def line(text=""):
        print(text, file=file)

    here, tested = report["machine"], report.get("device")
    line(f"device    {_describe(tested) if tested else 'none'}")
    line(f"system    {here['system']}, {here['cores']} cores of {here['cpu']}")
    line("packages  " + ", ".join(f"{name} {v}" for name, v in report["versions"].items()))
    if tested is None:
        line(f"\nFAIL: {report['problem']}")
        return
    line(f"beside    {_describe(report['beside'])}")
    line(
        f"took      {report['open_s']:.3f} s to open, {report['compile_s']:.3f} s to make the "
        f"kernels, {report['run_s']:.3f} s to run them\n"
    )
    line(f"{'kernel':<18}{'cases':>6}{'error':>11}{'beside CPU':>12}{'tolerance':>11}")
    for kernel in report["kernels"]:
        result = "pass" if kernel["passed"] else f"FAIL {kernel['problem'] or ''}".rstrip()
        line(
            f"{kernel['kernel']:<18}{kernel['cases']:>6}{_share(kernel['stored_error']):>11}"
            f"{_share(kernel['cpu_error']):>12}{_share(kernel['tolerance']):>11}  {result}"
        )
    num_passed = sum(kernel["passed"] for kernel in report["kernels"])
    verdict = "pass" if report["passed"] else "FAIL"
    line(f"\n{verdict}: {num_passed} of {len(report['kernels'])} kernels")


def _share(error):
    return "-" if error is None else f"{float(error):.1e}"


def _describe(device):
    memory = f"{device['memory_bytes'] >> 20} MiB, pages of {device['page_bytes']} bytes"
    return f"{device['name']} ({device['kind']}, {device['isa']}), {memory}"
