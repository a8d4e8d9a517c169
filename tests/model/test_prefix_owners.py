"""Whose computed beginnings a request may reuse: nobody can tell from an answer what another key's
requests held."""

import pytest
from tiny_models import random_tensors, random_tokens, running, tiny_config, write_folder

from marlin.engine.engine import Engine
from marlin.engine.request import FinishEvent
from marlin.engine.sampling import SamplingParams
from marlin.turns import client_of_key

PROMPT = random_tokens(70, 97, seed=1)
ANN, BOB = map(client_of_key, ("ann", "bob"))
MODES = {"batched": {"sequences": 3, "blocks": (32, 16)}, "sequential": {"context": 128}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config()
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=3))


@pytest.fixture(params=MODES)
def answer(folder, request):
    """answer(client, prefix_cache) -> (cached tokens, output) of PROMPT, and tokens computed."""
    with running(folder, **MODES[request.param]) as runner:
        engine = Engine(runner, eos_token_ids=())
        step, computed = runner.step, []

        def counted(chunks):
            computed.append(sum(chunk.num_tokens for chunk in chunks))
            return step(chunks)

        runner.step = counted

        def ask(client, prefix_cache="per-key"):
            engine.prefix_cache = prefix_cache
            computed.clear()
            params = SamplingParams(temperature=0.0, max_tokens=4)
            asked = engine.submit(PROMPT, params, "a", client)
            token_ids = []
            while not isinstance(event := asked.events.get(timeout=60), FinishEvent):
                token_ids += event.token_ids
            assert event.reason == "length"
            return asked.num_cached_tokens, sum(computed), token_ids

        yield ask
        engine._incoming.put(None)
        engine._thread.join()


def test_one_keys_prompts_are_no_oracle_for_anothers(answer):
    *anew, output = answer(ANN)
    assert anew == [0, 70 + 3]
    # What bob measures is what he would without ann: no hit, and all of the work.
    assert answer(BOB) == (*anew, output)
    cached, work, again = answer(BOB)
    assert cached >= 64 and work < 12 and again == output
    assert answer("127.0.0.1") == (*anew, output)


def test_addresses_share_what_they_computed_as_without_keys(answer):
    answer("127.0.0.1")
    assert answer("127.0.0.2")[0] >= 64


def test_an_operator_may_share_all_or_nothing(answer):
    answer(ANN, "shared")
    assert answer(BOB, "shared")[0] >= 64
    *_, output = answer(BOB, "off")
    assert answer(BOB, "off") == (0, 73, output)
