"""Whether a model's files are still what they were when it was opened.

Weights are used where they lie, so that a file that is written to while it is served changes
answers without a word. Knows which files a model may have; reads none of them.
"""

import os
from collections.abc import Iterable

from marlin.errors import ModelFileError
from marlin.files.split_name import parts_of

# Of a folder: what a model is read from.
_SUFFIXES = (".safetensors", ".json", ".jinja")


class Snapshot:
    """What the files of a model were like: which they are, their lengths and times of change.

    Args:
        path: a file, which counts with its other parts, or a folder, of which the files a model
            may be read from count.
    """

    def __init__(self, path: str | os.PathLike):
        path = os.fspath(path)
        paths = parts_of(path)[1]
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(_SUFFIXES))
            paths = [os.path.join(path, name) for name in names]
        self._seen = {path: _look(path) for path in paths}

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
