"""Logits that are not numbers end the requests that they are of, with an error, and no other.

A model is broken throughout by a norm that is not a number, and for some requests alone by one such
row of its embedding.
"""

from contextlib import contextmanager

import numpy as np
import pytest
from engine_fixture import read
from tiny_models import random_tensors, random_tokens, running, tiny_config, write_folder

from marlin.engine import engine as engine_module
from marlin.engine.draft import Drafter
from marlin.engine.engine import MAX_FAILED_STEPS, Engine
from marlin.engine.request import Chunk, Request
from marlin.engine.runner import NO_TOKEN
from marlin.engine.sampling import SamplingParams
from marlin.errors import DeviceError

BAD_TOKEN = 96
# Without BAD_TOKEN; the KV of each takes more than one block of 16, and the last one not all.
PROMPTS = [random_tokens(count, BAD_TOKEN, seed=count) for count in (20, 33, 60)]
MODES = {"one": {"context": 160}, "batch": {"sequences": 4, "blocks": (40, 16)}}


def write_model(folder, name, row):
    config = tiny_config()
    tensors = random_tensors(config, seed=3)
    tensors[name][row] = np.nan
    return write_folder(folder, config, tensors)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("broken"), "model.norm.weight", 0)


@pytest.fixture(scope="module")
def partly_broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partly")
    return write_model(folder, "model.embed_tokens.weight", BAD_TOKEN)


@contextmanager
def serving(path, **options):
    with running(path, **options) as runner:
        engine = Engine(runner, eos_token_ids=(0,))
        try:
            yield engine
        finally:
            engine.close()


def submit(engine, prompt, **params):
    # A bias against BAD_TOKEN keeps it out of the answers.
    params = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True} | params
    biased = SamplingParams(**params, logit_bias=((BAD_TOKEN, -100.0),))
    return engine.submit(prompt, biased, "r")


def answers(engine, prompts, **params):
    requests = [submit(engine, prompt, **params) for prompt in prompts]
    return [read(request) for request in requests]


def assert_broken(answer):
    token_ids, finish = answer
    assert token_ids == [] and finish.reason == "error"
    assert isinstance(finish.error, DeviceError) and "not numbers" in finish.error.message


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("drafts", [0, 16])
@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 1.0}, {"num_logprobs": 3}, {"repetition_penalty": 1.3}],
    ids=str,
)
def test_each_request_to_a_broken_model_ends_with_an_error_and_the_engine_goes_on(
    broken, mode, drafts, params
):
    with serving(broken, drafts=drafts, **MODES[mode]) as engine:
        for answer in answers(engine, PROMPTS * (MAX_FAILED_STEPS + 1), **params):
            assert_broken(answer)
        stats = engine.stats()
        assert engine.alive
    assert stats.num_free_kv_blocks == stats.num_kv_blocks
    assert stats.num_running == stats.num_waiting == 0


@pytest.mark.parametrize("mode", MODES)
def test_the_neighbours_of_a_broken_request_and_those_after_it_answer_as_ever(partly_broken, mode):
    bad = [[*prompt, BAD_TOKEN] for prompt in PROMPTS]
    mixed = [prompt for pair in zip(bad, PROMPTS, strict=True) for prompt in pair]
    with serving(partly_broken, **MODES[mode]) as engine:
        plain = answers(engine, PROMPTS)
        assert [len(token_ids) for token_ids, _ in plain] == [20] * 3
    with serving(partly_broken, **MODES[mode]) as engine:
        for _ in range(2):
            found = answers(engine, mixed)
            assert found[1::2] == plain
            for answer in found[::2]:
                assert_broken(answer)
        assert answers(engine, PROMPTS) == plain


@pytest.mark.parametrize("mode", MODES)
def test_a_guess_whose_logits_are_not_numbers_changes_no_token(partly_broken, mode, monkeypatch):
    with serving(partly_broken, **MODES[mode]) as engine:
        plain = answers(engine, PROMPTS)

    num_drafts = []

    class BadDrafter(Drafter):
        def propose(self, request, num_step_rows):
            self._matched_length = 3
            limit = self._max_num_tokens - request.num_tokens - 1
            return [BAD_TOKEN, 1][: max(0, limit)]

        def observe(self, num_drafted, num_accepted):
            num_drafts.append(num_drafted)
            super().observe(num_drafted, num_accepted)

    monkeypatch.setattr(engine_module, "Drafter", BadDrafter)
    with serving(partly_broken, drafts=16, **MODES[mode]) as engine:
        assert answers(engine, PROMPTS) == plain
        assert sum(num_drafts) > 0


def test_an_answer_that_breaks_keeps_the_tokens_that_it_had(partly_broken):
    """BAD_TOKEN is forced, so it is the first token of output; the next has no logits."""
    params = SamplingParams(temperature=0.0, max_tokens=9, logit_bias=((BAD_TOKEN, 100.0),))
    with serving(partly_broken, context=160) as engine:
        token_ids, finish = read(engine.submit(PROMPTS[0], params, "r"))
        assert token_ids == [BAD_TOKEN] and finish.reason == "error"
        again = submit(engine, PROMPTS[0])
        assert read(again)[1].reason == "length"
    assert again.num_cached_tokens == 0, "the KV of a broken step was used again"


def test_no_token_has_no_logprobs(broken):
    request = Request("r", PROMPTS[0], SamplingParams(num_logprobs=2), 0, block_ids=[0])
    with running(broken) as runner:
        assert runner.step([Chunk(request, 0, len(PROMPTS[0]))]) == [[NO_TOKEN]]
        assert runner.logprobs == [[]]


@pytest.mark.parametrize("is_end", [False, True])
def test_right_guesses_before_a_broken_row_are_kept(tmp_path, monkeypatch, is_end):
    """A token of the answer has a broken row of the embedding: what follows it has no logits."""
    config = tiny_config()
    tensors = random_tensors(config, seed=3)
    params = SamplingParams(temperature=0.0, max_tokens=12)

    def answer(eos_token_ids=(), drafts=0):
        path = write_folder(tmp_path / f"{len(list(tmp_path.iterdir()))}", config, tensors)
        with running(path, context=160, drafts=drafts) as runner:
            engine = Engine(runner, eos_token_ids)
            try:
                token_ids, finish = read(engine.submit(PROMPTS[0], params, "r"))
                return token_ids, finish.reason
            finally:
                engine.close()

    expected, _ = answer()
    seen = set(PROMPTS[0])
    place = next(
        i for i in range(2, 12) if expected[i] not in seen and expected[i] not in expected[:i]
    )
    last = expected[place]
    tensors["model.embed_tokens.weight"][last] = np.nan

    class RightDrafter(Drafter):
        def propose(self, request, num_step_rows):
            self._matched_length = 3
            begin = len(request.output_token_ids)
            limit = self._max_num_tokens - request.num_tokens - 1
            return expected[begin : begin + 3][: max(0, limit)]

    monkeypatch.setattr(engine_module, "Drafter", RightDrafter)
    ends = (last,) if is_end else ()
    plain = answer(ends)
    assert plain == ((expected[:place], "stop") if is_end else (expected[: place + 1], "error"))
    assert answer(ends, drafts=16) == plain
