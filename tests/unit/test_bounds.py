"""What an engine refuses before it takes a request: one place, whoever asks."""

from types import SimpleNamespace

import pytest

from marlin.engine.bounds import check_prompt
from marlin.engine.request import new_request
from marlin.engine.sampling import MAX_LOGIT_BIASES, SamplingParams
from marlin.errors import ContextLengthError, RequestError

BOUNDS = SimpleNamespace(max_context_tokens=8, vocab_size=10)


def new(prompt=(1, 2), **params):
    return new_request(prompt, SamplingParams(**params), "r", BOUNDS)


@pytest.mark.parametrize(
    ("prompt", "param", "said"),
    [
        ([], "prompt", "prompt has no tokens"),
        ([1, 10], "prompt[1]", r"prompt\[1\] is 10, but the vocabulary has 10 tokens"),
        ([-1, 10], "prompt[0]", r"prompt\[0\] is -1"),
    ],
)
def test_a_prompt_that_cannot_be_computed_is_refused_by_its_place(prompt, param, said):
    with pytest.raises(RequestError, match=said) as refused:
        new(prompt)
    assert refused.value.param == param


def test_the_first_and_the_last_token_of_a_vocabulary_are_tokens():
    check_prompt([0, 9, 0], BOUNDS)
    for wrong in (-1, 10):
        with pytest.raises(RequestError, match=rf"\[2\] is {wrong}, but the vocabulary has 10"):
            check_prompt([0, 9, wrong], BOUNDS)


def test_a_prompt_is_called_what_its_caller_calls_it():
    with pytest.raises(RequestError, match=r"^prompt\[3\]\[1\] is 11") as refused:
        check_prompt([1, 11], BOUNDS, "prompt[3]")
    assert refused.value.param == "prompt[3][1]"


def test_a_prompt_leaves_room_for_a_token_of_output():
    assert new([1] * 7).prompt_token_ids == [1] * 7
    with pytest.raises(ContextLengthError, match="has 8 tokens; the context holds 8"):
        new([1] * 8)


@pytest.mark.parametrize("token_id", [-1, 10])
def test_a_bias_on_no_token_is_refused_by_its_name(token_id):
    with pytest.raises(RequestError, match="is no token; the vocabulary has 10") as refused:
        new(logit_bias=((0, 1.0), (token_id, 1.0)))
    assert refused.value.param == f"logit_bias.{token_id}"


def test_more_biases_than_there_is_room_for_are_refused():
    biases = tuple((i % 10, 1.0) for i in range(MAX_LOGIT_BIASES + 1))
    with pytest.raises(RequestError, match="may hold 1024 tokens, got 1025"):
        new(logit_bias=biases)
    assert new(logit_bias=biases[:-1]).params.logit_bias == biases[:-1]


def test_a_seed_is_kept_modulo_2_to_the_64_and_drawn_where_none_is_given():
    assert new(seed=-1).seed == 2**64 - 1
    assert len({new().seed for _ in range(4)}) > 1
