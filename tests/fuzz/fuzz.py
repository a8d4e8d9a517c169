"""Run as a program: what was found before, then one target's valid inputs, changed at random, until
the time is over.

    fuzz.py TARGET SECONDS SEED FOLDER [LIBRARY]

Each case is in FOLDER/case before it is tried, so that a crash or a hang leaves it there. Prints
how many were clean; ends with 1 at the first that was not, and says how. LIBRARY is a native
library in place of the package's: one that was built with sanitizers, whose run time is preloaded.

With --guided before TARGET atheris chooses the cases: what reaches lines that no other has reached
is changed further. It says what it found, and ends with its own codes.
"""

import json
import logging
import random
import resource
import signal
import sys
import time
import traceback
from itertools import islice
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[1] / name) for name in ("support", "model", "server", "..")
]

import marlin.device.library

FOUND = Path(__file__).with_name("found")
# A single case: the worst template that is within its limits takes 2 s alone on a quiet machine.
CASE_S = 60
MEMORY_BYTES = 6 << 30
NUM_FIRST = 64  # cases that coverage begins from


def too_long(_signum, _frame):
    raise TimeoutError(f"a case took {CASE_S} s")


def cases_of(name, target, seconds, seed):
    """What was found once, then as many changed inputs as there is time for."""
    yield from (path.read_bytes() for path in sorted(FOUND.glob(f"{name}/*")))
    rng, end = random.Random(f"{name} {seed}"), time.monotonic() + seconds
    while time.monotonic() < end:
        yield target.case(rng)


def main(name, seconds, seed, folder, library=None):
    logging.disable(logging.CRITICAL)
    if library is None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    else:  # a sanitizer's shadow takes more than all memory; ASAN_OPTIONS has a limit of its own
        marlin.device.library.library_path = lambda _kind="cpu": Path(library)
    from targets import TARGETS

    folder = Path(folder)
    signal.signal(signal.SIGALRM, too_long)
    target, counts = TARGETS[name](folder), {}
    for case in cases_of(name, target, seconds, seed):
        (folder / "case").write_bytes(case)
        signal.setitimer(signal.ITIMER_REAL, CASE_S)
        try:
            said = target.run(case).partition(":")[0]
        except BaseException:  # a panic of a library is one
            traceback.print_exc()
            print(f"unclean: {folder / 'case'} after {sum(counts.values())} cases")
            return 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        counts[said] = counts.get(said, 0) + 1
    target.close()
    print(json.dumps(counts))
    return 0


def guided(name, seconds, seed, folder):
    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["marlin"]):
        from targets import TARGETS
    target, corpus, rng = TARGETS[name](Path(folder)), Path(folder) / "corpus", random.Random(seed)
    corpus.mkdir()
    for number, case in enumerate(islice(cases_of(name, target, CASE_S, seed), NUM_FIRST)):
        (corpus / str(number)).write_bytes(case)

    def change(data, most, _seed):
        try:
            changed = target.change_again(rng, data) if rng.random() < 0.7 else data
        except ValueError:  # no JSON any more
            changed = data
        return changed[:most] if changed != data else atheris.Mutate(data, most)

    words = [f"-max_total_time={int(seconds)}", f"-timeout={CASE_S}", f"-artifact_prefix={folder}/"]
    words += [f"-seed={seed}", f"-rss_limit_mb={MEMORY_BYTES >> 20}", str(corpus)]
    atheris.Setup([sys.argv[0], *words], target.run, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    run = main
    if sys.argv[1] == "--guided":
        run = guided
        del sys.argv[1]
    sys.exit(run(sys.argv[1], float(sys.argv[2]), *sys.argv[3:]))
