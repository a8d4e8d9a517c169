"""The parts that several server processes are made of, without processes: table, health, backoff,
the job on a pipe."""

import errno
import math
import os
import tempfile
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from marlin.config import serve_config
from marlin.engine.interface import EngineStats
from marlin.server.http.limits import Limits
from marlin.server.observe.health import Health
from marlin.server.observe.metrics import FAMILIES, Metrics, total
from marlin.server.observe.worker_table import WorkerTable
from marlin.server.process.serve import build_app
from marlin.server.process.supervisor import Backoff
from marlin.server.process.watchdog import Patience, beat
from marlin.server.process.worker import Job

STUCK_S = 60.0


@pytest.fixture
def table():
    with tempfile.TemporaryFile() as file:
        yield WorkerTable.create(os.dup(file.fileno()), 2)


class FakeClock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def model(waited_s=0.0, alive=True):
    stats = EngineStats(0, 0, seconds_since_step=waited_s)
    engine = SimpleNamespace(alive=alive, stats=lambda: stats)
    return SimpleNamespace(engine=engine, tokenizing_s=lambda: 0.0)


def value(table, name, now):
    return total(table.snapshots(now))[FAMILIES[name].start]


def test_a_board_is_read_through_another_mapping_of_its_file():
    with tempfile.TemporaryFile() as file:
        mine = WorkerTable.create(file.fileno(), 2)
        other = WorkerTable(file.fileno(), 2)
        Metrics(mine.rows[1].metrics).add(prompt_tokens_total=7)
        assert value(other, "prompt_tokens_total", 0.0) == 7


def test_what_all_workers_counted_adds_up(table):
    for row, count in zip(table.rows, (3, 4), strict=True):
        Metrics(row.metrics).add(generated_tokens_total=count)
    assert value(table, "generated_tokens_total", 0.0) == 7
    assert value(table, "workers", 0.0) == 2


def test_a_worker_that_is_gone_leaves_its_totals_and_nothing_else(table):
    clock = FakeClock()
    metrics = Metrics(table.rows[0].metrics, clock)
    metrics.add(generated_tokens_total=5)
    generating = metrics.record().generating()  # dropped, it would end
    generating.__enter__()
    clock.now += 10
    assert value(table, "requests_in_flight", clock.now) == 1
    busy_s = value(table, "busy_seconds_total", clock.now)
    table.rows[0].vacate(clock.now)
    assert value(table, "requests_in_flight", clock.now) == 0
    assert value(table, "workers", clock.now) == 0
    assert value(table, "generated_tokens_total", clock.now) == 5
    assert value(table, "busy_seconds_total", clock.now) == busy_s == 10


def test_the_next_worker_in_a_row_counts_on(table):
    Metrics(table.rows[0].metrics).add(generated_tokens_total=5)
    table.rows[0].vacate(0.0)
    Metrics(table.rows[0].metrics).add(generated_tokens_total=2)
    assert value(table, "generated_tokens_total", 0.0) == 7


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (None, True),
        (model(), True),
        (model(waited_s=STUCK_S - 1), True),
        (model(waited_s=STUCK_S), False),
        (model(alive=False), False),
    ],
)
def test_one_process_is_well_unless_its_engine_is_stuck_or_has_ended(served, expected):
    assert Health(served, STUCK_S).is_well() is expected


def test_one_worker_that_completes_steps_is_enough(table):
    clock = FakeClock()
    stuck = Health(model(waited_s=STUCK_S), STUCK_S, table.rows[0], clock)
    other = model()
    well = Health(other, STUCK_S, table.rows[1], clock)
    assert not stuck.is_well()  # the other one has not begun
    well.heartbeat()
    assert stuck.is_well() and well.is_well()
    other.engine.alive = False
    assert not well.is_well() and not stuck.is_well()


class LastBeat(BaseException):
    """Ends a beat, which else ends with its process only."""


def never(_seconds):
    """No part fails."""


def test_a_sign_of_life_that_fails_is_given_the_next_time(caplog):
    failures = [OSError(errno.EMFILE, "Too many open files")]

    def heartbeat():
        raise failures.pop() if failures else LastBeat

    app = SimpleNamespace(heartbeat=heartbeat, waited_s=lambda: 0.0, failing=never)
    with pytest.raises(LastBeat):
        beat(app, Limits(heartbeat_s=0.01))
    assert "Too many open files" in caplog.text


def beats_within(seconds, heartbeat_s):
    """How often each of what a beat calls was called in that time."""
    counts = Counter()
    end = time.monotonic() + seconds

    def call(name):
        counts[name] += 1
        if time.monotonic() > end:
            raise LastBeat
        return 0.0

    app = SimpleNamespace(
        heartbeat=lambda: call("heartbeat"), waited_s=lambda: call("look"), failing=never
    )
    with pytest.raises(LastBeat):
        beat(app, Limits(heartbeat_s=heartbeat_s), tell=lambda: call("tell"))
    return counts


def test_beats_come_one_a_pause_and_each_is_told_to_all_who_wait_for_it():
    counts = beats_within(0.3, heartbeat_s=0.02)
    assert 3 <= counts["heartbeat"] <= 16  # 15 of them, fewer where the processor is not free
    assert all(abs(counts[name] - counts["heartbeat"]) <= 1 for name in ("look", "tell"))


