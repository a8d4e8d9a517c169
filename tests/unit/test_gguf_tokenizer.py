"""What the `tokenizer.*` keys of a GGUF file mean, and which values are refused."""

import re

import numpy as np
import pytest
from vocabularies import (
    CORPUS,
    PREFIX,
    byte_level_metadata,
    sentencepiece_metadata,
    train_sentencepiece,
)

from marlin.errors import ModelFileError
from marlin.text.gguf_tokenizer import MAX_PIECE_CHARS, tokenizer_from_gguf


@pytest.fixture(scope="module")
def small_metadata():
    return byte_level_metadata("qwen2", num_merges=200)


@pytest.fixture(scope="module")
def processor():
    return train_sentencepiece()


@pytest.mark.parametrize(("flag", "ids"), [(True, [1]), (False, []), (None, [1])])
def test_a_llama3_file_adds_bos_unless_it_says_not_to(flag, ids, small_metadata):
    metadata = {**small_metadata, PREFIX + "pre": "llama-bpe"}
    del metadata[PREFIX + "add_bos_token"]
    if flag is not None:
        metadata[PREFIX + "add_bos_token"] = flag
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    assert ours.encode("") == ids
    assert ours.add_bos_token == bool(ids)
    assert ours.encode("", add_special_tokens=False) == []


@pytest.mark.parametrize(("pre", "num_tokens"), [("llama-bpe", 1), ("tekken", 1), ("dbrx", 5)])
def test_a_word_that_is_a_token_needs_merges_only_in_some_families(
    pre, num_tokens, small_metadata
):
    tokens = [*small_metadata[PREFIX + "tokens"], "zqzqz"]
    types = [*small_metadata[PREFIX + "token_type"], 1]
    changed = {PREFIX + "pre": pre, PREFIX + "tokens": tokens, PREFIX + "token_type": types}
    ours = tokenizer_from_gguf({**small_metadata, **changed}, "small.gguf")
    assert len(ours.encode("zqzqz")) == num_tokens


def test_add_eos_token_ends_a_text_with_eos(small_metadata):
    metadata = {**small_metadata, PREFIX + "add_eos_token": True}
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    assert ours.encode("<tool>") == [3, 2]


def test_end_tokens_are_the_named_ones_and_known_control_tokens(small_metadata):
    metadata = {**small_metadata, PREFIX + "eot_token_id": 7, PREFIX + "eom_token_id": 9}
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    assert ours.eos_token_ids == {0, 2, 7, 9}  # <|endoftext|> and <|im_end|> by their text
    ordinary = {**metadata, PREFIX + "token_type": [1] * len(metadata[PREFIX + "tokens"])}
    ours = tokenizer_from_gguf(ordinary, "small.gguf")
    assert ours.eos_token_ids == {2, 7, 9}
    assert ours.is_special(2)


def test_numbers_may_come_as_numpy_arrays(processor):
    metadata = sentencepiece_metadata(processor)
    plain = tokenizer_from_gguf(metadata, "small.gguf")
    metadata[PREFIX + "scores"] = np.array(metadata[PREFIX + "scores"], np.float32)
    metadata[PREFIX + "token_type"] = np.array(metadata[PREFIX + "token_type"], np.int32)
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    assert [ours.encode(text) for text in CORPUS] == [plain.encode(text) for text in CORPUS]


def refusal(metadata):
    with pytest.raises(ModelFileError) as caught:
        tokenizer_from_gguf(metadata, "models/bad.gguf")
    assert str(caught.value).startswith("models/bad.gguf: tokenizer.")
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("model", "rwkv", "'rwkv'"),
        ("model", None, "is missing; expected one of gpt2, llama"),
        ("pre", "mystery-bpe", "'mystery-bpe'"),
        ("pre", None, "is missing; expected one of dbrx, deepseek"),
        ("tokens", None, "missing"),
        ("tokens", ["a", 1], "array of strings"),
        ("tokens", np.arange(3), "array of strings"),
        ("tokens", ["a", "b", "a"], "'a' is both token 0 and 2"),
        ("token_type", [1, 1], "2 values for"),
        ("token_type", "many", "expected"),
        ("token_type", [[1], [1, 2]], "expected"),
        ("merges", None, "missing"),
        ("merges", ["a zz\u0120zz"], "needs 'zz\u0120zz'"),
        ("merges", ["zz\u0120zz a"], "needs 'zz\u0120zz'"),
        ("merges", ["ab"], "needs"),
        ("merges", ["\u0100 \u0100"], "needs '\u0100\u0100'"),
        ("bos_token_id", 10**6, "expected an integer from 0 to"),
        ("eos_token_id", -1, "expected an integer from 0 to"),
        ("eot_token_id", "2", "expected an integer from 0 to"),
        ("unknown_token_id", True, "expected an integer from 0 to"),
        ("add_bos_token", 1, "true or false"),
    ],
)
def test_a_bad_value_is_refused_by_file_and_key(key, value, complaint, small_metadata):
    metadata = {**small_metadata, PREFIX + key: value}
    if key == "tokens" and value is not None:
        metadata.pop(PREFIX + "token_type")
    message = refusal(metadata)
    assert re.search(rf"tokenizer\.ggml\.{key}( is |: )", message)
    assert complaint in message


def test_a_chat_template_that_is_no_string_is_refused(small_metadata):
    assert "chat_template" in refusal({**small_metadata, "tokenizer.chat_template": ["a"]})


@pytest.mark.parametrize("scores", [None, [0.0], ["high"]])
def test_scores_that_do_not_fit_the_vocabulary_are_refused(scores, processor):
    metadata = {**sentencepiece_metadata(processor), PREFIX + "scores": scores}
    assert "scores" in refusal(metadata)


def test_sentencepiece_tokens_that_split_in_too_many_ways_are_refused(processor):
    metadata = sentencepiece_metadata(processor)
    pieces = ["a" * (length - ends) + "b" * ends for length in range(80) for ends in range(length)]
    tokens = list(dict.fromkeys([*metadata[PREFIX + "tokens"], *pieces]))
    num_more = len(tokens) - len(metadata[PREFIX + "tokens"])
    metadata[PREFIX + "tokens"] = tokens
    for key, value in (("scores", -1.0), ("token_type", 1)):
        metadata[PREFIX + key] = [*metadata[PREFIX + key], *[value] * num_more]
    assert f"more than {16 * len(tokens)} ways to join" in refusal(metadata)


def test_a_sentencepiece_token_too_long_to_split_is_refused(processor):
    metadata = sentencepiece_metadata(processor)
    metadata[PREFIX + "tokens"][-1] = "a" * (MAX_PIECE_CHARS + 1)
    assert "longer than 512" in refusal(metadata)
