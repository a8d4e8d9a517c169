"""Signals to each process of a server, at every moment from its start to its end, and engines that
hang."""

import os
import signal
import time
from pathlib import Path

from arena import fault
from served import ROOT
from victim import until

# On PYTHONPATH of processes in which injected/sitecustomize.py is to act.
INJECTED = f"{Path(__file__).parent / 'injected'}:{ROOT}"
# The server's times, shorter: what hangs is to be replaced within a test.
SHORT = """
import sys
from marlin.server.http.limits import Limits
from marlin.server.process import serve, supervisor
short = Limits(hung_s=1.5, stuck_s=1.0, slow_s=0.5, abort_s=0.5, drain_s=4.0, stop_s=2.0)
serve.Limits = supervisor.Limits = lambda: short
from marlin.__main__ import main
sys.exit(main())
"""
BEGUN = """
import os, sys
os.write(2, b"begun\\n")
from marlin.__main__ import main
sys.exit(main())
"""
# From an interpreter's first instruction until the server answers, which takes about a second.
MOMENTS_S = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5)
ALL = ("one", "batching", "workers", "workers, batching")
WITH_WORKERS = ("workers", "workers, batching")
REPLACED_S = 20


def _replaced(victim, pid):
    until(lambda: pid not in victim.workers() and len(victim.workers()) == 2, "it is replaced")


def _end_a_worker(arena, signum):
    victim = arena.start()
    with arena.load(victim):
        pid = victim.workers()[0]
        victim.signal(signum, pid)
        arena.injected()
        _replaced(victim, pid)
    arena.serves(victim)
    assert f"(process {pid}) was ended by signal {int(signum)}" in victim.log()


@fault("signals", modes=WITH_WORKERS, quick=("workers, batching",), may_lose=True)
def a_worker_is_killed(arena):
    _end_a_worker(arena, signal.SIGKILL)


@fault("signals", modes=WITH_WORKERS, may_lose=True)
def a_worker_has_a_segmentation_fault(arena):
    _end_a_worker(arena, signal.SIGSEGV)


@fault("signals", modes=WITH_WORKERS, may_lose=True)
def a_worker_aborts(arena):
    _end_a_worker(arena, signal.SIGABRT)


@fault("signals", modes=WITH_WORKERS, may_lose=True)
def a_worker_is_told_to_hang_up(arena):
    _end_a_worker(arena, signal.SIGHUP)


@fault("signals", modes=WITH_WORKERS)
def a_worker_is_told_to_stop_and_drains(arena):
    victim = arena.start()
    with arena.load(victim):
        for signum in (signal.SIGTERM, signal.SIGINT):
            pid = victim.workers()[0]
            victim.signal(signum, pid)
            arena.injected()
            _replaced(victim, pid)
    arena.serves(victim)


@fault("signals", modes=ALL)
def a_process_is_stopped_and_continued(arena):
    victim = arena.start()
    with arena.load(victim):
        for pid in victim.pids():
            victim.signal(signal.SIGSTOP, pid)
            arena.injected()
            time.sleep(1.0)
            victim.signal(signal.SIGCONT, pid)
            time.sleep(0.3)
    arena.serves(victim)


@fault("signals", modes=ALL)
def signals_that_mean_nothing_to_a_server(arena):
    victim = arena.start()
    with arena.load(victim):
        for signum in (signal.SIGPIPE, signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG):
            for pid in victim.pids():
                victim.signal(signum, pid)
                arena.injected()
    arena.serves(victim)


@fault("signals", modes=ALL, quick=("workers",))
def a_server_is_told_to_stop_in_mid_stream(arena):
    _stop(arena, signal.SIGTERM)


@fault("signals", modes=ALL)
def a_server_is_interrupted_in_mid_stream(arena):
    _stop(arena, signal.SIGINT)


def _stop(arena, signum):
    """All streams are whole: they take less than the grace period."""
    victim = arena.start()
    with arena.load(victim):
        victim.signal(signum)
        arena.injected()
    arena.ends(victim, {0}, says="stopping")


@fault("signals", modes=ALL, may_lose=True)
def a_second_signal_in_mid_stream(arena):
    victim = arena.start(program=SHORT, environ=_hangs(arena))
    with arena.load(victim):
        _hang(arena)
        for signum in (signal.SIGTERM, signal.SIGTERM):
            victim.signal(signum)
            arena.injected()
            time.sleep(0.5)
        arena.ends(victim, {143}, 2)


@fault("signals", modes=ALL, may_lose=True)
def a_server_is_killed(arena):
    """Workers end what they have in hand, one process loses it; the port is free either way."""
    for signum in (signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP):
        victim = arena.start()
        with arena.load(victim):
            victim.signal(signum)
            arena.injected()
        arena.ends(victim, {-signum})


