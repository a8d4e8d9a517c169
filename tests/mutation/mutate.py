#!/usr/bin/env python3
"""Judge the tests: change one thing in marlin/, in a copy of the tree, and see if a test fails.

    .venv/bin/python tests/mutation/mutate.py record --seed 7 --count 60 tests/unit tests/server
    .venv/bin/python tests/mutation/mutate.py run --seed 7 --count 60

`run` draws mutants, of the files that --files matches, and gives each the tests that come to its
place, quickest first, until one fails twice; a test that ends only by its time limit counts as
failed. Which tests come where, `record` finds by running tests once with a probe in each place of
the same draw; a second one adds to the first. Draws are by line: each line that has a mutant is as
likely as any other. A mutant to which no recorded test comes, or of what an import makes, gets the
test files that name its module or one of its users, the likeliest first. A draw that was
interrupted goes on where it was.
"""

import argparse
import difflib
import fnmatch
import hashlib
import os
import random
import re
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import copied_tree
import operators
import probes
from recorded import Judged, Record, enclosing, place_of
from running import Run, run_pytest

# Seconds of tests, as recorded, and from how many files: at first, then for what survives that.
ROUNDS = (5, 3), (30, 15)
UNRECORDED_S = 4  # of CPU time, for each of the few lists of test files without a record
_SLOW_FOLDERS = ("metal", "fuzz", "chaos", "clients", "deploy", "device")  # not without a record
_PRELOADED = ("numpy", "hypothesis", "jinja2", "openai", "gguf", "pytest", "tokenizers")
_PRELOADED += ("transformers.utils.chat_template_utils", "torch")


class _Watch:
    """Keeps, as each test ends, which mutants' places it came to.

    Args:
        places: their names, as recorded.place_of gives them.
    """

    def __init__(self, kept, root, places):
        self._kept, self._places = kept, places
        self._hits = probes.Hits(root, len(places))

    def begin(self):
        self._hits.take()  # what is left of another's, and what collecting imported

    def end(self, name, outcome, seconds):
        places = [self._places[number] for number in self._hits.take()]
        self._kept.add(name, outcome, round(seconds, 3), places)


