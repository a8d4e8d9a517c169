"""What the hooks of a serving process refuse and what they say, without one that refuses for ever:
they are asked about events as the interpreter would."""

import os
from types import SimpleNamespace

import pytest

from marlin.errors import LockdownError
from marlin.server.process import lockdown


@pytest.fixture
def hook(monkeypatch):
    """hook(install, ...) -> the hook that it adds."""
    hooks = []
    monkeypatch.setattr(lockdown, "sys", SimpleNamespace(addaudithook=hooks.append))

    def added(install, *arguments, **named):
        install(*arguments, **named)
        return hooks.pop()

    return added


# Events with arguments as the documentation of Python's library has them, and what is told.
REACHING = {
    "socket.connect": (("a socket", ("10.0.0.1", 80)), ("10.0.0.1", 80)),
    "socket.sendto": (("a socket", "an address"), "an address"),
    "socket.sendmsg": (("a socket", "an address"), "an address"),
    "socket.getaddrinfo": (("host", 80, 0, 0, 0), "host"),
    "socket.gethostbyname": (("host",), "host"),
    "socket.gethostbyaddr": (("10.0.0.1",), "10.0.0.1"),
    "socket.getnameinfo": ((("10.0.0.1", 80),), ("10.0.0.1", 80)),
}
STARTING = {
    "subprocess.Popen": (("ls", ["ls", "-l"], None, None), "ls"),
    "os.exec": (("ls", ["ls"], None), "ls"),
    "os.fork": ((), None),
    "os.forkpty": ((), None),
    "os.posix_spawn": (("ls", ["ls"], {}), "ls"),
    "os.spawn": ((0, "ls", ["ls"], {}), "ls"),
    "os.system": (("ls -l",), "ls -l"),
    "import": (("_posixsubprocess", None, None, None, None), "_posixsubprocess"),
}
LOADING = {"ctypes.dlopen": (("other.so",), "other.so")}
EVERYTHING = REACHING | STARTING | LOADING


@pytest.mark.parametrize("event", EVERYTHING)
def test_an_event_is_refused_and_what_it_was_about_is_logged(event, hook, caplog):
    refuse = hook(lockdown.lock_down, ["ours.so"])
    arguments, what = EVERYTHING[event]
    with pytest.raises(LockdownError, match=f"^a serving process does no {event}$"):
        refuse(event, arguments)
    assert caplog.messages == [f"refused: {event} {what!r}"]


def test_what_is_neither_goes_on(hook, caplog):
    refuse = hook(lockdown.lock_down, ["ours.so", "other.so"])
    refuse("ctypes.dlopen", ("ours.so",))
    refuse("ctypes.dlopen", ("other.so",))
    refuse("import", ("json", None, None, None, None))
    refuse("socket.bind", ("a socket", ("127.0.0.1", 80)))
    refuse("open", ("file", "w", os.O_WRONLY))
    assert not caplog.messages
    with pytest.raises(LockdownError):
        refuse("ctypes.dlopen", (None,))  # the process itself, and so all that it has loaded


def test_one_program_may_be_started_where_one_is_named(hook):
    refuse = hook(lockdown.lock_down, [], program="python")
    refuse("import", ("_posixsubprocess", None, None, None, None))
    refuse("subprocess.Popen", ("python", ["python"], None, None))
    for event in EVERYTHING.keys() - {"import"}:
        with pytest.raises(LockdownError):
            refuse(event, EVERYTHING[event][0])


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC])
def test_files_are_written_only_where_they_may_be(flags, hook, caplog):
    refuse = hook(lockdown.forbid_writing, ["audit.log"])
    for path in ("audit.log", os.devnull, 7):  # 7 is a descriptor that was opened already
        refuse("open", (path, "w", flags))
    refuse("open", ("other", "r", os.O_RDONLY))
    refuse("os.remove", ("other", -1))
    assert not caplog.messages
    with pytest.raises(LockdownError, match="writes nothing but its audit log"):
        refuse("open", ("other", "w", flags))
    assert caplog.messages == ["refused: opening 'other' for writing"]
