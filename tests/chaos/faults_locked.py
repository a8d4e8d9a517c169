"""A server in lock-down, to which everything happens for a long time: its workers are killed, its
files and its clock are changed, its audit log's disk is full, clients misbehave.
"""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from itertools import count

import judge
import pytest
from arena import fault
from faults_clients import resident_mb, what_it_holds
from faults_system import INJECTED
from victim import until

from marlin.files.manifest import make_manifest
from marlin.server.process import seccomp

_SHORT_S = 40  # each kind of fault twice
_DAY_S = 24 * 3600
_GARBAGE = (b"\x16\x03\x01\x02\x00", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n",
            b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")  # fmt: skip


@fault("lock-down", modes=("workers, batching",), may_lose=True)
def everything_at_once_in_lock_down(arena):
    soak(arena, _SHORT_S)


def soak(arena, seconds):
    """Nothing is wrong, nothing lost but what a killed worker had in hand, nothing grows, and the
    audit logs verify.

    Args:
        arena: of two workers.
        seconds: how long; each kind of fault comes twice at least.
    """
    if (why := seccomp.why_not()) is not None:
        pytest.skip(f"no filter of system calls: {why}")
    victim, model, key = _locked(arena)
    held, end = [], time.monotonic() + seconds
    for turn in count():
        act, lost = _ACTS[turn % len(_ACTS)], arena.tally[judge.LOST]
        with arena.load(victim, num_clients=2):  # each load may lose what a killed one had in hand
            act(arena, victim, model)
            time.sleep(1)
            arena.injected()
        assert act is _kill or arena.tally[judge.LOST] == lost, f"lost at {act.__name__}"
        until(lambda: victim.health() == 200 and len(victim.workers()) == 2, "it is whole again")
        held.append([*what_it_holds(victim), resident_mb(victim)])
        if time.monotonic() >= end and turn >= 2 * len(_ACTS) - 1:
            break
    arena.serves(victim)
    first, last = held[len(held) // 4], held[-1]
    arena.tally.notes[f"descriptors, threads, MB: {first} after a quarter, {last} at the end"] += 1
    assert last[0] <= first[0] + 8 and last[1] <= first[1] + 8 and last[2] <= first[2] + 64
    victim.process.terminate()
    arena.ends(victim, {0})
    for log in sorted(arena.folder.glob("audit.jsonl.*")):
        _verify(log, key)


def _locked(arena):
    model, key = arena.folder / f"{judge.MODEL}.gguf", arena.folder / "audit.key"
    shutil.copy(arena.model, model)
    manifest = arena.folder / "manifest.json"
    manifest.write_text(make_manifest(str(model)).encode())
    key.write_text("0123456789abcdef" * 4)
    key.chmod(0o600)
    words = ("--manifest", manifest, "--audit-log", arena.folder / "audit.jsonl")
    words += ("--audit-key-file", key, "--lock-down")
    environ = {"METAL_MARLIN_API_KEY": judge.KEY, "PYTHONPATH": INJECTED}
    environ["CLOCK_STEPS"] = str(arena.folder / "steps")
    return arena.start(*map(str, words), model=model, environ=environ), model, key


def _kill(arena, victim, _model):
    victim.signal(9, victim.workers()[0])
    until(lambda: len(victim.workers()) == 2, "it is replaced", log=victim.log)


def _change_files(_arena, _victim, model):
    """What is served is a sealed copy; nobody looks at these any more."""
    with open(model, "r+b") as file:
        file.write(os.urandom(4096))
        file.seek(-4096, os.SEEK_END)
        file.write(os.urandom(4096))


def _step_clock(arena, _victim, _model):
    for seconds in (-2 * 365 * _DAY_S, 10 * 365 * _DAY_S, -_DAY_S, 0):
        (arena.folder / "steps").write_text(str(seconds))
        time.sleep(0.2)


def _fill_disk(_arena, victim, _model):
    """No file can grow: no request can be recorded, and none is answered until one can."""
    for pid in victim.workers():
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    time.sleep(1)
    for pid in victim.workers():
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def _babble(_arena, victim, _model):
    clients = [socket.create_connection(("127.0.0.1", victim.port)) for _ in range(40)]
    for client, garbage in zip(clients, _GARBAGE * 10, strict=True):
        client.sendall(garbage)
    time.sleep(0.5)
    for client in clients:
        client.close()


_ACTS = (_kill, _change_files, _step_clock, _fill_disk, _babble)


def _verify(log, key):
    """What killed workers left open is told, and everything else is whole."""
    words = [sys.executable, "-m", "marlin", "audit", "verify", log, "--audit-key-file", key]
    words.append("--unclosed")  # workers that were killed
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "close"
