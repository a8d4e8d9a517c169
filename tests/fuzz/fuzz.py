"""Run as a program: one target's valid inputs, changed at random, until the time is over.

    fuzz.py TARGET SECONDS SEED FOLDER

Each case is in FOLDER/case before it is tried, so that a crash or a hang leaves it there. Prints
how many were clean; ends with 1 at the first that was not, and says how.
"""

import json
import logging
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[1] / name) for name in ("support", "model", "server", "..")
]

from targets import TARGETS

# A single case: the worst template that is within its limits takes 2 s alone on a quiet machine.
CASE_S = 60
MEMORY_BYTES = 6 << 30


def too_long(_signum, _frame):
    raise TimeoutError(f"a case took {CASE_S} s")


def main(name, seconds, seed, folder):
    logging.disable(logging.CRITICAL)
    rng, folder = random.Random(f"{name} {seed}"), Path(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, too_long)
    target = TARGETS[name](folder)
    counts, end = {}, time.monotonic() + seconds
    while time.monotonic() < end:
        case = target.case(rng)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4]))
