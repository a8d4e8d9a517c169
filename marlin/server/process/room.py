"""How many connections a process has room for: each takes a file descriptor and a thread, and some
of both are kept for what is no connection.

Reads the system's limits; knows nothing of the server but its Limits.
"""

import logging
import os
import resource
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from marlin.device.device import usable_cores
from marlin.errors import ConfigError
from marlin.server.http.limits import Limits
from marlin.server.http.listener import ConnectionThread

_log = logging.getLogger("marlin.server")
# Threads of a process that are no connection's: the device's and the tokenizer's, one a core each;
# and the engine, the log, signs of life, signals, with some to spare.
_THREADS_A_CORE, _OTHER_THREADS = 2, 16


def fitted(limits: Limits, num_processes: int = 1, root: Path = Path("/")) -> Limits:
    """Limits with as many connections as there is room for, of which a warning tells.

    Args:
        num_processes: that serve, and share the threads.
        root: where /proc and /sys are.

    Raises:
        ConfigError: there is no room for any.
    """
    descriptors = _descriptors(limits)
    rooms = [(descriptors - limits.num_own_descriptors, f"{descriptors} file descriptors")]
    own_threads = _THREADS_A_CORE * usable_cores() + _OTHER_THREADS
    for free, why in _free_threads(root):
        rooms.append((free // num_processes - own_threads, f"{free} threads ({why})"))
    room, why = min(rooms)
    num_connections = min(limits.num_connections, room - limits.num_extra_connections)
    if num_connections < 1:
        short = 1 - num_connections
        raise ConfigError(f"{why} leave no room for any connection: {short} too few")
    if num_connections < limits.num_connections:
        _log.warning(
            "connections are limited to %d instead of %d by %s",
            *(num_connections, limits.num_connections, why),
        )
    return replace(limits, num_connections=num_connections)


def check_threads(limits: Limits) -> None:
    """The fewest connections that a server may have get their threads, all at once.

    No limit tells beforehand how many stacks memory has room for.

    Raises:
        RuntimeError: the system's own, where they do not.
    """
    over, threads = threading.Event(), []
    try:
        for _ in range(1 + limits.num_extra_connections):
            thread = ConnectionThread(over.wait)
            thread.start()
            threads.append(thread)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _descriptors(limits):
    """How many this process may have, once it has asked for what it wants."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.num_connections + limits.num_extra_connections + limits.num_own_descriptors
    soft, hard = (wanted if n == resource.RLIM_INFINITY else n for n in (soft, hard))
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    except (ValueError, OSError) as error:
        _log.warning("file descriptors stay limited to %d: %s", soft, error)
        return soft
    return min(wanted, hard)


def _free_threads(root: Path) -> Iterator[tuple[int, str]]:
    """(threads that may still be started, by what limit), for each limit that there is."""
    if sys.platform != "linux":  # elsewhere RLIMIT_NPROC counts processes
        return
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if most != resource.RLIM_INFINITY and os.getuid() != 0:  # root has none
        yield max(0, most - _threads_of(os.getuid(), root)), "RLIMIT_NPROC"
    for folder in _cgroups(root):
        try:
            limit = (folder / "pids.max").read_text(encoding="ascii").strip()
            current = int((folder / "pids.current").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            yield max(0, int(limit) - current), "pids.max"


def _threads_of(uid, root):
    """Threads of all processes of a user, which RLIMIT_NPROC counts. Source: proc(5)."""
    count = 0
    for entry in os.scandir(root / "proc"):
        try:
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += os.stat(f"{entry.path}/task").st_nlink - 2
        except OSError:  # it has ended
            continue
    return count


def _cgroups(root):
    """Folders of the cgroups that this process is in, of version 2 or of version 1's pids.

    Source: cgroups(7); what a limit above allows counts as well.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" or controllers == "pids":
            top = root / "sys/fs/cgroup" / controllers
            own = top / path.lstrip("/")
            yield from [own, *(above for above in own.parents if above.is_relative_to(top))]
