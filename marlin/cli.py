"""The command line: which commands there are, and how each ends.

A command is a file of its name in commands/, imported only when it is asked for, so that --help and
mistakes answer at once.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from marlin import __version__, config
from marlin.commands.table import COMMANDS, module_of, parser_of
from marlin.errors import ConfigError, MarlinError, said_by_system
from marlin.streams import open_missing, speak_any_text

_HELP = """usage: metal-marlin COMMAND ...

An OpenAI-compatible server for quantized language models.

commands:
{}

metal-marlin help COMMAND     the options of a command
metal-marlin version          this version
"""
# What other programs call what is done here, or is not.
_ELSEWHERE = {
    "run": "generate",
    "start": "serve",
    "server": "serve",
    "doctor": "info",
    "convert": "quantize",
    "man": "manual",
    "benchmark": "bench",
}
_NOT_HERE = ("pull", "download", "list", "ls", "rm", "show", "ps", "stop")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes the process's own.
        environ: environment mapping; None takes the process's own.

    Returns:
        Exit code: 0, 1 for a failure, 2 for a mistake in the arguments.
    """
    open_missing()
    speak_any_text()
    words = list(sys.argv[1:] if argv is None else argv)
    environ = os.environ if environ is None else environ
    try:
        return _run(words, environ)
    except MarlinError as error:
        print(f"metal-marlin: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left; a second flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # raised again, unless the system's own refusal
        if (said := said_by_system(error)) is None:
            raise
        print(f"metal-marlin: {said}", file=sys.stderr)
        return 1


# Commands that settle all that is served, which is more than their options.
_SETTLING = ("serve", "lockdown")


def read(words: Sequence[str], environ: Mapping[str, str]):
    """A command's words as its run() takes them; `environ` goes along.

    Raises:
        ConfigError: a mistake in the words, or in a variable of an option that they leave out.
    """
    parser = parser_of(words[0])
    arguments = parser.read(words[1:])
    if words[0] not in _SETTLING:
        given = vars(arguments)
        given.update(config.settled(parser.fields, dict(given), environ))
    arguments.environ = environ
    return arguments


def _run(words, environ):
    if not words:
        print(_overview(), end="")
        return 2
    for word in words:
        config.check_text(word, "an argument")
    first, rest = words[0], words[1:]
    if first in ("-h", "--help") or (first == "help" and not rest):
        print(_overview(), end="")
        return 0
    if first in ("version", "--version", "-V") or rest == ["--version"]:
        print(f"metal-marlin {__version__}")
        return 0
    if first == "help":
        first, rest = rest[0], ["--help"]
    if first not in COMMANDS:
        raise ConfigError(_about(first))
    if "-h" in rest or "--help" in rest:
        parser_of(first).print_help()
        return 0
    module, arguments = module_of(first), read([first, *rest], environ)
    if first != "serve":  # which has nothing to clean up before it waits for signals itself
        _interrupt_by_exception()
    return module.run(arguments)


def _interrupt_by_exception():
    """Take back what __main__ did: from now on what was begun is cleaned up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _overview():
    return _HELP.format("\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items()))


def _about(word):
    if word.startswith("-"):
        return f"{word} comes after the command: metal-marlin COMMAND {word} ..."
    if word in _NOT_HERE:
        return f"no command {word}: nothing is downloaded or kept; commands take a model's path"
    near = [_ELSEWHERE[word]] if word in _ELSEWHERE else get_close_matches(word, COMMANDS, 1)
    if near:
        return f"no command {word}; did you mean {near[0]}?"
    return f"no command {word}; there are {', '.join(COMMANDS)}"
