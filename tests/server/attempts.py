"""What a serving process must not do, done: each attempt by the audit event that it raises first.

None of them harms where it is not refused: they look up and ask this machine only.
"""

import ctypes
import ctypes.util
import os
import pty
import socket
import subprocess
import sys
import urllib.request

ADDRESS = ("127.0.0.1", 9)  # discard
# As native code has it: opened before anything refuses to.
_LIBC = ctypes.CDLL(None, use_errno=True)
_SOCKADDR = socket.AF_INET.to_bytes(2, sys.byteorder) + b"\0\x09\x7f\0\0\1" + bytes(8)


def _fork(fork):
    pid = fork()
    if not (pid[0] if isinstance(pid, tuple) else pid):
        os._exit(0)


def _unix():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/dev/log")


def _with_socket(kind, act):
    with socket.socket(socket.AF_INET, kind) as sock:
        act(sock)


def _stream(act):
    return lambda: _with_socket(socket.SOCK_STREAM, act)


def _datagram(act):
    return lambda: _with_socket(socket.SOCK_DGRAM, act)


ATTEMPTS = {
    "a connection": ("socket.connect", _stream(lambda sock: sock.connect(ADDRESS))),
    "a quiet connection": ("socket.connect", _stream(lambda sock: sock.connect_ex(ADDRESS))),
    "a connection on this machine": ("socket.connect", _unix),
    "a connected datagram socket": ("socket.connect", _datagram(lambda s: s.connect(ADDRESS))),
    "a datagram": ("socket.sendto", _datagram(lambda sock: sock.sendto(b"", ADDRESS))),
    "a message": ("socket.sendmsg", _datagram(lambda s: s.sendmsg([b""], [], 0, ADDRESS))),
    "a look-up": ("socket.getaddrinfo", lambda: socket.getaddrinfo("localhost", 80)),
    "an old look-up": ("socket.gethostbyname", lambda: socket.gethostbyname("localhost")),
    "an older look-up": ("socket.gethostbyname", lambda: socket.gethostbyname_ex("localhost")),
    "a reverse look-up": ("socket.gethostbyaddr", lambda: socket.gethostbyaddr("127.0.0.1")),
    "a service's name": ("socket.getnameinfo", lambda: socket.getnameinfo(ADDRESS, 0)),
    "a download": ("socket.getaddrinfo", lambda: urllib.request.urlopen("http://127.0.0.1:9")),
    "a process": ("subprocess.Popen", lambda: subprocess.run(["true"], check=False)),
    "this python": ("subprocess.Popen", lambda: subprocess.run([sys.executable], check=False)),
    "a shell": ("os.system", lambda: os.system("true")),
    "a pipe from a shell": ("subprocess.Popen", lambda: os.popen("true").read()),
    "a spawned process": (
        "os.posix_spawn",
        lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    ),
    "a copy": ("os.fork", lambda: _fork(os.fork)),
    "a copy with a terminal": ("os.forkpty", lambda: _fork(pty.fork)),
    "another program": ("os.exec", lambda: os.execv("/bin/true", ["true"])),
    "another library": ("ctypes.dlopen", lambda: ctypes.CDLL("libc.so.6")),
    "the process as a library": ("ctypes.dlopen", lambda: ctypes.CDLL(None)),
}


def _native(call):
    """Do it below Python, where no audit hook looks; EPERM where a filter refuses it."""

    def attempt():
        ctypes.set_errno(0)
        result = call()
        if result == 0:  # the child of a fork
            os._exit(0)
        raise OSError(ctypes.get_errno(), f"native: {os.strerror(ctypes.get_errno())}")

    return attempt


def _on_socket(act):
    def call():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            return act(sock.fileno())

    return call


_ARGV = (ctypes.c_char_p * 2)(b"true", None)
NATIVE = {
    "native connect": _native(_on_socket(lambda fd: _LIBC.connect(fd, _SOCKADDR, 16) or 1)),
    "native sendto": _native(_on_socket(lambda fd: _LIBC.sendto(fd, b"x", 1, 0, _SOCKADDR, 16))),
    "native sendmsg": _native(_on_socket(lambda fd: _LIBC.sendmsg(fd, bytes(56), 0))),
    "native sendmmsg": _native(_on_socket(lambda fd: _LIBC.sendmmsg(fd, bytes(64), 1, 0))),
    "native fork": _native(_LIBC.fork),
    "native exec": _native(lambda: _LIBC.execve(b"/bin/true", _ARGV, None)),
    "native ptrace": _native(lambda: _LIBC.ptrace(16, os.getppid(), None, None)),
    "native unshare": _native(lambda: _LIBC.unshare(0x10000000)),
    "native mount": _native(lambda: _LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None)),
}


def _write(path, mode):
    def attempt():
        open(path, mode).close()

    return attempt


WRITES = {
    "a file": _write("/tmp/metal-marlin-test-attempt", "w"),
    "a longer file": _write(__file__, "a"),
    "a file both ways": _write(__file__, "r+b"),
}
