"""`metal-marlin selftest`: its stored vectors are the oracle's, and a device that errs fails it."""

import io
import json
from argparse import Namespace
from dataclasses import replace

import make_selftest
import numpy as np
import pytest
from kernel_list import read_kernels

from marlin.commands import selftest
from marlin.device import abi
from marlin.device.device import Device
from marlin.errors import DeviceError


def reported(words="", open_device=Device):
    """(exit code, what was printed) of the command with --device cpu."""
    printed = io.StringIO()
    arguments = Namespace(device="cpu", json="--json" in words, determinism=None)
    return selftest.run(arguments, open_device, printed), printed.getvalue()


@pytest.fixture(scope="module")
def cases():
    return selftest.read_cases()


def case_of(cases, name):
    return next(case for case in cases if case.name == name)


# --- the vectors ---


def test_the_list_of_kernels_is_native_codes():
    assert list(abi.KERNELS) == list(read_kernels())


def test_every_kernel_has_a_case(cases):
    assert {kernel for case in cases for kernel in case.kernels} == set(abi.KERNELS)


def test_every_kernel_but_the_probe_of_arithmetic_has_an_answer(cases):
    answered = {kernel for case in cases if case.answers for kernel in case.kernels}
    assert set(abi.KERNELS) - answered == {"probe_dot"}


def test_the_vectors_are_what_the_oracle_gives_today(cases, tmp_path):
    make_selftest.write(tmp_path / "vectors")
    made = selftest.read_cases(tmp_path / "vectors")
    assert [case.name for case in made] == [case.name for case in cases]
    for new, old in zip(made, cases, strict=True):
        assert (new.dispatches, new.variables) == (old.dispatches, old.variables), old.name
        assert (new.sizes, new.tolerances) == (old.sizes, old.tolerances), old.name
        assert {name: array.tobytes() for name, array in new.inputs.items()} == {
            name: array.tobytes() for name, array in old.inputs.items()
        }, old.name
        for name, (answer, magnitude) in new.answers.items():
            # Sums in float64 may end in another last bit on another machine.
            np.testing.assert_allclose(old.answers[name][0], answer, rtol=1e-6, err_msg=old.name)
            if magnitude is not None:
                np.testing.assert_allclose(old.answers[name][1], magnitude, rtol=1e-6)


def test_the_vectors_take_less_than_a_megabyte():
    assert selftest.VECTORS.stat().st_size < 1_000_000


# --- devices that do well ---


def test_every_device_passes(device, cases, devices):
    outcomes = selftest.check_kernels(device, devices.get("scalar"), cases)
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    assert [outcome.kernel for outcome in outcomes] == list(abi.KERNELS)


def test_the_report_begins_with_device_system_and_packages():
    code, text = reported()
    lines = text.splitlines()
    assert code == 0 and lines[-1] == f"pass: {len(abi.KERNELS)} of {len(abi.KERNELS)} kernels"
    assert [line.split()[0] for line in lines[:4]] == ["device", "system", "packages", "beside"]
    assert "metal-marlin 0." in lines[2] and "(cpu, scalar)" in lines[3]
    rows = [line.split() for line in lines if line.split()[:1] == ["matvec_int4"]]
    assert len(rows) == 1 and rows[0][1] == "6" and rows[0][5] == "pass"


def test_the_json_report_says_the_same():
    code, text = reported("--json")
    report = json.loads(text)
    assert code == 0 and report["passed"] is True
    assert [kernel["kernel"] for kernel in report["kernels"]] == list(abi.KERNELS)
    assert report["device"]["kind"] == "cpu" and report["beside"]["isa"] == "scalar"
    assert set(report["versions"]) >= {"metal-marlin", "python", "numpy"}


def test_a_metal_device_is_tested_beside_the_cpu(open_metal):
    def open_device(kind=None, **options):
        return open_metal() if kind == "metal" else Device(kind=kind, **options)

    printed = io.StringIO()
    arguments = Namespace(device="metal", json=True, determinism=None)
    assert selftest.run(arguments, open_device, printed) == 0
    report = json.loads(printed.getvalue())
    assert (report["device"]["kind"], report["beside"]["kind"]) == ("metal", "cpu")
    assert report["passed"]


# --- devices that do not ---


def spoiled(case, name, change):
    """The case with another stored answer."""
    answer, magnitude = case.answers[name]
    wrong = answer.copy()
    change(wrong)
    return replace(case, answers={**case.answers, name: (wrong, magnitude)})


def outcome_of(any_device, case):
    outcomes = selftest.check_kernels(any_device, any_device, [case])
    return next(outcome for outcome in outcomes if outcome.kernel == case.kernels[0])


