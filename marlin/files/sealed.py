"""Memory that has a descriptor and no name, and that nobody can change once it is sealed; and a
model's files copied into such memory, so that what was checked is what is served.

Owns the copies and the folder of links by which readers, which open paths, come to them. Knows
nothing of what a file holds.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from marlin.errors import ModelFileError

_HAS_SEALS = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


def nameless_file(name: str) -> int:
    """Descriptor of an empty file that goes away with the last process that has it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile(prefix=name) as file:
        return os.dup(file.fileno())


def seal(fd: int) -> None:
    """From now on no process can change or shorten the file, which others compute with.

    Only Linux has that; elsewhere a file without a name is all there is.
    """
    if _HAS_SEALS:
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


class SealedModel(NamedTuple):
    """Copies of a model's files that were compared with a manifest.

    Attributes:
        name: the last part of the model's path.
        is_folder: whether the model is a folder, or else a file, with its parts beside it.
        files: {name in the folder, or of a file: descriptor of its copy}.
        digest: of the manifest, "sha256:" and 64 digits.
    """

    name: str
    is_folder: bool
    files: Mapping[str, int]
    digest: str

    @contextmanager
    def path(self) -> Iterator[str]:
        """A path at which the copies are read as the model, for as long as this is open.

        It is a folder of links that this process alone may look into; whatever is mapped meanwhile
        stays mapped.

        Raises:
            ModelFileError: there is no folder for temporary files.
        """
        try:
            place = tempfile.mkdtemp(prefix="metal-marlin-")
        except OSError as error:
            message = "no folder for temporary files, which --manifest needs (TMPDIR names one)"
            raise ModelFileError(tempfile.gettempdir(), f"{message}: {error.strerror}") from None
        try:
            root = os.path.join(place, self.name)
            for name, fd in self.files.items():
                link = os.path.join(root if self.is_folder else place, name)
                os.makedirs(os.path.dirname(link), exist_ok=True)
                os.symlink(_by_descriptor(fd), link)
            yield root
        finally:
            shutil.rmtree(place)

    def close(self) -> None:
        """Free the copies, but for what is mapped."""
        for fd in self.files.values():
            os.close(fd)


def _by_descriptor(fd):
    # Opening Linux's name of a descriptor opens the file anew, at its beginning.
    return f"/proc/self/fd/{fd}" if os.path.exists("/proc/self/fd") else f"/dev/fd/{fd}"
