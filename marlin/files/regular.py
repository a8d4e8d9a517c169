"""Opening the files of a model: regular files only, and no more of them than a limit.

A link is followed, for download caches are made of links to blobs; what it leads to must be a
regular file. Knows nothing of what the files hold.
"""

import os
import stat
from typing import BinaryIO

from marlin.errors import ModelFileError


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading, unbuffered.

    Raises:
        ModelFileError: it is missing, cannot be read, or is a folder, a pipe, a device or a socket.
    """
    try:
        # Looked at first, since opening a device can act on it, and again once it is open. A named
        # pipe would wait for its writer: hence O_NONBLOCK, which a regular file does not mind.
        if stat.S_ISREG(os.stat(path).st_mode):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            file = os.fdopen(descriptor, "rb", buffering=0)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return file
            file.close()
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelFileError(path, f"cannot be opened: {reason}") from None
    raise ModelFileError(path, "not a regular file")


def read_regular(path: str, max_bytes: int, *default: None) -> bytes | None:
    """The whole of a regular file.

    Args:
        max_bytes: the most that is read; more is refused.
        default: given, it is what a file that does not exist means.

    Raises:
        ModelFileError: as open_regular's, or the file is longer than max_bytes.
    """
    if default and not os.path.lexists(path):
        return default[0]
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # One byte more than the limit tells a file that grows, or whose size says nothing (/proc).
        data = b"" if size > max_bytes else _read(path, file, max_bytes + 1)
    if max(size, len(data)) > max_bytes:
        message = f"{max(size, len(data))} bytes; at most {max_bytes} of such a file are read"
        raise ModelFileError(path, message)
    return data


def _read(path, file, num_bytes):
    pieces = []
    try:
        while num_bytes and (piece := file.read(min(num_bytes, 1 << 20))):
            pieces.append(piece)
            num_bytes -= len(piece)
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror}") from None
    return b"".join(pieces)
