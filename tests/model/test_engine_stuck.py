"""What an engine tells about work that waits for a step."""

import pytest
from engine_fixture import TinyEngine, read
from tiny_models import random_tensors, tiny_config, write_folder

from marlin.engine.engine import Engine
from marlin.engine.sampling import SamplingParams


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def tiny(tmp_path):
    config = tiny_config(num_layers=1)
    tiny = TinyEngine(write_folder(tmp_path, config, random_tensors(config, seed=0)))
    yield tiny
    tiny.close()


@pytest.fixture
def engine(tiny, clock):
    engine = Engine(tiny.runner, (), clock=clock)
    yield engine
    tiny.runner.open()
    engine.close()


def submit(engine, num_tokens):
    return engine.submit([1, 2], SamplingParams(temperature=0.0, max_tokens=num_tokens), "a")


def waited_s(engine):
    return engine.stats().seconds_since_step


def test_an_idle_engine_waits_for_nothing(engine, clock):
    clock.now = 500.0
    assert waited_s(engine) == 0
    read(submit(engine, 1))
    clock.now = 1000.0
    assert waited_s(engine) == 0


def test_a_held_step_counts_from_the_work_s_arrival_and_then_from_the_last_step(
    engine, tiny, clock
):
    clock.now = 100.0
    tiny.runner.hold()
    request = submit(engine, 2)
    tiny.runner.next_step()
    clock.now = 130.0
    assert waited_s(engine) == 30
    tiny.runner.release()
    tiny.runner.next_step()  # the first step is done
    clock.now = 170.0
    assert waited_s(engine) == 40
    tiny.runner.open()
    read(request)
    assert waited_s(engine) == 0
