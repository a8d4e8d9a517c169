"""Which tokens' logits a request changes: penalties and biases, each token once."""

import pytest

from marlin.engine.request import Request, SamplingParams
from marlin.engine.sampler import penalty_entries


def entries(prompt=(1, 2, 2), output=(5, 6, 5), **params):
    """{token id: (num_outputs, bias)}, after a look that none is there twice."""
    request = Request("id", list(prompt), SamplingParams(**params), 0, list(output))
    found = penalty_entries(request)
    assert len(set(found["token_id"].tolist())) == len(found)
    return {int(e["token_id"]): (int(e["num_outputs"]), float(e["bias"])) for e in found}


def test_nothing_set_changes_nothing():
    assert entries() == {}


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties_count_the_outputs_alone(name):
    assert entries(**{name: 0.5}) == {5: (2, 0.0), 6: (1, 0.0)}


def test_a_repetition_penalty_sees_the_prompt_too():
    seen = {1: (0, 0.0), 2: (0, 0.0), 5: (2, 0.0), 6: (1, 0.0)}
    assert entries(repetition_penalty=1.2) == seen


def test_a_bias_alone_leaves_the_penalties_off():
    assert entries(logit_bias=((5, -100.0), (9, 2.5))) == {5: (-1, -100.0), 9: (-1, 2.5)}


def test_a_token_with_penalty_and_bias_is_one_entry_with_both():
    found = entries(frequency_penalty=0.5, logit_bias=((9, 1.0), (5, -1.0)))
    assert found == {5: (2, -1.0), 6: (1, 0.0), 9: (-1, 1.0)}


def test_a_bias_on_a_token_of_the_prompt_keeps_the_repetition_penalty():
    found = entries(output=(), repetition_penalty=2.0, logit_bias=((2, 3.0),))
    assert found == {1: (0, 0.0), 2: (0, 3.0)}