def test_one_value_that_is_off_fails_its_kernel_and_no_other(any_device, cases):
    case = case_of(cases, "silu_mul")

    def change(answer):
        answer[1, 1] *= 1 + 1e-4

    outcome = outcome_of(any_device, spoiled(case, "y", change))
    assert not outcome.passed and 1e-6 < outcome.stored_error < 1e-3
    assert outcome.problem.startswith("silu_mul: y is ")
    others = selftest.check_kernels(any_device, any_device, [case])
    assert [outcome.kernel for outcome in others if outcome.passed] == ["silu_mul"]


def test_a_token_that_is_off_by_one_fails(any_device, cases):
    def change(answer):
        answer[-1] += 1

    assert not outcome_of(any_device, spoiled(case_of(cases, "sample"), "ids", change)).passed


def test_a_result_that_is_no_number_fails(any_device, cases):
    def change(answer):
        answer[0, 0] = np.nan

    outcome = outcome_of(any_device, spoiled(case_of(cases, "gather_rows"), "y", change))
    assert not outcome.passed and outcome.stored_error == float("inf")


def test_a_coarse_tolerance_of_one_buffer_hides_no_error_of_another(any_device, cases):
    def change(answer):
        answer += 1e-4

    outcome = outcome_of(any_device, spoiled(case_of(cases, "rope_kv_write"), "q", change))
    assert not outcome.passed and outcome.stored_error < outcome.tolerance


@pytest.mark.parametrize("place", [-1, 0])
def test_a_byte_changed_beside_a_buffer_is_a_problem(any_device, cases, place):
    case = case_of(cases, "gather_rows")
    view = selftest._place(any_device, case, "y")
    raw = view.buffer.array(np.uint8)
    raw[view.offset : view.offset + view.num_bytes] = 0
    assert selftest._problem(case, "y", view) is None
    raw[view.offset - 1 if place < 0 else view.offset + view.num_bytes] = 0
    assert selftest._problem(case, "y", view) == "wrote outside y"
    view.buffer.release()


def test_a_byte_changed_in_what_may_only_be_read_is_a_problem(any_device, cases):
    case = case_of(cases, "gather_rows")
    view = selftest._place(any_device, case, "x")
    assert selftest._problem(case, "x", view) is None
    view.buffer.array(np.uint8)[view.offset] ^= 1
    assert selftest._problem(case, "x", view) == "wrote into x, which it may only read"
    view.buffer.release()


def test_a_kernel_that_writes_nothing_fails(any_device, cases):
    no_rows = replace(case_of(cases, "gather_rows"), variables=[0, 0, 0, 0])
    outcome = outcome_of(any_device, no_rows)
    assert not outcome.passed and outcome.problem == "gather_rows: wrote nothing into y"


def test_a_kernel_that_the_device_refuses_fails_with_its_reason(any_device, cases):
    case = replace(case_of(cases, "gather_rows"), variables=[0, 0, 500, 0])
    outcome = outcome_of(any_device, case)
    assert not outcome.passed and "vars[2] is 500" in outcome.problem


def test_a_kernel_without_a_case_fails(any_device, cases):
    outcomes = selftest.check_kernels(any_device, any_device, cases[:1])
    failed = [outcome.kernel for outcome in outcomes if not outcome.passed]
    assert len(failed) == len(abi.KERNELS) - 1


def test_a_device_that_cannot_be_opened_is_a_failed_report():
    def refuse(**_):
        raise DeviceError("the shaders do not compile: line 3")

    code, text = reported(open_device=refuse)
    assert code == 1
    assert text.startswith("device    none\nsystem ") and "FAIL: the shaders do not" in text
    code, text = reported("--json", open_device=refuse)
    assert code == 1 and json.loads(text)["problem"] == "the shaders do not compile: line 3"


@pytest.mark.parametrize(
    ("actual", "expected", "magnitude", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.2], [1.0, 2.0], [1.0, 2.0], 0.1),
        ([-np.inf], [-np.inf], [np.inf], 0.0),
        ([0.0], [1e-30], [0.0], np.inf),
        ([np.nan], [1.0], [1.0], np.inf),
        ([np.inf], [1.0], [1.0], np.inf),
    ],
)
def test_an_error_is_a_share_of_the_magnitude(actual, expected, magnitude, error):
    arrays = (np.array(values) for values in (actual, expected, magnitude))
    assert selftest.largest_error(*arrays) == pytest.approx(error)


def test_both_devices_of_a_report_are_closed():
    opened = []

    def open_device(**options):
        opened.append(Device(**{**options, "kind": "cpu"}))
        return opened[-1]

    code, _ = reported(open_device=open_device)
    assert code == 0 and [device.handle for device in opened] == [None, None]
