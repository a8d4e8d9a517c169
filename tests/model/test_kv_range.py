"""Keys and values that a float16 cache cannot hold are counted and end their request, and no other;
a float32 cache holds them.

A feature that one token alone has makes a value of its first layer 2^17 times larger, and the
output matrix takes as much back: both models are one and the same in exact numbers.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from engine_fixture import read
from tiny_models import random_tensors, random_tokens, running, tiny_config, write_folder
from vocabularies import byte_level_metadata, hugging_face_backend

from marlin.engine import engine as engine_module
from marlin.engine.batch import Batch
from marlin.engine.draft import Drafter
from marlin.engine.engine import Engine
from marlin.engine.load import load_model
from marlin.engine.sampling import SamplingParams
from marlin.errors import KvRangeError

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BIG_TOKEN, FEATURE, SCALE = 96, 5, 2.0**17
PROMPTS = [random_tokens(count, BIG_TOKEN, seed=count) for count in (20, 33, 60)]
MODES = {"one": {"context": 160}, "batch": {"sequences": 4, "blocks": (40, 16)}}
BATCH = MODES["batch"]


def write_model(folder, scale, **sizes):
    config = tiny_config(**sizes)
    tensors = random_tensors(config, seed=3)
    tensors["model.embed_tokens.weight"][:, FEATURE] = 0
    tensors["model.embed_tokens.weight"][BIG_TOKEN, FEATURE] = 50
    name = "model.layers.0.self_attn.{}_proj.weight".format
    tensors[name("v")][0] *= scale
    tensors[name("v")][0, FEATURE] = scale
    heads = np.arange(4).reshape(2, 2)[0] * config.head_dim  # that read the first KV head
    tensors[name("v")][0, :FEATURE] = tensors[name("v")][0, FEATURE + 1 :] = 0
    tensors[name("o")][:, heads] /= scale
    return write_folder(folder, config, tensors)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("large"), SCALE)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("usual"), 1.0)


@contextmanager
def serving(path, **options):
    with running(path, **options) as runner:
        engine = Engine(runner, eos_token_ids=(0,))
        try:
            yield engine
        finally:
            engine.close()


def submit(engine, prompt, bias=-100.0, **params):
    params = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True} | params
    biased = SamplingParams(**params, logit_bias=((BIG_TOKEN, bias),))
    return engine.submit(prompt, biased, "r")


def answers(engine, prompts, **params):
    requests = [submit(engine, prompt, **params) for prompt in prompts]
    return [read(request) for request in requests]


def assert_ended(answer, token_ids=()):
    found, finish = answer
    assert found == list(token_ids) and finish.reason == "error"
    assert isinstance(finish.error, KvRangeError)
    assert "65504" in finish.error.message and "--kv-cache-dtype float32" in finish.error.message


@pytest.mark.parametrize("mode", MODES)
def test_what_the_cache_cannot_hold_ends_its_request_and_leaves_the_others_their_bits(large, mode):
    bad = [[*prompt[:17], BIG_TOKEN, *prompt[17:]] for prompt in PROMPTS]
    mixed = [prompt for pair in zip(bad, PROMPTS, strict=True) for prompt in pair]
    with serving(large, **MODES[mode]) as engine:
        plain = answers(engine, PROMPTS, num_logprobs=2)
        assert [len(token_ids) for token_ids, _ in plain] == [20] * 3
    with serving(large, **MODES[mode]) as engine:
        for _ in range(2):  # what the first round left in the cache is found by the second
            requests = [submit(engine, prompt, num_logprobs=2) for prompt in mixed]
            found = [read(request) for request in requests]
            assert found[1::2] == plain
            assert [request.num_beyond_tokens for request in requests] == [1, 0] * 3
            for answer in found[::2]:
                assert_ended(answer)
        stats = engine.stats()
    assert stats.num_free_kv_blocks == stats.num_kv_blocks


def test_a_preempted_request_ends_alike(large):
    """Blocks for two of the three requests, so that the youngest is computed anew."""
    blocks = {"sequences": 3, "blocks": (10, 16)}
    prompts = [prompt[:20] for prompt in PROMPTS]
    with serving(large, **BATCH) as engine:
        plain = answers(engine, prompts[:2], max_tokens=60)
    with serving(large, **blocks) as engine:
        requests = [submit(engine, prompt, max_tokens=60) for prompt in prompts[:2]]
        requests.append(submit(engine, prompts[2], bias=100.0, max_tokens=60))
        found = [read(request) for request in requests]
    assert found[:2] == plain
    assert_ended(found[2], [BIG_TOKEN])


def test_an_answer_keeps_the_tokens_before_the_one_that_could_not_be_held(large):
    with serving(large, context=160) as engine:
        request = submit(engine, PROMPTS[0], bias=100.0)
        assert_ended(read(request), [BIG_TOKEN])
        again = submit(engine, PROMPTS[0])
        assert read(again)[1].reason == "length"


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_guess_that_the_cache_cannot_hold_changes_nothing(large, mode, monkeypatch):
    with serving(large, **MODES[mode]) as engine:
        plain = answers(engine, PROMPTS)

    num_drafts = []

    class BigDrafter(Drafter):
        def propose(self, request, num_step_rows):
            self._matched_length = 3
            limit = self._max_num_tokens - request.num_tokens - 1
            return [BIG_TOKEN, 1][: max(0, limit)]

        def observe(self, num_drafted, num_accepted):
            num_drafts.append(num_drafted)
            super().observe(num_drafted, num_accepted)

    monkeypatch.setattr(engine_module, "Drafter", BigDrafter)
    with serving(large, drafts=16, **MODES[mode]) as engine:
        assert answers(engine, PROMPTS) == plain
        assert sum(num_drafts) > 0


def test_right_guesses_count_and_wrong_ones_do_not():
    beyond = np.array([0, 1, 0, 1, 1, 0, 1], np.int32)
    chunks = [
        SimpleNamespace(num_tokens=2, draft_token_ids=()),
        SimpleNamespace(num_tokens=1, draft_token_ids=(7, 8)),
        SimpleNamespace(num_tokens=1, draft_token_ids=(9,)),
    ]
    batch = SimpleNamespace(_beyond=beyond)
    assert Batch.count_beyond(batch, chunks, [0, 0, 0]) == [1, 0, 0]
    assert Batch.count_beyond(batch, chunks, [0, 1, 1]) == [1, 1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_of_floats_gives_the_bits_of_the_same_model_in_small_numbers(large, usual, mode):
    prompts = [[*prompt[:17], BIG_TOKEN, *prompt[17:]] for prompt in PROMPTS] + PROMPTS
    found = []
    for path in (large, usual):
        with serving(path, kv_dtype="float32", **MODES[mode]) as engine:
            found.append(answers(engine, prompts, num_logprobs=2))
    assert [finish.reason for _, finish in found[0]] == ["length"] * 6
    assert found[0] == found[1]


def test_the_option_reaches_the_cache_and_its_bytes_are_counted(tmp_path):
    pieces = byte_level_metadata("gpt-2", num_merges=40), [BYTE_LEVEL | {"use_regex": True}]
    backend = hugging_face_backend(*pieces)
    write_model(tmp_path, SCALE, vocab_size=backend.get_vocab_size())
    backend.save(str(tmp_path / "tokenizer.json"))
    sizes = []
    for dtype in ("float16", "float32"):
        model = load_model(
            tmp_path, max_context_tokens=160, kv_cache_dtype=dtype, device_kind="cpu"
        )
        try:
            sizes.append(model.engine.stats().kv_bytes)
            _, finish = read(submit(model.engine, [*PROMPTS[0], BIG_TOKEN]))
            assert finish.reason == {"float16": "error", "float32": "length"}[dtype]
        finally:
            model.close()
    assert sizes[1] == 2 * sizes[0]
