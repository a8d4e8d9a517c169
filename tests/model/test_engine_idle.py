"""What an engine without work does for its device: it keeps the memory resident, for a while."""

import queue
from types import SimpleNamespace

import pytest
from engine_fixture import TIMEOUT_S, TinyEngine, read
from tiny_models import random_tensors, tiny_config, write_folder

from marlin.engine import engine as engine_module
from marlin.engine.engine import Engine
from marlin.engine.sampling import SamplingParams


class IdleRunner:
    """A runner whose device notes when it is told to keep its memory, and lets time go by."""

    def __init__(self, runner):
        self._runner = runner
        self.now = 0.0
        self.told_at = queue.SimpleQueue()
        self.device = SimpleNamespace(keep_resident=self._told, close=lambda: None)

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def close(self):
        pass

    def _told(self):
        self.told_at.put(self.now)
        self.now += 50.0


@pytest.fixture
def tiny(tmp_path):
    config = tiny_config(num_layers=1)
    tiny = TinyEngine(write_folder(tmp_path, config, random_tensors(config, seed=0)))
    yield tiny
    tiny.close()


@pytest.fixture
def runner(tiny):
    return IdleRunner(tiny.runner)


@pytest.fixture
def engine(runner, monkeypatch):
    monkeypatch.setattr(engine_module, "RESIDENCY_INTERVAL_S", 0.01)
    engine = Engine(runner, (), clock=lambda: runner.now)
    yield engine
    engine.close()


def generate(engine):
    read(engine.submit([1, 2], SamplingParams(temperature=0.0, max_tokens=2), "a"))


def told(runner, count):
    """When the device was told, as many times as that; then never again within 20 intervals."""
    times = [runner.told_at.get(timeout=TIMEOUT_S) for _ in range(count)]
    with pytest.raises(queue.Empty):
        runner.told_at.get(timeout=0.2)
    return times


def test_memory_is_kept_resident_until_180_seconds_after_the_last_step(engine, runner):
    generate(engine)
    assert told(runner, 4) == [0, 50, 100, 150]
    runner.now = 1000.0
    generate(engine)
    assert told(runner, 4) == [1000, 1050, 1100, 1150]


def test_an_engine_that_has_not_stepped_yet_leaves_the_device_alone(engine, runner):
    assert told(runner, 0) == []


def test_closing_does_not_wait_for_the_time_to_pass(engine, runner):
    runner.device.keep_resident = lambda: runner.told_at.put(None)  # time stands still
    generate(engine)
    runner.told_at.get(timeout=TIMEOUT_S)
    engine.close()
    assert not engine.alive


def test_files_are_looked_at_once_a_second_however_many_steps_there_are(runner):
    now, looked = [5.0], []
    engine = Engine(runner, (), check_files=lambda: looked.append(now[0]), clock=lambda: now[0])
    try:
        for now[0] in (5.0, 5.9, 6.0, 6.5, 6.9, 9.0, 9.9, 10.0):
            generate(engine)
    finally:
        engine.close()
    assert looked == [6.0, 9.0, 10.0]


def test_an_engine_is_alive_until_it_is_closed(runner):
    engine = Engine(runner, ())
    assert engine.alive
    engine.close()
    assert not engine.alive
