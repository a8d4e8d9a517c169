"""`metal-marlin manual`: the manual page, written from the same parsers that read the words.

metal-marlin manual | man -l -
"""

from marlin import __version__
from marlin.commands.table import facts
from marlin.config import API_KEY_VARIABLE, MOCK_MODEL_VARIABLE, MODEL_PATH_VARIABLE

_HEAD = """.TH METAL-MARLIN 1 "" "metal-marlin {version}" "User Commands"
.SH NAME
metal-marlin \\- an OpenAI-compatible server for quantized language models
.SH SYNOPSIS
.B metal-marlin
.I COMMAND
[\\fIoption\\fR ...]
.SH DESCRIPTION
A model is a GGUF file, a folder of safetensors, or a folder that
.B quantize
made. Nothing is downloaded, and nothing is sent to anybody.
.PP
What is true or false is written
.BR \\-\\-enable\\-batching ,
.BR "\\-\\-enable\\-batching false" ,
.B \\-\\-enable\\-batching=false
or
.BR \\-\\-no\\-enable\\-batching .
"""
_TAIL = """.SH ENVIRONMENT
The variable in brackets after an option sets it, too; the option wins. An empty variable counts as
unset.
.TP
.B {model}
the model's path; wins over the argument of
.B serve
.TP
.B {key}
what clients of
.B serve
must present
.TP
.B {mock}
1: answers are made up, and no model is loaded
.SH EXIT STATUS
0 for success, 1 for a failure, 2 for a mistake in the words or the variables.
"""


def add_arguments(parser):
    """Declare the command's arguments on a Parser: none."""


def run(arguments):
    """Print the page. Returns the exit code."""
    print(page(), end="")
    return 0


def page():
    """The page, in roff's man macros."""
    lines = [_HEAD.format(version=__version__).rstrip("\n")]
    for command in facts():
        words = " ".join(f"\\fI{_escaped(found.metavar)}\\fR" for found in command.arguments)
        lines += [f".SH {_escaped(command.name.upper())}", f".B metal-marlin {command.name}"]
        lines += [*([words] if words else []), ".PP", _escaped(_sentence(command.summary))]
        for found in (*command.arguments, *command.options):
            lines += [".TP", _tag(found), _escaped(found.help)]
    names = {"model": MODEL_PATH_VARIABLE, "key": API_KEY_VARIABLE, "mock": MOCK_MODEL_VARIABLE}
    return "\n".join(lines) + "\n" + _TAIL.format(**names)


def _tag(found):
    metavar = f"\\fI{_escaped(found.metavar)}\\fR"
    if not found.flags:
        return metavar
    flags = ", ".join(f"\\fB{_escaped(flag)}\\fR" for flag in found.flags)
    return f"{flags} {metavar}" if found.metavar else flags


def _sentence(summary):
    return summary[0].upper() + summary[1:] + "."


def _escaped(text):
    """Text that roff shows as it is: no escapes, no hyphens for minus, no requests."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text
