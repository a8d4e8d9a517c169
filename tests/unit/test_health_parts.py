"""Health of the parts beside the engine, on a clock of the test's own, and of answers."""

import tempfile
import threading
from types import SimpleNamespace

import pytest

from marlin.engine.interface import EngineStats
from marlin.server.observe.health import MEMORY, THREADS, Failures, Health, Shortages
from marlin.server.observe.worker_table import WorkerTable

STUCK_S = 60.0


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Panic(BaseException):
    """As PyO3's."""


class Part:
    """Returns or raises what it is told."""

    says = None

    def __call__(self):
        if isinstance(self.says, BaseException):
            raise self.says
        return self.says


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def part():
    return Part()


def model():
    stats = EngineStats(0, 0, seconds_since_step=0.0)
    engine = SimpleNamespace(alive=True, stats=lambda: stats)
    return SimpleNamespace(engine=engine, tokenizing_s=lambda: 0.0)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("it is broken", "it is broken"),
        (OSError("no such thing"), "OSError: no such thing"),
        (Panic("no pool"), "Panic: no pool"),
    ],
)
def test_a_part_that_fails_makes_the_process_unwell_until_it_works_again(clock, part, says, told):
    health = Health(model(), STUCK_S, clock=clock, parts=[lambda: None, part])
    health.look()
    assert health.is_well() and health.failing(0.0) is None
    part.says = says
    clock.now += 1
    health.look()
    assert not health.is_well() and health.failing(0.0) == told
    clock.now += 9.5
    health.look()
    assert health.failing(10.0) is None and health.failing(9.5) == told
    part.says = None
    health.look()
    assert health.is_well() and health.failing(0.0) is None
    part.says = says  # it begins anew
    clock.now += 1
    health.look()
    assert health.failing(1.0) is None


def test_parts_that_nobody_looks_at_any_more_are_not_well(clock):
    health = Health(model(), STUCK_S, clock=clock)
    clock.now += STUCK_S - 1
    assert health.is_well()
    clock.now += 1
    assert not health.is_well()
    health.look()
    assert health.is_well()


def test_an_unwell_worker_leaves_health_and_connections_to_the_others(clock, part):
    with tempfile.TemporaryFile() as file:
        table = WorkerTable.create(file.fileno(), 2)
        unwell = Health(model(), STUCK_S, table.rows[0], clock, parts=[part])
        well = Health(model(), STUCK_S, table.rows[1], clock)
        for one in (unwell, well):
            one.look()
            one.heartbeat()
        assert not unwell.gives_way()
        part.says = "it is broken"
        unwell.look()
        unwell.heartbeat()
        assert unwell.gives_way() and not well.gives_way()
        assert unwell.is_well() and well.is_well()  # any worker is enough
        table.rows[1].vacate(clock.now)
        assert not unwell.gives_way() and not unwell.is_well()


def test_internal_errors_alone_for_so_many_and_so_long_are_a_failure(clock):
    failures = Failures(3, 10.0, clock)
    failures.answered(500)
    clock.now += 9
    failures.answered(500)
    clock.now += 5
    assert failures.check() is None  # two may have been a coincidence
    failures.answered(500)
    assert failures.check() == "the last 3 answers were internal errors"


def test_many_internal_errors_at_once_may_be_one_clients_doing(clock):
    failures = Failures(3, 10.0, clock)
    for _ in range(100):
        failures.answered(500)
    clock.now += 9.9
    assert failures.check() is None
    clock.now += 0.1
    assert "the last 100 answers" in failures.check()


def test_one_success_takes_it_all_back_and_no_other_answer_does(clock):
    failures = Failures(3, 10.0, clock)
    for status in (500, 422, 503, 500, 504, "disconnected", None, 500):
        failures.answered(status)
    clock.now += 10
    assert failures.check() is not None
    failures.answered(200)
    assert failures.check() is None
    for _ in range(3):
        failures.answered(500)
    clock.now += 9.9  # counted from the first after the success
    assert failures.check() is None
    clock.now += 0.1
    assert failures.check() is not None


def test_memory_that_was_missing_is_scarce_for_a_while_and_no_reason_to_end(clock):
    shortages = Shortages(15.0, clock)
    health = Health(model(), STUCK_S, clock=clock, shortages=shortages)
    for _ in range(2):
        shortages.missed(MEMORY)
        assert (health.is_well(), health.scarce) == (False, "memory")
        clock.now += 14.0
        health.look()
        assert not health.is_well() and health.failing(0.0) is None
    clock.now += 1.0
    assert (health.is_well(), health.scarce) == (True, None)


def test_a_worker_that_lacked_memory_leaves_health_and_connections_to_the_others(clock):
    with tempfile.TemporaryFile() as file:
        table = WorkerTable.create(file.fileno(), 2)
        shortages = Shortages(15.0, clock)
        short = Health(model(), STUCK_S, table.rows[0], clock, shortages=shortages)
        other = Health(model(), STUCK_S, table.rows[1], clock)
        other.heartbeat()
        assert not short.gives_way()
        shortages.missed(MEMORY)
        assert short.gives_way() and short.is_well()  # as a whole
        other.heartbeat()
        table.rows[1].vacate(clock.now)
        assert not short.gives_way() and not short.is_well()


def test_threads_are_missing_until_one_can_be_started_and_meanwhile_that_may_end_it(
    clock, monkeypatch
):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    shortages = Shortages(15.0, clock)
    health = Health(model(), STUCK_S, clock=clock, parts=[shortages.threads], shortages=shortages)
    health.look()
    assert health.is_well()
    shortages.missed(THREADS)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        health.look()
        clock.now += 20
        health.look()
        assert (health.is_well(), health.scarce) == (False, "threads")
        assert health.failing(20.0) == "RuntimeError: can't start new thread"
    health.look()
    assert health.is_well() and health.failing(0.0) is None
