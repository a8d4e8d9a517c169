"""Log-probabilities: the arithmetic over a row of logits, and the API's two shapes of them."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from marlin.engine.logprobs import Distribution, likeliest
from marlin.engine.request import TokenLogprobs
from marlin.engine.stream import ShownToken
from marlin.server.api import openai_logprobs
from marlin.server.api.encoding import encode, joined
from marlin.server.api.openai_answers import ChatAnswer


class Tokenizer:
    """Token 7 is half of a character; 8 and 9 spell the same text."""

    def token_bytes(self, token_id):
        return {7: b"\xe2\x82", 8: b"same", 9: b"same"}.get(token_id, b"t%d" % token_id)


def row(*logits):
    return np.array(logits, np.float32)


def test_the_likeliest_come_first_and_ties_go_to_the_lower_id():
    assert likeliest(row(1, 3, 2, 3, 0), 3).tolist() == [1, 3, 2]
    assert likeliest(row(5, 5, 5, 5), 2).tolist() == [0, 1]
    assert likeliest(row(0, 1, 1, 1), 2).tolist() == [1, 2]


@pytest.mark.parametrize(("count", "expected"), [(0, []), (2, [1, 0]), (9, [1, 0])])
def test_no_more_are_found_than_there_are(count, expected):
    assert likeliest(row(1, 2), count).tolist() == expected


def test_likeliest_agrees_with_a_full_sort():
    rng = np.random.default_rng(4)
    for size in (1, 2, 31, 1000):
        logits = rng.integers(0, 9, size).astype(np.float32)
        for count in (1, 5, 20):
            expected = sorted(range(size), key=lambda i: (-logits[i], i))[:count]
            assert likeliest(logits, count).tolist() == expected


def test_log_probabilities_are_natural_and_normalized():
    found = Distribution(np.log(row(1, 2, 5)), 2).of(0)
    assert found.logprob == pytest.approx(math.log(1 / 8), abs=1e-6)
    assert [token_id for token_id, _ in found.top] == [2, 1]
    assert found.top[0][1] == pytest.approx(math.log(5 / 8), abs=1e-6)


def test_large_logits_do_not_overflow():
    found = Distribution(row(1000, 1001, -1000), 1).of(1)
    assert found.logprob == pytest.approx(-math.log1p(math.exp(-1)))
    assert found.top == ((1, found.logprob),)


def test_a_distribution_keeps_what_it_read():
    logits = row(0, 0)
    held = Distribution(logits, 1)
    logits[:] = 50, -50
    assert held.of(1).logprob == pytest.approx(-math.log(2))


def shown(token_id, logprob, *top, offset=0):
    return ShownToken(token_id, offset, TokenLogprobs(logprob, top))


def test_chat_shows_token_logprob_and_bytes_with_the_likeliest_beneath():
    shape = openai_logprobs.chat_shape(Tokenizer(), [shown(1, -0.5, (1, -0.5), (7, -1.5))])
    assert shape == {
        "content": [
            {
                "token": "t1",
                "logprob": -0.5,
                "bytes": [116, 49],
                "top_logprobs": [
                    {"token": "t1", "logprob": -0.5, "bytes": [116, 49]},
                    {"token": "bytes:\\xe2\\x82", "logprob": -1.5, "bytes": [226, 130]},
                ],
            }
        ],
        "refusal": None,
    }


def test_completions_show_parallel_lists_and_always_the_sampled_token():
    tokens = [shown(1, -2.0, (2, -0.25)), shown(2, -0.25, (2, -0.25), offset=2)]
    assert openai_logprobs.completion_shape(Tokenizer(), tokens) == {
        "tokens": ["t1", "t2"],
        "token_logprobs": [-2.0, -0.25],
        "top_logprobs": [{"t2": -0.25, "t1": -2.0}, {"t2": -0.25}],
        "text_offset": [0, 2],
    }


def test_of_two_tokens_with_one_text_the_likelier_is_shown():
    shape = openai_logprobs.completion_shape(Tokenizer(), [shown(9, -3.0, (8, -0.1), (9, -3.0))])
    assert shape["top_logprobs"] == [{"same": -0.1}]


@pytest.mark.parametrize("impossible", [-math.inf, math.nan, -1e30])
def test_what_json_cannot_hold_becomes_the_lowest(impossible):
    tokens = [shown(1, impossible, (2, impossible))]
    for shape in (openai_logprobs.chat_shape, openai_logprobs.completion_shape):
        text = json.dumps(shape(Tokenizer(), tokens), allow_nan=False)
        assert text.count("-9999.0") >= 2


class Texts(Tokenizer):
    def token_bytes(self, token_id):
        return f'{token_id} \0"'.encode()


@pytest.mark.parametrize("shape", [openai_logprobs.chat_shape, openai_logprobs.completion_shape])
def test_runs_of_tokens_joined_are_the_tokens_of_one_run(shape):
    tokens = [shown(i, -0.5, *((i + j, -0.5 - j) for j in range(5))) for i in range(100)]
    runs = [shape(Texts(), tokens[start : start + 7]) for start in range(0, 100, 7)]
    body = {"a": "x", "choices": [{"logprobs": joined(iter(runs)), "b": [1]}, joined(runs[:1])]}
    whole = {"a": "x", "choices": [{"logprobs": shape(Texts(), tokens), "b": [1]}, runs[0]]}
    assert encode(body) == encode(whole)


def test_a_whole_answer_takes_memory_in_proportion_to_its_bytes():
    answer = object.__new__(ChatAnswer)
    answer._tokenizer = Texts()
    tokens = [shown(i, -0.5, *((j, -0.5 - j) for j in range(20))) for i in range(2000)]
    tracemalloc.start()
    data = encode({"choices": [answer._logprobs(tokens)]})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(json.loads(data)["choices"][0]["logprobs"]["content"]) == 2000
    assert peak < 5 * len(data)  # as objects it was eight times
