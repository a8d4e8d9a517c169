"""`metal-marlin manifest`: a model's files, their lengths and digests, on standard output."""

import sys

from marlin.commands.progress import waiting
from marlin.files.manifest import make_manifest
from marlin.models.place import is_folder
from marlin.streams import say


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument("model_path", metavar="MODEL", help="model folder or GGUF file")


def run(arguments):
    """Print it. Returns the exit code."""
    is_folder(arguments.model_path)
    with waiting(sys.stderr, f"reading {arguments.model_path}"):
        text = make_manifest(arguments.model_path).encode()
    say(text.rstrip("\n"))
    return 0