@fault("signals", modes=WITH_WORKERS)
def a_supervisor_is_killed_while_it_and_a_worker_are_stopped(arena):
    victim = arena.start(program=SHORT)
    for pid in (victim.workers()[0], victim.process.pid):
        victim.signal(signal.SIGSTOP, pid)
        arena.injected()
    victim.signal(signal.SIGKILL)
    arena.injected()
    arena.ends(victim, {-signal.SIGKILL}, 12)


@fault("signals", modes=WITH_WORKERS)
def a_supervisor_is_stopped_while_its_workers_serve_on(arena):
    victim = arena.start()
    with arena.load(victim):
        victim.signal(signal.SIGSTOP)
        arena.injected()
        time.sleep(3)
    arena.serves(victim)
    victim.signal(signal.SIGCONT)
    arena.serves(victim)
    victim.signal(signal.SIGTERM)
    arena.ends(victim, {0})


def _at_every_moment(arena, signum, codes):
    for moment_s in MOMENTS_S:
        victim = arena.begin(program=BEGUN)
        if signum == signal.SIGINT:
            # Before it, the interpreter itself is interrupted, and tells of that in its own way.
            until(lambda victim=victim: "begun" in victim.log(), "its program begins")
        time.sleep(moment_s)
        victim.signal(signum)
        arena.injected()
        code = victim.wait_for_end(10)
        log = victim.log()
        assert code in codes and "Traceback" not in log, f"{moment_s} s: {code}: {log}"


@fault("start", modes=("one", "workers"))
def told_to_stop_while_it_starts(arena):
    _at_every_moment(arena, signal.SIGTERM, {0, -signal.SIGTERM})


@fault("start", modes=("one", "workers"))
def interrupted_while_it_starts(arena):
    _at_every_moment(arena, signal.SIGINT, {0, 130, -signal.SIGINT})


@fault("start", modes=("one", "workers"))
def killed_while_it_starts(arena):
    _at_every_moment(arena, signal.SIGKILL, {-signal.SIGKILL})


@fault("start", modes=("workers",))
def what_loads_the_weights_is_killed_or_stopped(arena):
    for signum, codes in ((signal.SIGKILL, {1}), (signal.SIGSTOP, {0, 143})):
        victim = arena.begin()
        pid = until(victim.workers, "it starts a process")[0]
        victim.signal(signum, pid)
        arena.injected()
        if signum == signal.SIGSTOP:
            time.sleep(0.5)
            victim.signal(signal.SIGTERM)
        arena.ends(victim, codes, 10)


def _hangs(arena):
    return {"PYTHONPATH": INJECTED, "ENGINE_HANGS": str(arena.folder / "hangs")}


def _hang(arena, pid=""):
    (arena.folder / "new").write_text(str(pid))
    os.replace(arena.folder / "new", arena.folder / "hangs")
    arena.injected()


@fault("hung engine", modes=("one", "batching"), may_lose=True)
def an_engine_hangs_and_its_process_ends(arena):
    victim = arena.start(program=SHORT, environ=_hangs(arena))
    with arena.load(victim):
        _hang(arena)
        until(lambda: victim.health() != 200, "/health tells of it", 5)
        arena.ends(victim, {1}, 15, says="has done nothing for")


@fault("hung engine", modes=WITH_WORKERS, quick=("workers",), may_lose=True)
def an_engine_hangs_and_its_worker_is_replaced(arena):
    victim = arena.start(program=SHORT, environ=_hangs(arena))
    with arena.load(victim):
        pid = victim.workers()[0]
        _hang(arena, pid)
        _replaced(victim, pid)
    arena.serves(victim)
    assert f"(process {pid}) hangs" in victim.log() and "Thread 0x" in victim.log()


@fault("hung engine", modes=WITH_WORKERS, may_lose=True)
def a_worker_is_stopped_for_good(arena):
    victim = arena.start(program=SHORT)
    with arena.load(victim):
        pid = victim.workers()[0]
        victim.signal(signal.SIGSTOP, pid)
        arena.injected()
        _replaced(victim, pid)
    arena.serves(victim)


@fault("hung engine", modes=WITH_WORKERS, may_lose=True)
def a_supervisor_dies_while_an_engine_hangs(arena):
    victim = arena.start(program=SHORT, environ=_hangs(arena))
    with arena.load(victim):
        _hang(arena)
        victim.signal(signal.SIGKILL)
        arena.injected()
    arena.ends(victim, {-signal.SIGKILL}, 15)
