"""A listening Unix socket: its file, who may connect, whom a connection is of.

Owns the file from its making to its removal, beside it PATH.lock, which a living server holds: what
a dead one left can be told from what another listens on without connecting to it. Sources: unix(7),
flock(2); sys/ucred.h of Darwin. What is said on a connection is as on any other.
"""

import fcntl
import os
import socket
import stat
import struct
import sys
from contextlib import suppress

from marlin.errors import ConfigError
from marlin.turns import client_of_uid

# Of sockaddr_un, without the zero byte behind a path.
MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103
LOCK_SUFFIX = ".lock"
# struct ucred of Linux: pid, uid, gid; the beginning of Darwin's struct xucred: version, uid.
_LINUX_UCRED, _DARWIN_XUCRED = struct.Struct("=iII"), struct.Struct("=II")
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1


class UnixListener(socket.socket):
    """Listens on a file, which goes when this is closed.

    Args:
        path: of the file.
        mode: of the file; who may write it may connect.
        owner: (uid, gid) of the file, -1 leaves one as it is.
        backlog: connections that wait until somebody accepts.

    Raises:
        ConfigError: another server has it; what is there is none of ours; it cannot be.
    """

    def __init__(self, path: str, mode: int, owner: tuple[int, int], backlog: int):
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        self._lock_fd = -1
        self._made: os.stat_result | None = None
        try:
            _check_place(path)
            self._lock_fd = _lock(path)
            self._bind(mode, owner, backlog)
        except OSError as error:
            self.close()
            raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
        except ConfigError:
            self.close()
            raise

    def _bind(self, mode, owner, backlog):
        """Nobody can connect before listen(), when the file is what it has to be."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        before = os.umask(0o777 & ~mode)
        try:
            self.bind(self._path)
        finally:
            os.umask(before)
        self._made = os.lstat(self._path)
        if owner != (-1, -1):
            os.chown(self._path, *owner, follow_symlinks=False)
        self.listen(backlog)

    def close(self):
        super().close()
        if self._lock_fd < 0:
            return
        with suppress(OSError):
            if self._made is not None and os.path.samestat(self._made, os.lstat(self._path)):
                os.unlink(self._path)
        with suppress(OSError):
            os.unlink(self._path + LOCK_SUFFIX)
        os.close(self._lock_fd)
        self._lock_fd = -1


def peer_of(sock: socket.socket) -> str:
    """Whose process has connected, as a client's name. Raises OSError: the system does not say."""
    if sys.platform == "linux":
        content = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_UCRED.size)
        return client_of_uid(_LINUX_UCRED.unpack(content)[1])
    content = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 256)
    return client_of_uid(_DARWIN_XUCRED.unpack_from(content)[1])


def _check_place(path):
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise ConfigError(
            f"--uds must be a path of {MAX_PATH_BYTES} bytes at most, which is all that this "
            f"system's Unix sockets can have, got {size}: {path}"
        )
    folder = os.stat(os.path.dirname(path) or ".").st_mode
    if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:
        raise ConfigError(f"{path}: anybody may put another socket there; chmod o-w its folder")


def _lock(path):
    """The descriptor of a lock on what is at the path, once that is nothing or a dead server's."""
    own = path + LOCK_SUFFIX
    was_locked = os.path.lexists(own)
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(own, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ConfigError(f"{path}: another server listens on it") from None
        with suppress(FileNotFoundError):
            # Else a server that was just ending has removed it, and the lock is of nothing.
            if os.path.samestat(os.fstat(fd), os.lstat(own)):
                break
        os.close(fd)
    try:
        _check_free(path, was_locked)
    except ConfigError:
        os.unlink(own)
        os.close(fd)
        raise
    return fd


def _check_free(path, was_locked):
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path}: there is a file that is no socket")
    if not was_locked:
        raise ConfigError(
            f"{path}: there is a socket, and no {path}{LOCK_SUFFIX} says that it was a server's of "
            "this kind; remove it if nobody listens on it"
        )