def record(root, patterns, count, seed, arguments):
    """Run tests with probes in the places of a draw and keep which test comes where."""
    kept = Record(_record(root, seed))
    drawn = draw(root, patterns, count, seed)
    sources, numbers = probes.probed(root, drawn)
    print(f"{len(numbers)} of {len(drawn)} mutants have a probe", flush=True)
    places = [place_of(mutant, (root / mutant.path).read_bytes()) for mutant in drawn]
    plain = {path: ((root / path).read_bytes(), (root / path).stat()) for path in sources}
    try:
        for path, source in sources.items():
            (root / path).write_bytes(source)
        code, tests = run_pytest(
            root, arguments, lambda folder: Run(folder, watch=_Watch(kept, root, places))
        )
    finally:
        (root / ".mutate" / "hits").unlink(missing_ok=True)
        for path, (source, stat) in plain.items():
            (root / path).write_bytes(source)
            os.utime(root / path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    bad = [test for test in tests if test[1] == "failed"]
    print(f"{len(tests)} tests, {len(bad)} failed (left out), exit code {code}")
    for name, *_ in bad:
        print(f"  {name}")


def _record(root, seed):
    return root / ".mutate" / f"record.{seed}.jsonl"


def draw(root, patterns, count, seed):
    """`count` mutants, all of which compile, of the files that the patterns match, by line.

    A line's place in the draw depends on itself alone: what others become changes little.
    """
    sites = {}
    for path in sorted((root / "marlin").rglob("*.py")):
        name = str(path.relative_to(root))
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            source = path.read_bytes()
            lines, seen = source.decode().splitlines(), Counter()
            keys = []
            for text in lines:
                seen[text] += 1
                keys.append(hashlib.sha256(f"{seed}{name}{text}{seen[text]}".encode()).digest())
            for mutant in operators.mutants(name, source):
                sites.setdefault(keys[mutant.line - 1], []).append(mutant)
    drawn = []
    for key in sorted(sites):
        random.Random(key).shuffle(sites[key])
        for mutant in sites[key]:
            if operators.compiles(operators.apply(mutant, (root / mutant.path).read_bytes())):
                drawn.append(mutant)
                break
        if len(drawn) == count:
            break
    return drawn


def chosen(record, tests, path, budget_s, num_files):
    """Of the tests some of `num_files` files for `budget_s` seconds, quickest file first.

    First come files that are named after the module or its folder, then those of the folder of
    quick tests, then those of which most tests come to the place.
    """
    files = {}
    for name in tests:
        files.setdefault(name.partition("::")[0], []).append(name)
    sizes = Counter(name.partition("::")[0] for name in record.tests)
    names = Path(path).stem, Path(path).parent.name

    def rank(file):
        is_own = any(name in Path(file).stem for name in names)
        return not is_own, not file.startswith("tests/unit"), -len(files[file]) / sizes[file], file

    def cost(name):
        return record.tests[name][1]

    order, each_s = [], budget_s / min(num_files, len(files) or 1)
    for file in sorted(files, key=rank)[:num_files]:
        total = 0.0
        for name in sorted(files[file], key=cost):
            total += cost(name) + 0.005
            if order and total > each_s:
                break
            order.append(name)
    return order


def judge(root, record, mutant):
    """Put a mutant in the copy and run its tests: (verdict, what failed or has not been tried)."""
    path = root / mutant.path
    original, stat = path.read_bytes(), path.stat()
    tests = record.covering(place_of(mutant, original))
    lists = naming(root, mutant) if mutant.at_import or not tests else []
    changed = operators.apply(mutant, original)
    path.write_bytes(changed)
    stamp = zlib.crc32(changed)  # no .pyc of another is taken for it
    os.utime(path, (stamp, stamp))
    try:
        for seconds, num_files in ROUNDS:
            order = chosen(record, tests, mutant.path, seconds, num_files)
            failed = _failing(root, record, order) if order else None
            if failed is not None:
                return "killed", failed
            tests = tests.difference(order)
        for files in lists:
            if failed := _failing(root, record, files, UNRECORDED_S):
                return "killed", failed
        return "survived", f"{len(tests)} tests not tried"
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def naming(root, mutant):
    """Lists of the test files that say something of a mutant's module, the likeliest first.

    A file named after the module counts most, then one that names it and what changes in it, a
    folder of quick tests more than one of slow ones; the name as a mere word counts least.
    """
    module = mutant.path[: -len(".py")].replace("/", ".").removesuffix(".__init__")
    package, _, name = module.rpartition(".")
    around = enclosing(root / mutant.path, mutant.line)
    users = [
        path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
        for path in (root / "marlin").rglob("*.py")
        if re.search(rf"\b{name}\b", path.read_text()) and path != root / mutant.path
    ]
    ranks = []
    for file in sorted((root / "tests").rglob("test_*.py")):
        text, folder = file.read_text(), file.parent.name
        if folder in _SLOW_FOLDERS and folder not in mutant.path:
            continue
        imported = rf"from {package} import [\w, (\n]*\b{name}\b"
        named = f"{module} " in text or re.search(imported, text) is not None
        mentioned = sum(bool(re.search(rf"\b{word}\b", text)) for word in around)
        rank = 8 * (file.stem.removeprefix("test_") == name)
        rank += 4 * (set(name.split("_")) <= set(file.stem.split("_")))
        rank += 2 * (Path(mutant.path).parent.name in file.stem.split("_"))
        rank += sum(user.rpartition(".")[2] in file.stem for user in users)
        rank += 4 * named + 3 * mentioned + bool(re.search(rf"\b{name}\b", text))
        if rank:
            rank += {"unit": 4, "server": 2, "device": 2}.get(folder, 0)
            ranks.append((-rank, str(file.relative_to(root))))
    files = [file for rank, file in sorted(ranks)]
    return [some for some in (files[:1], files[1:3], files[3:6]) if some]


def _failing(root, record, order, cpu_s=None):
    """The test that fails of these tests or, with a limit of CPU time, test files; or None."""

    def limit(name):
        return 40 + 10 * record.tests.get(name, ["", 10])[1]  # a busy machine only imports slowly

    files = list(dict.fromkeys(name.partition("::")[0] for name in order))
    chosen = order if cpu_s is None else None
    options = ["-x"] if cpu_s is None else ["-x", "-m", "not slow"]
    code, tests = run_pytest(
        root, [*options, *files], lambda folder: Run(folder, chosen, cpu_s=cpu_s), limit
    )
    if code in (0, 5) or (code == 2 and tests):  # 2: its time was used up, or nothing could be read
        return None
    if code == 1 and tests:
        return tests[-1][0]
    return f"{tests[-1][0]} (hangs)" if code is None and tests else "(collection)"


def table(results):
    """A line for each folder and file: how many were killed and survived."""
    rows = {}
    for result in results:
        folder = result["path"].rpartition("/")[0]
        for row in (folder + "/", result["path"], "all"):
            counts = rows.setdefault(row, {"killed": 0, "survived": 0})
            counts[result["verdict"]] += 1
    print(f"{'module':44} killed survived  score")
    for row in sorted(rows, key=lambda row: (row == "all", row)):
        killed, survived = rows[row].values()
        print(f"{row:44} {killed:6} {survived:8} {100 * killed / (killed + survived):5.0f}%")


def show(root, result):
    source = (root / result["path"]).read_bytes().decode()
    changed = result["source"].splitlines()
    for line in difflib.unified_diff(source.splitlines(), changed, n=1, lineterm=""):
        if not line.startswith(("---", "+++", "@@")):
            print(f"    {line}")


def run(root, patterns, count, seed):
    """Draw, judge each, print what survived as it comes and the table at the end."""
    kept = Record(_record(root, seed))
    judged = Judged(root / ".mutate" / f"judged.{seed}.jsonl")
    for number, mutant in enumerate(draw(root, patterns, count, seed), 1):
        started = time.time()
        changed = operators.apply(mutant, (root / mutant.path).read_bytes()).decode()
        if judged.of(mutant.path, changed):
            continue
        verdict, by = judge(root, kept, mutant)
        judged.add({**mutant._asdict(), "verdict": verdict, "source": changed})
        what = f"{number} {mutant.path}:{mutant.line} [{mutant.operator}]"
        print(f"{what} {verdict} {by} {time.time() - started:.0f} s", flush=True)
        if verdict != "killed":
            show(root, judged.results[-1])
    print()
    table(judged.results)


def preload():
    """Have what every fork needs and no mutant changes; what is compiled is kept for the next."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    for name in _PRELOADED:
        __import__(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(tempfile.gettempdir()) / f"marlin-mutants-{os.getuid()}"
    parser.add_argument("--tree", type=Path, default=default, help="where the copy lies")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    running = commands.add_parser("run")
    for command in (recording, running):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--count", type=int, default=60)
        command.add_argument("--files", nargs="+", default=["marlin/*"], help="marlin/server/* ...")
    recording.add_argument("tests", nargs="+", help="as pytest takes them")
    options = parser.parse_args()
    root = options.tree.resolve()
    if not options.inside:
        copied_tree.refresh(root)
        copied_tree.run_inside(root, __file__)
    preload()
    if options.command == "record":
        record(root, options.files, options.count, options.seed, options.tests)
    else:
        run(root, options.files, options.count, options.seed)


if __name__ == "__main__":
    main()
