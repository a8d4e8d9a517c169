"""`python -m marlin` is the `metal-marlin` command: this is where either begins."""

import sys


def main() -> int:
    """cli.main(), which takes its time to be imported: interrupting that is no traceback."""
    try:
        from marlin import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
