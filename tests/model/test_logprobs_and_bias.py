"""Log-probabilities and biases through the engine over a tiny model, and beside plain requests."""

import numpy as np
import pytest
from engine_fixture import TIMEOUT_S, TinyEngine
from tiny_models import random_tensors, random_tokens, running, tiny_config, write_folder

from marlin.engine.engine import Engine
from marlin.engine.request import FinishEvent
from marlin.engine.sampling import MAX_LOGIT_BIASES, SamplingParams
from marlin.errors import RequestError

VOCAB = 97
PROMPT = random_tokens(20, VOCAB, seed=1)
SAMPLED = {"temperature": 1.0, "top_p": 1.0, "seed": 5, "max_tokens": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config()
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=3))


@pytest.fixture(scope="module")
def tested(folder):
    tiny = TinyEngine(folder)
    yield tiny
    tiny.close()


def logged(tested, **params):
    """(token ids, their TokenLogprobs) of an answer to PROMPT."""
    return read_logged(tested.submit(PROMPT, **params))


def read_logged(request):
    token_ids, found = [], []
    while not isinstance(event := request.events.get(timeout=TIMEOUT_S), FinishEvent):
        token_ids += event.token_ids
        found += event.logprobs
    assert event.reason in ("stop", "length"), event
    return token_ids, found


def test_asking_for_log_probabilities_changes_no_token(tested):
    for params in ({}, SAMPLED, {**SAMPLED, "frequency_penalty": 1.5}):
        plain, none = logged(tested, **params)
        token_ids, found = logged(tested, num_logprobs=5, **params)
        assert token_ids == plain
        assert (none, len(found)) == ([], len(plain))


def test_all_of_the_vocabulary_sums_to_one(tested):
    request_all = {"num_logprobs": VOCAB}  # past the API's bound, which is not the engine's
    _, found = logged(tested, **request_all)
    for one in found:
        assert np.exp([logprob for _, logprob in one.top]).sum() == pytest.approx(1, abs=1e-9)


def test_a_greedy_token_is_the_likeliest_one(tested):
    token_ids, found = logged(tested, num_logprobs=3)
    for token_id, one in zip(token_ids, found, strict=True):
        assert one.top[0] == (token_id, one.logprob)
        logprobs = [logprob for _, logprob in one.top]
        assert len(logprobs) == 3 and logprobs == sorted(logprobs, reverse=True)


def test_they_are_the_models_own_whatever_changes_the_choice(tested):
    (own, *_), (first, *_) = (
        logged(tested, num_logprobs=4, max_tokens=1)[1],
        logged(
            tested,
            num_logprobs=4,
            max_tokens=1,
            temperature=2.0,
            top_k=1,
            repetition_penalty=2.0,
            logit_bias=((3, 100.0),),
        )[1],
    )
    assert first.top == own.top
    assert first.logprob < own.logprob  # token 3, which the bias forced


def test_zero_top_tokens_still_give_the_tokens_own(tested):
    _, found = logged(tested, num_logprobs=0, max_tokens=2)
    assert [one.top for one in found] == [(), ()]
    assert all(one.logprob < 0 for one in found)


@pytest.mark.parametrize("params", [{}, SAMPLED])
def test_a_bias_of_100_forces_a_token(tested, params):
    token_ids, _ = logged(tested, logit_bias=((42, 100.0),), **params)
    assert set(token_ids) == {42}


@pytest.mark.parametrize("params", [{}, SAMPLED, {**SAMPLED, "repetition_penalty": 1.5}])
def test_a_bias_of_minus_100_bans_tokens(tested, params):
    common = set(logged(tested, **params)[0])
    token_ids, _ = logged(tested, logit_bias=tuple((t, -100.0) for t in common), **params)
    assert token_ids and not set(token_ids) & common


def test_the_largest_bias_beside_a_penalty_on_every_token_fits(tested):
    biases = tuple((token_id, 0.0) for token_id in range(VOCAB))
    params = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "max_tokens": 40}
    assert logged(tested, logit_bias=biases, **params) == logged(tested, **params)


@pytest.mark.parametrize(
    ("biases", "param"),
    [
        (((VOCAB, 1.0),), f"logit_bias.{VOCAB}"),
        (((-1, 1.0),), "logit_bias.-1"),
        (tuple((i, 1.0) for i in range(MAX_LOGIT_BIASES + 1)), "logit_bias"),
    ],
)
def test_a_bias_that_the_engine_cannot_take_is_refused(tested, biases, param):
    with pytest.raises(RequestError) as caught:
        tested.submit(PROMPT, logit_bias=biases)
    assert caught.value.param == param


def test_requests_that_share_steps_get_what_they_get_alone(folder):
    asked = [
        {"num_logprobs": 3},
        {},
        {"num_logprobs": 0, "logit_bias": ((5, 4.0), (6, -4.0))},
        {"frequency_penalty": 1.0, "logit_bias": ((7, 2.0),)},
    ]
    prompts = [random_tokens(length, VOCAB, seed=length) for length in (3, 17, 20, 33)]

    def answers(runner, together):
        engine = Engine(runner, eos_token_ids=())
        requests, found = [], []
        for index, (prompt, params) in enumerate(zip(prompts, asked, strict=True)):
            params = SamplingParams(**{**SAMPLED, **params, "max_tokens": 12})
            requests.append(engine.submit(prompt, params, f"r{index}"))
            if not together:
                found.append(read_logged(requests[-1]))
        return found or [read_logged(request) for request in requests]

    with running(folder, sequences=1, context=64) as runner:
        alone = answers(runner, together=False)
    with running(folder, sequences=4, blocks=(24, 16)) as runner:
        assert answers(runner, together=True) == alone
    assert [len(found) for _, found in alone] == [12, 0, 12, 0]
