#!/usr/bin/env python3
"""The same for the CPU device's C sources: change one thing, build it, see if a test fails.

    .venv/bin/python tests/mutation/mutate_c.py --seed 7 --count 60

Each mutant gets the C program of tests/native, which takes seconds, then the kernel tests of
tests/device (the file of its own kernels first), then the program under sanitizers, until one fails
twice. No record is needed. A mutant that does not compile is drawn anew. All is built with -O1, in
a third of the time; CFLAGS may say another. With CC="ccache gcc" what is built again costs nothing.
"""

import argparse
import fnmatch
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import copied_tree
from mutate import preload, show, table
from operators import Mutant, apply
from recorded import Judged
from running import Run, run_pytest

PROGRAM_S = 120  # it takes four seconds of one core
_NOTHING = re.compile(
    rb'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|^[ \t]*#(?:\\\n|[^\n])*', re.S | re.M
)
_STATEMENT = (
    rb"^[ \t]+(?!return\b|break\b|continue\b|goto\b|else\b|case\b)"
    rb"((?:[a-z_]\w*(?:\([^;{}]*\)|[\w\[\].>-]* [-+*|&]?= [^;{}]*|\+\+));)$"
)
_CHANGES = [  # operator, what it looks like, what it becomes
    ("comparison", rb"(?<= )<(?= )", (b"<=", b">")),
    ("comparison", rb"(?<= )>(?= )", (b">=", b"<")),
    ("comparison", rb"<=", (b"<", b">")),
    ("comparison", rb">=", (b">", b"<")),
    ("comparison", rb"==", (b"!=",)),
    ("comparison", rb"!=", (b"==",)),
    ("and/or", rb"&&", (b"||",)),
    ("and/or", rb"\|\|", (b"&&",)),
    ("arithmetic", rb"(?<= )\+(?= )", (b"-",)),
    ("arithmetic", rb"(?<= )-(?= )", (b"+",)),
    ("arithmetic", rb"(?<= )\*(?= )", (b"/",)),
    ("arithmetic", rb"(?<= )/(?= )", (b"*",)),
    ("arithmetic", rb"(?<= )%(?= )", (b"*",)),
    ("arithmetic", rb"<<(?!=)", (b">>",)),
    ("arithmetic", rb">>(?!=)", (b"<<",)),
    ("arithmetic", rb"(?<= )&(?= )", (b"|",)),
    ("arithmetic", rb"(?<= )\+=", (b"-=",)),
    ("removed break", rb"\b(?:break|continue);", (b";",)),
    ("return value", rb"\breturn MARLIN_E\w+;", (b"return 0;",)),
    ("negated condition", rb"(?<=\bif )\((?=[^\n]*\) ?\{?$)", None),
    ("constant", rb"(?<![\w.])\d+(?![\w.])", None),
    ("constant", rb"(?<![\w.])\d+\.\d+f\b", None),
]
_OWN_TESTS = {
    "kernels_linear": "device/linear", "kernels_quantize": "device/linear",
    "kernels_attention": "device/attention",
    "kernels_rows": "device/rows", "kernels_sample": "device/sample",
    "kernels_repack": "device/repack", "kernels_dense": "device/dense",
    "kernels_experts": "device/experts", "kernels_state": "device/state device/delta",
    "kernel_checks": "device/hostile_records", "records": "device/program device/hostile_records",
    "buffers": "device/buffers", "faults": "device/mapped_faults",
    "cpu_program": "device/program device/replay", "cpu_pool": "device/program",
    "cpu": "device/abi",
    "automaton": "unit/grammar_regex unit/grammar_schema", "grammar": "unit/grammar_regex",
    "vocabulary": "unit/grammar_regex device/tool_grammars",
}  # fmt: skip


def mutants(path, source):
    """Every mutant of a C source; many do not compile."""
    plain = _NOTHING.sub(lambda found: re.sub(rb"[^\n]", b"\0", found[0]), source)
    for operator, pattern, becomes in [("removed statement", _STATEMENT, (b";",)), *_CHANGES]:
        for found in re.finditer(pattern, plain, re.M):
            start, end = found.span(found.re.groups and 1)
            for new in becomes or _computed(operator, found, plain):
                if operator == "negated condition":
                    end = start + 1 + plain[start + 1 :].index(b"\n")
                    end = start + 1 + plain[start + 1 : end].rindex(b")")
                line = plain.count(b"\n", 0, start) + 1
                new = new if isinstance(new, str) else new.decode()
                yield Mutant(path, line, operator, start, end, new, (line,), False)


def _computed(operator, found, plain):
    if operator == "negated condition":
        line = plain[found.start() + 1 :].partition(b"\n")[0]
        return [b"(!(" + line[: line.rindex(b")")] + b")"]
    if found[0].endswith(b"f"):
        return [f"{float(found[0][:-1]) * 2 + 0.5}f"]
    value = int(found[0])
    return [str(value + 1), str(value - 1)] if value else ["1"]


