"""How long a text may be for a prompt, and for a vector, which nothing follows."""

import pytest

from marlin.engine.served_model import ServedModel
from marlin.errors import ContextLengthError


class Bounds:
    """What encoding asks of an engine."""

    vocab_size, max_context_tokens, alive = 256, 20, True


class Bytes:
    """A tokenizer of bytes, which knows how many there are; special tokens are 1 and 2."""

    vocab_size, named_tokens, chat_template, tool_template = 256, {}, None, None
    fill_tokens = None

    def min_tokens(self, text):
        return len(text)

    def encode(self, text, *, add_special_tokens=True, parse_special=True):
        around = ([1], [2]) if add_special_tokens else ([], [])
        return [*around[0], *text.encode(), *around[1]]

    def encode_parts(self, text, num_characters, **kinds):
        yield self.encode(text, **kinds)


@pytest.fixture
def model():
    model = ServedModel("a", Bounds(), Bytes())
    yield model
    model.reader.close()


def wanted():
    """Somebody waits."""


def test_a_text_for_a_vector_may_fill_the_context_and_its_special_tokens_count(model):
    for given in ("x" * 20, [5] * 20):
        assert len(model.encode_input(given, add_special_tokens=False)) == 20
    assert model.encode_input("x" * 18) == [1, *b"x" * 18, 2]
    for given, said in (
        ("x" * 21, "query has at least 21 tokens; a text may have 20"),
        ("x" * 19, "query has 21 tokens; a text may have 20"),
        ([5] * 21, "query has 21 tokens; a text may have 20"),
    ):
        with pytest.raises(ContextLengthError) as caught:
            model.encode_input(given, "query")
        assert (caught.value.message, caught.value.num_tokens) == (said, 21)


def test_a_prompt_leaves_room_for_a_token_of_its_answer(model):
    assert len(model.encode_prompt("x" * 17, "prompt", wanted, "")) == 19
    assert len(model.encode_prompt([5] * 19, "prompt", wanted, "")) == 19
    for given, bound in (("x" * 20, "at least "), ("x" * 18, ""), ([5] * 20, "")):
        with pytest.raises(ContextLengthError) as caught:
            model.encode_prompt(given, "prompt", wanted, "")
        assert caught.value.message == (
            f"the prompt has {bound}20 tokens; the context holds 20, "
            "and at least 1 of them must be left for the answer"
        )
        assert (caught.value.num_tokens, caught.value.most_tokens) == (20, 19)
