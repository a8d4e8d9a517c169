"""The filter of system calls, run by the rules of classic BPF for every machine that it knows."""

import errno
import re
import struct
from pathlib import Path

import pytest

from marlin.server.process import seccomp

ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
# What the kernel calls the machine, its numbers of read and futex, and the header of all.
MACHINES = {
    "x86_64": (0xC000003E, (0, 202), "x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": (0xC00000B7, (63, 98), "asm-generic/unistd.h"),
}
ALWAYS = (
    "connect sendmsg sendmmsg ptrace process_vm_readv process_vm_writev bpf io_uring_setup "
    "io_uring_enter io_uring_register mount umount2 pivot_root init_module finit_module "
    "delete_module kexec_load kexec_file_load add_key request_key keyctl userfaultfd "
    "perf_event_open unshare setns reboot swapon swapoff open_by_handle_at pidfd_getfd fsopen "
    "fsmount move_mount open_tree mount_setattr"
).split()
STARTS = {"x86_64": ["execve", "execveat", "fork", "vfork"], "aarch64": ["execve", "execveat"]}
THREAD = 0x10000


@pytest.fixture(params=MACHINES)
def machine(request):
    return request.param


class Filter:
    def __init__(self, machine, may_start):
        self.architecture, self.numbers = seccomp._MACHINES[machine]
        self._program = b"".join(seccomp._filter(self.architecture, self.numbers, may_start))

    def answer(self, call, *arguments, architecture=None):
        """What becomes of a call, by its name or number."""
        number = self.numbers[call] if isinstance(call, str) else call
        arguments = (*arguments, *[0] * (6 - len(arguments)))
        data = struct.pack("=IIQ6Q", number, architecture or self.architecture, 0, *arguments)
        at = loaded = 0
        while True:
            code, if_true, if_false, value = struct.unpack_from("=HBBI", self._program, 8 * at)
            at += 1
            if code == 0x06:
                return value
            if code == 0x20:
                (loaded,) = struct.unpack_from("=I", data, value)
                continue
            holds = {0x15: loaded == value, 0x45: loaded & value != 0, 0x35: loaded >= value}[code]
            at += if_true if holds else if_false


def test_the_machine_is_what_the_kernel_calls_it(machine):
    assert seccomp._MACHINES[machine][0] == MACHINES[machine][0]


def test_the_numbers_are_those_of_the_kernels_headers(machine):
    header = Path("/usr/include", MACHINES[machine][2])
    if not header.exists():
        pytest.skip(f"no {header}")
    text = header.read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}
    numbers = seccomp._MACHINES[machine][1]
    assert {name: known.get(name) for name in numbers} == numbers
    assert numbers.keys() == {*ALWAYS, *STARTS[machine], "sendto", "clone", "clone3"}


@pytest.mark.parametrize("may_start", [True, False])
def test_what_reaches_out_or_into_others_fails_and_the_rest_is_allowed(machine, may_start):
    program = Filter(machine, may_start)
    for name in ALWAYS:
        assert program.answer(name) == FAIL | errno.EPERM, name
    for name in STARTS[machine]:
        assert program.answer(name) == (ALLOW if may_start else FAIL | errno.EPERM), name
    for number in MACHINES[machine][1]:
        assert program.answer(number) == ALLOW


def test_numbers_of_another_table_do_not_get_by(machine):
    program = Filter(machine, True)
    (other,) = {architecture for architecture, *_ in MACHINES.values()} - {program.architecture}
    assert program.answer(MACHINES[machine][1][0], architecture=other) == KILL
    for number in (0x40000000, 0x40000000 + MACHINES[machine][1][0], 0xFFFFFFFF):
        assert program.answer(number) == FAIL | errno.EPERM
    assert program.answer(0x3FFFFFFF) == ALLOW


@pytest.mark.parametrize("may_start", [True, False])
def test_sending_on_a_connection_is_allowed_and_sending_to_an_address_is_not(machine, may_start):
    program = Filter(machine, may_start)
    assert program.answer("sendto", 7, 1, 1, 1, 0, 16) == ALLOW
    for address in (1, 1 << 31, 1 << 32, 1 << 63):
        assert program.answer("sendto", 7, 1, 1, 1, address) == FAIL | errno.EPERM


def test_threads_are_started_and_processes_only_where_they_may_be(machine):
    program = Filter(machine, False)
    assert program.answer("clone3") == FAIL | errno.ENOSYS
    assert program.answer("clone", THREAD | 0x100) == ALLOW
    assert program.answer("clone", 0x100) == FAIL | errno.EPERM
    program = Filter(machine, True)
    assert [program.answer("clone3"), program.answer("clone", 0x100)] == [ALLOW, ALLOW]
