"""Streams of tokens become the same text as decoding them at once, and never half a character."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from vocabularies import (
    CORPUS,
    SPECIAL_TEXT,
    byte_level_metadata,
    metaspace_backend,
    sentencepiece_metadata,
    train_sentencepiece,
)

from marlin.text.detokenizer import Detokenizer
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.tokenizer import Tokenizer
from marlin.weights.gguf import GGUFFile


@pytest.fixture(scope="module")
def byte_level():
    return tokenizer_from_gguf(byte_level_metadata("qwen2", num_merges=200), "small.gguf")


@pytest.fixture(scope="module")
def sentencepiece():
    metadata = sentencepiece_metadata(train_sentencepiece(vocab_size=700))
    return tokenizer_from_gguf(metadata, "small.gguf")


@pytest.fixture(scope="module")
def metaspace():
    return Tokenizer(metaspace_backend())


@pytest.fixture(params=["byte_level", "sentencepiece", "metaspace"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def stream(tokenizer, ids, **options):
    detokenizer = Detokenizer(tokenizer, **options)
    return [detokenizer.push(id) for id in ids] + [detokenizer.flush()]


def bytes_as_ids(tokenizer, data):
    """Ids of the tokens that each stand for one byte of `data`."""
    single = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    return [single[bytes([byte])] for byte in data]


@pytest.mark.parametrize("text", CORPUS + SPECIAL_TEXT)
def test_joined_pushes_equal_the_whole_decode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert "".join(stream(tokenizer, ids, continues=False)) == tokenizer.decode(ids)


def test_any_run_of_ids_streams_to_what_it_decodes_to(byte_level, sentencepiece, metaspace):
    @settings(max_examples=150)
    @given(st.data())
    def check(data):
        tokenizer = data.draw(st.sampled_from([byte_level, sentencepiece, metaspace]))
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=12))
        assert "".join(stream(tokenizer, ids, continues=False)) == tokenizer.decode(ids)

    check()


def test_any_bytes_stream_to_what_python_decodes_them_to(byte_level, sentencepiece):
    @settings(max_examples=150)
    @given(st.one_of(st.binary(max_size=8), st.text(max_size=4).map(str.encode)))
    def check(data):
        expected = data.decode("utf-8", errors="replace")
        for tokenizer in (byte_level, sentencepiece):
            pieces = stream(tokenizer, bytes_as_ids(tokenizer, data))
            assert "".join(pieces) == expected

    for tokenizer in (byte_level, sentencepiece):
        singles = {tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)}
        assert all(bytes([byte]) in singles for byte in range(256))
    check()


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_character_comes_out_whole_with_its_last_byte(kind, request):
    tokenizer = request.getfixturevalue(kind)
    ids = bytes_as_ids(tokenizer, "é🙂x".encode())
    assert stream(tokenizer, ids) == ["", "é", "", "", "", "🙂", "x", ""]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_character_cut_short_by_the_end_becomes_one_replacement(kind, request):
    tokenizer = request.getfixturevalue(kind)
    ids = bytes_as_ids(tokenizer, b"ok\xf0\x9f\x99")
    assert stream(tokenizer, ids) == ["o", "k", "", "", "", "\ufffd"]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_character_cut_short_by_text_is_replaced_before_it(kind, request):
    tokenizer = request.getfixturevalue(kind)
    ids = bytes_as_ids(tokenizer, b"\xe2\x82A")
    assert stream(tokenizer, ids) == ["", "", "\ufffdA", ""]


def test_a_valid_character_before_an_invalid_byte_survives(sentencepiece):
    ids = bytes_as_ids(sentencepiece, "é".encode() + b"\xff")
    assert sentencepiece.decode(ids) == "é\ufffd"


def test_special_tokens_leave_no_text_and_do_not_break_a_character(byte_level):
    first, second = bytes_as_ids(byte_level, "é".encode())
    assert stream(byte_level, [1, first, 2, second]) == ["", "", "", "é", ""]


def test_special_tokens_are_shown_on_request(byte_level):
    ids = byte_level.encode("<|im_start|>user")
    shown = "".join(stream(byte_level, ids, skip_special_tokens=False))
    assert shown == "<|im_start|>user"
    assert shown == byte_level.decode(ids, skip_special_tokens=False)


def test_user_defined_tokens_are_text(byte_level):
    ids = byte_level.encode("<tool>x</tool>")
    assert "".join(stream(byte_level, ids)) == "<tool>x</tool>"


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
def test_a_continuation_keeps_the_space_between_prompt_and_answer(kind, request):
    tokenizer = request.getfixturevalue(kind)
    prompt, whole = (tokenizer.encode(text) for text in ("the fox", "the fox jumps"))
    assert whole[: len(prompt)] == prompt
    answer = whole[len(prompt) :]
    assert "".join(stream(tokenizer, answer)) == " jumps"
    assert "".join(stream(tokenizer, answer, continues=False)) == "jumps"


def test_only_the_one_space_the_encoder_added_is_dropped(sentencepiece):
    ids = sentencepiece.encode("  two spaces", add_special_tokens=False)
    assert "".join(stream(sentencepiece, ids, continues=False)) == "  two spaces"
    assert "".join(stream(sentencepiece, ids)) == "   two spaces"


def test_ids_past_the_vocabulary_add_nothing(tokenizer):
    ids = tokenizer.encode("the fox")
    beyond = tokenizer.vocab_size + 7
    pieces = stream(tokenizer, [beyond, *ids, beyond], continues=False)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_an_unknown_decoder_emits_a_replacement_that_never_completes():
    """Text that is U+FFFD itself must not be waited on for ever."""
    backend = Backend(models.WordLevel({"\ufffd": 0, "a": 1}, unk_token="a"))
    backend.decoder = decoders.Fuse()
    tokenizer = Tokenizer(backend)
    assert not tokenizer.byte_exact
    pieces = stream(tokenizer, [0] * 20)
    assert "".join(pieces) == "\ufffd" * 20
    assert any(pieces[:10])


def test_recorded_answers_of_the_demo_model_stream_to_their_recorded_text(
    demo_model_path, checkout
):
    metadata = GGUFFile(demo_model_path).metadata
    tokenizer = tokenizer_from_gguf(metadata, demo_model_path)
    reference = json.loads((checkout / "tests/data/smollm2_reference.json").read_text())
    for item in reference["items"]:
        assert "".join(stream(tokenizer, item["greedy_ids"])) == item["greedy_text"]
