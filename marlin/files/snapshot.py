"""Which files a model is read from, and whether they still are what they were when it was opened.

Weights are used where they lie, so that a file that is written to while it is served changes
answers without a word. Knows which files a model may have; reads none of them.
"""

import os
from collections.abc import Iterable

from marlin.errors import ModelFileError
from marlin.files.split_name import parts_of

# Of a folder: what a model is read from.
_SUFFIXES = (".safetensors", ".json", ".jinja")
TEMPLATE_FOLDER = "additional_chat_templates"


def model_files(path: str | os.PathLike) -> dict[str, str]:
    """{name: path} in the order of names, of all files that the model at `path` may be read from:
    the one file or its parts, or what a folder has of them, named as they are inside it."""
    path = os.fspath(path)
    if not os.path.isdir(path):
        parts = filter(os.path.exists, parts_of(path)[1])
        return {os.path.basename(part): part for part in sorted(parts)}
    names = [name for name in os.listdir(path) if name.endswith(_SUFFIXES)]
    templates = os.path.join(path, TEMPLATE_FOLDER)
    if os.path.isdir(templates):
        names += [f"{TEMPLATE_FOLDER}/{name}" for name in os.listdir(templates)]
    return {name: os.path.join(path, name) for name in sorted(names)}


class Snapshot:
    """What the files of a model were like: which they are, their lengths and times of change.

    Args:
        path: a file, which counts with its other parts, or a folder, of which the files a model
            may be read from count.
    """

    def __init__(self, path: str | os.PathLike):
        self._seen = {path: _look(path) for path in model_files(path).values()}

    def encode(self) -> bytes:
        """Other bytes for other files, the same for the same by another path."""
        seen = sorted((os.path.basename(path), str(look)) for path, look in self._seen.items())
        return repr(seen).encode("utf-8", "surrogateescape")

    def check_same(self) -> None:
        """Raises ModelFileError where one has been changed, replaced or removed."""
        for path, seen in self._seen.items():
            if _look(path) != seen:
                raise ModelFileError(path, "was changed since the model was opened")

    def check_in_place(self, paths: Iterable[str]) -> None:
        """As check_same(), of some files that are mapped: one that was replaced or removed is still
        there for whoever maps it."""
        for path in paths:
            seen, now = self._seen[path], _look(path)
            if now is not None and now != seen and now[:2] == seen[:2]:
                raise ModelFileError(path, "was changed in place while it is in use")


def _look(path):
    """(device, inode, bytes, ns of the last change), links followed; None where nothing is."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
