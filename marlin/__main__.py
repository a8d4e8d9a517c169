"""`python -m marlin` is the `metal-marlin` command."""

import sys

from marlin.cli import main

if __name__ == "__main__":
    sys.exit(main())