def test_a_process_that_fails_for_good_is_ended_once_and_beats_on_meanwhile(caplog):
    said = [None, None, "tokenizing: no threads"] + ["tokenizing: no threads"] * 3
    asked, ends = [], []

    def failing(seconds):
        asked.append(seconds)
        return said[len(asked) - 1]

    def heartbeat():
        if len(asked) == 3 and len(ends) == 1:
            raise LastBeat

    app = SimpleNamespace(waited_s=lambda: 0.0, heartbeat=heartbeat, failing=failing)
    with pytest.raises(LastBeat):
        beat(app, Limits(heartbeat_s=0.001, failing_s=7.0), finish=lambda: ends.append(len(asked)))
    assert (asked, ends) == ([7.0] * 3, [3])
    assert "cannot answer, and ends: tokenizing: no threads" in caplog.text


def test_a_worker_s_sign_of_life_is_renewed_for_as_long_as_it_serves(table):
    config = serve_config({"port": "0"}, {})
    row = table.rows[0]
    app = build_app(config, None, Limits(), row)
    alive = True

    def waited_s():
        if not alive:
            raise LastBeat
        return 0.0

    worker = SimpleNamespace(waited_s=waited_s, heartbeat=app.heartbeat, failing=never)

    def life():
        with pytest.raises(LastBeat):
            beat(worker, Limits(heartbeat_s=0.01))

    thread = threading.Thread(target=life)
    thread.start()
    for _ in range(3):
        row.vacate(time.monotonic())
        end = time.monotonic() + 10
        while not table.any_well(time.monotonic(), STUCK_S):
            assert time.monotonic() < end, "it is not renewed"
            time.sleep(0.005)
    assert row.silent_s(time.monotonic(), born=0.0, start_s=0.0) < 10
    alive = False
    thread.join(10)
    assert not thread.is_alive()


def test_a_worker_without_a_sign_of_life_or_without_a_process_does_not_count(table):
    row = table.rows[1]
    row.heartbeat(1000.0, 0.0)
    assert table.any_well(1000.0 + STUCK_S - 1, STUCK_S)
    assert not table.any_well(1000.0 + STUCK_S, STUCK_S)
    row.vacate(1001.0)
    assert not table.any_well(1001.0, STUCK_S)
    row.heartbeat(1002.0, math.inf)
    assert not table.any_well(1002.0, STUCK_S)


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_long_life():
    backoff = Backoff(first_s=0.25, most_s=2.0, reset_s=60.0)
    assert [backoff.pause_s(1.0) for _ in range(5)] == [0.25, 0.5, 1.0, 2.0, 2.0]
    assert backoff.pause_s(59.9) == 2.0
    assert [backoff.pause_s(60.0), backoff.pause_s(1.0)] == [0.25, 0.5]


@pytest.mark.parametrize("key", [None, "k\u00fcy"])
def test_a_job_comes_back_from_its_line_as_it_was(key):
    environ = {} if key is None else {"METAL_MARLIN_API_KEY": key}
    config = serve_config({"model_path": "m", "workers": "3", "timeout_s": "1.5"}, environ)
    job = Job(config, Limits(drain_s=2.5), 1, 1_700_000_000, 3, 4, 5, 6)
    line = job.encode()
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert Job.decode(line) == job


def test_what_hangs_is_counted_in_time_in_which_the_observer_ran():
    patience = Patience(100.0)
    assert [patience.look(silent_s, now) for silent_s, now in ((1.0, 101), (2.0, 102))] == [1, 2]
    assert patience.look(502.0, 602) == 4.0  # it was stopped, too
    assert patience.look(0.0, 603) == 0.0
    assert patience.look(1.0, 604) == 1.0


def test_an_engine_that_hangs_ends_its_process_and_one_that_has_ended_does_not(capfd, caplog):
    ended = threading.Event()
    waited = [math.inf] * 3 + [0.0] * 3
    app = SimpleNamespace(
        waited_s=lambda: waited.pop(0) if waited else 10.0,
        heartbeat=lambda: None,
        failing=never,
    )
    statuses = []

    def exit_process(status):
        statuses.append(status)
        ended.set()

    beat(app, Limits(heartbeat_s=0.01, hung_s=0.05), exit_process=exit_process)
    assert ended.is_set() and statuses == [1] and not waited
    assert "done nothing for 0.05 s" in caplog.text
    assert "most recent call first" in capfd.readouterr().err


def test_a_worker_is_silent_since_its_last_sign_of_life_or_its_last_step(table):
    row = table.rows[0]
    row.heartbeat(1000.0, 0.0)
    assert row.silent_s(1007.0, born=900.0, start_s=60.0) == 7.0
    row.heartbeat(1000.0, 30.0)
    assert row.silent_s(1007.0, born=900.0, start_s=60.0) == 30.0
    row.heartbeat(1000.0, math.inf)  # its engine has ended, its process not yet
    assert row.silent_s(1007.0, born=900.0, start_s=60.0) == 7.0


def test_a_worker_s_birth_is_its_first_sign_of_life_and_it_has_time_to_start(table):
    row = table.rows[0]
    seen = [row.silent_s(now, born=1000.0, start_s=60.0) for now in (1001.0, 1060.0, 1067.0)]
    assert seen == [0.0, 0.0, 7.0]


def test_a_worker_gives_way_while_its_engine_is_slow_and_another_s_is_not(table):
    clock = FakeClock()
    slow = Health(model(waited_s=6.0), STUCK_S, table.rows[0], clock, slow_s=5.0)
    other = Health(model(waited_s=1.0), STUCK_S, table.rows[1], clock, slow_s=5.0)
    assert not slow.gives_way()  # there is no other
    other.heartbeat()
    assert slow.gives_way() and not other.gives_way()
    assert not Health(model(waited_s=6.0), STUCK_S).gives_way()
