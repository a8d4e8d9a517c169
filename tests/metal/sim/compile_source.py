"""What the simulated newLibraryWithSource runs: compile_source.py CACHE SOURCE OUT.

The same source is compiled once, wherever it lies.
"""

import hashlib
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msl import build
from msl.source import SourceError


def main(cache, source, out):
    text = Path(source).read_bytes()
    place = Path(cache) / f"source-{hashlib.sha256(text).hexdigest()[:16]}" / "program_source.metal"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text)
    try:
        shutil.copyfile(build.library(place, cache), out)
    except SourceError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
