"""Many requests over one paged cache give each what it gets alone."""

import pytest
from tiny_models import (
    INSTRUCTION_SETS,
    random_tensors,
    random_tokens,
    running,
    tiny_config,
    write_folder,
)

from marlin.engine.engine import Engine
from marlin.engine.request import FinishEvent
from marlin.engine.sampling import SamplingParams

WAIT_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config()
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=5))


def collect(request):
    """Output token ids of a request that must end at its length."""
    token_ids = []
    while not isinstance(event := request.events.get(timeout=WAIT_S), FinishEvent):
        token_ids += event.token_ids
    assert event.reason == "length", event
    return token_ids


def outputs(runner, prompts, max_tokens):
    """Outputs of sampled requests submitted together; each has its own seed."""
    engine = Engine(runner, eos_token_ids=())
    requests = [
        engine.submit(
            prompt, SamplingParams(temperature=1.0, seed=i, max_tokens=max_tokens), f"r{i}"
        )
        for i, prompt in enumerate(prompts)
    ]
    results = [collect(request) for request in requests]
    stats = engine.stats()
    assert stats.num_free_kv_blocks == stats.num_kv_blocks, "blocks were not given back"
    assert stats.num_running == stats.num_waiting == 0
    return results


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize(
    "num_blocks", [64, 9], ids=["room-for-all", "a-pool-so-small-that-requests-are-preempted"]
)
def test_sampled_tokens_are_those_of_each_request_alone(folder, isa, num_blocks):
    prompts = [random_tokens(count, 97, seed=count) for count in (1, 2, 15, 16, 17, 33, 60, 100)]
    with running(folder, isa=isa, context=160) as runner:
        alone = outputs(runner, prompts, max_tokens=24)
    with running(folder, isa=isa, sequences=8, blocks=(num_blocks, 16)) as runner:
        together = outputs(runner, prompts, max_tokens=24)
    assert together == alone


def test_more_requests_than_places_are_answered_as_each_is_alone(folder):
    prompts = [random_tokens(5, 97, seed=seed) for seed in range(20)]
    with running(folder) as runner:
        alone = outputs(runner, prompts, max_tokens=6)
    with running(folder, sequences=3, blocks=(12, 16)) as runner:
        assert outputs(runner, prompts, max_tokens=6) == alone
    assert [len(token_ids) for token_ids in alone] == [6] * 20


def test_a_prefix_hit_changes_no_token(folder):
    shared = random_tokens(40, 97, seed=1)
    prompts = [[*shared, *random_tokens(count, 97, seed=count)] for count in (1, 7, 8, 9, 30)]
    with running(folder, context=160) as runner:
        alone = outputs(runner, prompts, max_tokens=12)
    with running(folder, sequences=5, blocks=(40, 16)) as runner:
        engine = Engine(runner, eos_token_ids=())
        for _ in range(2):
            requests = [
                engine.submit(
                    prompt, SamplingParams(temperature=1.0, seed=i, max_tokens=12), f"r{i}"
                )
                for i, prompt in enumerate(prompts)
            ]
            assert [collect(request) for request in requests] == alone
        # 40 shared tokens are two full blocks of 16; the second round finds all full blocks.
        assert [request.num_cached_tokens for request in requests] == [32, 32, 32, 48, 64]
        engine.close()
