"""A filter of system calls that this process, and all it starts, can never take off again (Linux).

Where the audit hook of lockdown.py stops Python, this stops native code as well. What is refused
fails with EPERM, as a mistake would. Sources: seccomp(2), linux/filter.h, linux/seccomp.h, and the
kernel's tables of system calls.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

from marlin.errors import ConfigError

# By machine: what the kernel calls it, and its numbers in the order of _REFUSED, then of _STARTING,
# then those of sendto, clone and clone3.
_REFUSED = (
    *("connect", "sendmsg", "sendmmsg", "ptrace", "process_vm_readv", "process_vm_writev"),
    *("bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "mount", "umount2"),
    *("pivot_root", "init_module", "finit_module", "delete_module", "kexec_load"),
    *("kexec_file_load", "add_key", "request_key", "keyctl", "userfaultfd", "perf_event_open"),
    *("unshare", "setns", "reboot", "swapon", "swapoff", "open_by_handle_at", "pidfd_getfd"),
    *("fsopen", "fsmount", "move_mount", "open_tree", "mount_setattr"),
)
_STARTING = ("execve", "execveat", "fork", "vfork")
_OLD = ("fork", "vfork")  # which newer machines do not have
_NEW = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435}
_NEW |= {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432}
_NEW |= {"pidfd_getfd": 438, "mount_setattr": 442}
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {
            **{"connect": 42, "sendmsg": 46, "sendmmsg": 307, "ptrace": 101, "sendto": 44},
            **{"process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "mount": 165},
            **{"umount2": 166, "pivot_root": 155, "init_module": 175, "finit_module": 313},
            **{"delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "add_key": 248},
            **{"request_key": 249, "keyctl": 250, "userfaultfd": 323, "perf_event_open": 298},
            **{"unshare": 272, "setns": 308, "reboot": 169, "swapon": 167, "swapoff": 168},
            **{"open_by_handle_at": 304, "execve": 59, "execveat": 322, "fork": 57, "vfork": 58},
            **{"clone": 56, **_NEW},
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            **{"connect": 203, "sendmsg": 211, "sendmmsg": 269, "ptrace": 117, "sendto": 206},
            **{"process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "mount": 40},
            **{"umount2": 39, "pivot_root": 41, "init_module": 105, "finit_module": 273},
            **{"delete_module": 106, "kexec_load": 104, "kexec_file_load": 294, "add_key": 217},
            **{"request_key": 218, "keyctl": 219, "userfaultfd": 282, "perf_event_open": 241},
            **{"unshare": 97, "setns": 268, "reboot": 142, "swapon": 224, "swapoff": 225},
            **{"open_by_handle_at": 265, "execve": 221, "execveat": 281, "clone": 220, **_NEW},
        },
    ),
}
# Offsets of struct seccomp_data, and what of BPF is used here.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000  # a second table of calls on x86-64
_CLONE_THREAD = 0x10000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_GET_SECCOMP, _MODE_FILTER = 38, 22, 21, 2


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def why_not() -> str | None:
    """Why there is no such filter here; None where there is."""
    if sys.platform != "linux":
        return f"{sys.platform} has none"
    if platform.machine() not in _MACHINES:
        return f"its calls on {platform.machine()} are not in our table"
    if ctypes.CDLL(None).prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return "this kernel was built without it"
    return None


def install(may_start: bool) -> None:
    """Refuse from now on, in this thread and whatever it starts: reaching out, looking into other
    processes, changing what is mounted, loading code into the kernel.

    Call it while this is the only thread.

    Args:
        may_start: processes may be started, which the filter goes on to.

    Raises:
        ConfigError: the system refuses the filter.
    """
    architecture, numbers = _MACHINES[platform.machine()]
    program = b"".join(_filter(architecture, numbers, may_start))
    libc = ctypes.CDLL(None, use_errno=True)
    described = _Program(len(program) // 8, program)
    failed = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(described), 0, 0
    )
    if failed:
        raise ConfigError(f"the filter of system calls: {os.strerror(ctypes.get_errno())}")


def _filter(architecture, numbers, may_start):
    """Instructions, each 8 bytes. A jump's offset counts those behind it that are skipped."""
    names = _REFUSED if may_start else _REFUSED + _STARTING
    refused = [numbers[name] for name in names if name in numbers or name not in _OLD]
    fail = _instruction(_RETURN, _FAIL | errno.EPERM)
    yield _instruction(_LOAD, _ARCH)
    yield _instruction(_JUMP_EQUAL, architecture, 1, 0)
    yield _instruction(_RETURN, _KILL)
    yield _instruction(_LOAD, _NUMBER)
    yield _instruction(_JUMP_AT_LEAST, _X32, 0, 1)
    yield fail
    for number in refused:
        yield _instruction(_JUMP_EQUAL, number, 0, 1)
        yield fail
    # An address makes of sending on a connection a way out: both halves of the pointer.
    yield _instruction(_JUMP_EQUAL, numbers["sendto"], 0, 5)
    yield _instruction(_LOAD, _ARGUMENTS + 8 * 4)
    yield _instruction(_JUMP_EQUAL, 0, 0, 2)
    yield _instruction(_LOAD, _ARGUMENTS + 8 * 4 + 4)
    yield _instruction(_JUMP_EQUAL, 0, 1, 0)
    yield fail
    yield _instruction(_LOAD, _NUMBER)
    if not may_start:
        # Its flags lie in memory, where no filter sees them: the C library does without.
        yield _instruction(_JUMP_EQUAL, numbers["clone3"], 0, 1)
        yield _instruction(_RETURN, _FAIL | errno.ENOSYS)
        yield _instruction(_JUMP_EQUAL, numbers["clone"], 0, 3)
        yield _instruction(_LOAD, _ARGUMENTS)
        yield _instruction(_JUMP_SET, _CLONE_THREAD, 1, 0)
        yield fail
    yield _instruction(_RETURN, _ALLOW)


def _instruction(code, value, if_true=0, if_false=0):
    return struct.pack("=HBBI", code, if_true, if_false, value)
