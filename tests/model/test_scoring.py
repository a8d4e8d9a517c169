"""Scores of a prompt's own tokens: beside transformers in float32, and the same in any company."""

from contextlib import contextmanager

import numpy as np
import pytest
from pytorch import torch
from reference_models import build, logits_of
from test_parity import TOLERANCE
from tiny_models import random_tokens, running

from marlin.engine.engine import Engine
from marlin.engine.request import FinishEvent
from marlin.engine.sampling import SamplingParams
from marlin.errors import DeviceError
from marlin.models.model import SCORED_ROWS

VOCAB = 97
WAIT_S = 60
PROMPT = random_tokens(150, VOCAB, seed=1)
# A score is a logit less what the logits of all tokens make together, which errs no more.
BOUND = 2 * TOLERANCE


@pytest.fixture(scope="module")
def model():
    return build("qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@contextmanager
def engine_of(folder, **options):
    with running(folder, **options) as runner:
        engine = Engine(runner, eos_token_ids=())
        # The fixture of runner closes it, too.
        try:
            yield engine
        finally:
            engine._closed = True
            engine._incoming.put(None)
            engine._thread.join()


def submit(engine, prompt, max_tokens=0, scores=True):
    params = SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        num_logprobs=5 if scores else None,
        score_prompt=scores,
    )
    return engine.submit(prompt, params, "a")


def read(request):
    """(the prompt's scores, output token ids)"""
    token_ids = []
    while not isinstance(event := request.events.get(timeout=WAIT_S), FinishEvent):
        token_ids += event.token_ids
    assert event.reason == "length", event
    return list(request.prompt_logprobs), token_ids


@pytest.fixture(scope="module")
def alone(folder):
    with engine_of(folder, context=256) as engine:
        return read(submit(engine, PROMPT))[0]


def test_scores_are_those_of_a_float_oracle(alone, model):
    logits = torch.from_numpy(logits_of(model, PROMPT)).double()
    expected = torch.log_softmax(logits, dim=1).numpy()
    assert len(alone) == len(PROMPT) - 1
    own = [expected[i, token] for i, token in enumerate(PROMPT[1:])]
    assert np.abs(np.array([one.logprob for one in alone]) - own).max() < BOUND
    for row, one in zip(expected, alone, strict=False):
        assert [value for _, value in one.top] == pytest.approx(sorted(row)[-5:][::-1], abs=BOUND)
        assert all(abs(row[token] - value) < BOUND for token, value in one.top)


def test_nothing_is_generated_where_nothing_is_asked_for(folder):
    with engine_of(folder, context=256) as engine:
        assert read(submit(engine, PROMPT))[1] == []
        scores, token_ids = read(submit(engine, PROMPT, max_tokens=4))
        assert len(scores) == len(PROMPT) - 1 and len(token_ids) == 4


@pytest.mark.parametrize("step", [SCORED_ROWS + 1, 40])
def test_chunks_of_any_size_give_the_same_scores(folder, alone, step):
    with engine_of(folder, context=256, max_step_tokens=step) as engine:
        assert read(submit(engine, PROMPT))[0] == alone


def test_a_batch_and_what_is_cached_give_the_same_scores(folder, alone):
    with engine_of(folder, sequences=4, blocks=(64, 16), max_step_tokens=48) as engine:
        others = [random_tokens(n, VOCAB, seed=n) for n in (5, 33, 70)]
        requests = [submit(engine, other, 20, scores=False) for other in others]
        first = submit(engine, PROMPT)
        assert read(first)[0] == alone
        for request in requests:
            read(request)
        again = submit(engine, PROMPT, max_tokens=1)
        assert read(again)[0] == alone and again.num_cached_tokens == 0
        plain = submit(engine, PROMPT, max_tokens=1, scores=False)
        assert read(plain)[1] == read(submit(engine, PROMPT, max_tokens=1))[1]
        assert plain.num_cached_tokens == 144


def test_what_the_last_request_left_in_sequential_mode_is_scored_anew(folder, alone):
    with engine_of(folder, context=256) as engine:
        read(submit(engine, PROMPT, max_tokens=3, scores=False))
        assert read(submit(engine, PROMPT))[0] == alone


def test_a_preempted_request_has_each_score_once(folder, alone):
    with engine_of(folder, sequences=3, blocks=(14, 16), max_step_tokens=32) as engine:
        requests = [
            engine.submit(
                PROMPT,
                SamplingParams(temperature=0.0, max_tokens=40, num_logprobs=5, score_prompt=True),
                name,
                client=name,
            )
            for name in ("a", "b")
        ]
        (first, tokens), (second, others) = map(read, requests)
        assert sum(request.num_preemptions for request in requests) > 0
        assert first == second == alone
        assert tokens == others


def test_scores_agree_with_those_of_the_same_tokens_as_output(folder):
    with engine_of(folder, context=256) as engine:
        params = SamplingParams(temperature=0.0, max_tokens=12, num_logprobs=5)
        request = engine.submit(PROMPT[:20], params, "a")
        token_ids, found = [], []
        while not isinstance(event := request.events.get(timeout=WAIT_S), FinishEvent):
            token_ids += event.token_ids
            found += event.logprobs
        scored = read(submit(engine, [*PROMPT[:20], *token_ids]))[0][19:]
    assert [one.logprob for one in scored] == pytest.approx(
        [one.logprob for one in found], abs=BOUND
    )


def test_scores_that_are_not_numbers_end_their_request(folder):
    with running(folder, context=256) as runner:
        engine = Engine(runner, eos_token_ids=())
        scores = runner._scores

        class Broken:
            def __iter__(self):
                return iter(np.full_like(scores, np.nan))

        runner._scores = Broken()
        request = submit(engine, PROMPT)
        event = request.events.get(timeout=WAIT_S)
        assert event.reason == "error" and isinstance(event.error, DeviceError)
        engine._incoming.put(None)
        engine._thread.join()
