"""Which commands there are: a row each, and a file of that name beside this one.

Knows their options as plain facts, for whatever is written from them: completions, the manual page.
"""

from importlib import import_module
from typing import NamedTuple

from marlin.commands.parser import Parser

COMMANDS = {
    "serve": "answer the OpenAI API over HTTP",
    "generate": "write a model's answer to standard output",
    "chat": "talk with a model in the terminal",
    "quantize": "make a packed model folder from safetensors or GGUF",
    "bench": "measure prefill and decode speed",
    "plan": "tell what of a model fits on a machine, and how fast it should be",
    "manifest": "write down which bytes a model consists of",
    "audit": "check an audit log, or show what is in it",
    "lockdown": "show what serve --lock-down would hold, and what is missing",
    "info": "show versions, devices and their kernels",
    "selftest": "run every kernel on stored vectors",
    "keys": "make a named key for clients of `serve`",
    "completion": "print completions for bash, zsh or fish",
    "manual": "print the manual page",
}


class OptionFacts(NamedTuple):
    """One option, or with no flags an argument.

    Attributes:
        flags: as typed.
        metavar: what stands for its value, or "".
        help: one sentence.
    """

    flags: tuple[str, ...]
    metavar: str
    help: str

    @property
    def takes_value(self) -> bool:
        return bool(self.metavar)

    @property
    def values(self) -> tuple[str, ...]:
        """The only ones there are, or none where any may be."""
        return tuple(self.metavar.split("|")) if "|" in self.metavar else ()


class CommandFacts(NamedTuple):
    """One command.

    Attributes:
        arguments, options: OptionFacts in the order of --help.
    """

    name: str
    summary: str
    arguments: tuple[OptionFacts, ...]
    options: tuple[OptionFacts, ...]

    @property
    def flags(self) -> list[str]:
        return [flag for option in self.options for flag in option.flags]


def module_of(command: str):
    """The file of a command: it has add_arguments(parser) and run(arguments) -> exit code."""
    return import_module(f"marlin.commands.{command}")


def parser_of(command: str) -> Parser:
    """The parser of a command's words."""
    parser = Parser(command, COMMANDS[command])
    module_of(command).add_arguments(parser)
    return parser


def facts() -> list[CommandFacts]:
    """All commands, in the order of --help."""
    return [_facts_of(name) for name in COMMANDS]


def _facts_of(name):
    arguments, options = [], []
    for action in parser_of(name).actions:
        metavar = action.metavar if action.nargs != 0 and isinstance(action.metavar, str) else ""
        text = str(action.help) % {**vars(action), "prog": "metal-marlin"}
        found = OptionFacts(tuple(action.option_strings), metavar, text)
        (options if action.option_strings else arguments).append(found)
    return CommandFacts(name, COMMANDS[name], tuple(arguments), tuple(options))
