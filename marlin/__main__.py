"""`python -m marlin` is the `metal-marlin` command: this is where either begins."""

import sys


def main() -> int:
    """cli.main(), which takes its time to be imported: interrupting that is no traceback."""
    try:
        import signal

        # Until a command says otherwise an interrupt ends the process as SIGTERM does. As an
        # exception it may come up in the middle of anybody's import, who may drop it.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # bin/metal-marlin blocks it
        from marlin import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