def draw(root, patterns, seed):
    """Mutants in random order, without end of their own; by line, as of Python."""
    sites = {}
    for folder in ("common", "cpu"):
        for path in sorted((root / "metal_shim" / folder).glob("*.c")):
            name = str(path.relative_to(root))
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                for mutant in mutants(name, path.read_bytes()):
                    sites.setdefault((name, mutant.line), []).append(mutant)
    chance = random.Random(seed)
    keys = list(sites)
    chance.shuffle(keys)
    return [chance.choice(sites[key]) for key in keys]


def tests_of(root, mutant):
    """Lists of pytest's arguments, one run after another."""
    own = [f"tests/{name.replace('/', '/test_')}.py"
           for name in _OWN_TESTS.get(Path(mutant.path).stem, "").split()]  # fmt: skip
    if own:
        yield own
    others = sorted(str(path.relative_to(root)) for path in root.glob("tests/device/test_*.py"))
    yield [name for name in others if name not in own]
    yield ["tests/native", "-m", "long or not long", "-k", "past_a_binding or race"]


def judge(root, mutant):
    """(verdict, the test that failed or ''); the verdict of what does not compile is None."""
    path = root / mutant.path
    original = path.read_bytes()
    path.write_bytes(apply(mutant, original))
    try:
        if not _is_built(root):
            return None, ""
        if failed := _failing_alone(root):
            return "killed", failed
        for arguments in tests_of(root, mutant):
            failed = _failing(root, arguments)
            if failed:
                return "killed", failed
        return "survived", ""
    finally:
        path.write_bytes(original)


def _is_built(root):
    build = [sys.executable, "metal_shim/build/build.py"]
    return subprocess.run(build, cwd=root, capture_output=True).returncode == 0


def build_program(root):
    """The C program of tests/native, for whatever library lies there when it runs."""
    if not _is_built(root):
        sys.exit("what the mutants are of cannot be built itself")
    command = [*os.environ.get("CC", "gcc").split(), "-std=c11", "-O1", "-Imetal_shim", "-Ishaders"]
    command += sorted(str(path) for path in (root / "tests" / "native").glob("*.c"))
    command += ["-Lmarlin/device", f"-Wl,-rpath,{root}/marlin/device", "-lmarlin_cpu", "-ldl"]
    subprocess.run([*command, "-o", root / ".mutate" / "device_test"], cwd=root, check=True)
    if failed := _failing_alone(root):
        sys.exit(f"the program fails without a mutant: {failed}")


def _failing_alone(root):
    """What the program of tests/native says that failed, twice, or ''."""
    command, said = [root / ".mutate" / "device_test", root / ".mutate" / "scratch"], ""
    for _ in range(2):
        try:
            done = subprocess.run(
                command, cwd=root, capture_output=True, text=True, errors="replace",
                timeout=PROGRAM_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            said = "(hangs)"
            continue
        if done.returncode == 0:
            return ""
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        said = failed[0] if failed else f"(exit status {done.returncode})"
    return f"tests/native: {said}"


def _failing(root, arguments):
    code, tests = run_pytest(root, ["-x", *arguments], CpuRun, lambda _name: 300)
    if code in (0, 5):
        return None
    return tests[-1][0] if tests else "(crash)"


class CpuRun(Run):
    """All tests but Metal's, another device, whose simulator would be built anew each time."""

    def __init__(self, folder):
        super().__init__(folder, builds=True)

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if "metal" not in item.nodeid.partition("::")[2]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(tempfile.gettempdir()) / f"marlin-mutants-{os.getuid()}"
    parser.add_argument("--tree", type=Path, default=default, help="where the copy lies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", default=["*"], help="patterns, metal_shim/cpu/*")
    options = parser.parse_args()
    root = options.tree.resolve()
    if not options.inside:
        copied_tree.refresh(root)
        copied_tree.run_inside(root, __file__)
    os.environ.setdefault("CFLAGS", "-O1")
    preload()
    build_program(root)
    judged, num_drawn = Judged(root / ".mutate" / f"judged_c.{options.seed}.jsonl"), 0
    for mutant in draw(root, options.files, options.seed):
        if num_drawn == options.count:
            break
        started = time.time()
        changed = apply(mutant, (root / mutant.path).read_bytes()).decode()
        if judged.of(mutant.path, changed):
            num_drawn += 1
            continue
        verdict, by = judge(root, mutant)
        if verdict is None:
            continue
        num_drawn += 1
        judged.add({**mutant._asdict(), "verdict": verdict, "source": changed})
        what = f"{num_drawn} {mutant.path}:{mutant.line} [{mutant.operator}]"
        print(f"{what} {verdict} {by} {time.time() - started:.0f} s", flush=True)
        if verdict != "killed":
            show(root, judged.results[-1])
    print()
    table(judged.results)


if __name__ == "__main__":
    main()
