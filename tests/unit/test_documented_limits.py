"""Numbers that the documentation states, beside those that hold."""

import re

import pytest

from marlin.engine import calibration, draft, kv_cache, sampling
from marlin.files import strict_json
from marlin.server.observe import log_writer, logs
from marlin.text import gguf_tokenizer
from marlin.text.grammar import automaton, numbers, schema

# (page, what it says, the numbers in it)
LIMITS = [
    ("serving", "up to {:,} are queued", log_writer.NUM_LINES),
    ("serving", "Of a path a line has {} characters", logs._LOGGED_CHARACTERS),
    (
        *("serving", "A schema may come to {:,} schemas, {} alternatives of"),
        *(schema.MAX_SCHEMAS, schema.MAX_ALTERNATIVES),
    ),
    ("serving", "{:,} edges of an automaton", automaton.MAX_EDGES),
    ("serving", "`multipleOf` (up to {:,} steps between whole numbers)", numbers.MAX_REMAINDERS),
    (
        *("serving", "digits of an integer, nesting | {:,}, {} |"),
        *(strict_json.MAX_INTEGER_DIGITS, strict_json.MAX_DEPTH),
    ),
    ("serving", "at most {:,} of them", sampling.MAX_LOGIT_BIASES),
    (
        *("architecture", "they hold its last {:,} to {:,} tokens"),
        *(draft._GENERATION_TOKENS, 2 * draft._GENERATION_TOKENS),
    ),
    (
        *("architecture", "up to {} within {} MiB for requests to come"),
        *(kv_cache.MAX_KEPT_STATES, kv_cache.KEPT_STATE_BYTES >> 20),
    ),
    ("formats", "in pieces of {} spread over the file", calibration.TEXT_TOKENS),
    ("formats", "a Unigram piece of more than {} characters", gguf_tokenizer.MAX_PIECE_CHARS),
]


@pytest.mark.parametrize(
    ("page", "says", "numbers"),
    [(page, says, numbers) for page, says, *numbers in LIMITS],
    ids=[says for _, says, *_ in LIMITS],
)
def test_a_page_states_the_limit_that_holds(page, says, numbers, checkout):
    text = re.sub(r"\s+", " ", (checkout / "docs" / f"{page}.md").read_text())
    assert says.format(*numbers) in text
