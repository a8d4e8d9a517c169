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
    word_piece_metadata,
    word_pieces,
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
def test_a_word_that_is_a_token_needs_merges_only_in_some_families(pre, num_tokens, small_metadata):
    tokens = [*small_metadata[PREFIX + "tokens"], "zqzqz"]
    types = [*small_metadata[PREFIX + "token_type"], 1]
    changed = {PREFIX + "pre": pre, PREFIX + "tokens": tokens, PREFIX + "token_type": types}
    ours = tokenizer_from_gguf({**small_metadata, **changed}, "small.gguf")
    assert len(ours.encode("zqzqz")) == num_tokens


def test_add_eos_token_ends_a_text_with_eos(small_metadata):
    metadata = {**small_metadata, PREFIX + "add_eos_token": True}
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    assert ours.encode("<tool>") == [3, 2]


def with_tokens(metadata, texts, type):
    """The metadata with more tokens, all of one type."""
    types = [*metadata[PREFIX + "token_type"], *[type] * len(texts)]
    tokens = [*metadata[PREFIX + "tokens"], *texts]
    return {**metadata, PREFIX + "tokens": tokens, PREFIX + "token_type": types}


def test_end_tokens_are_the_named_ones_and_those_known_by_their_text(small_metadata):
    metadata = {**small_metadata, PREFIX + "eot_token_id": 7, PREFIX + "eom_token_id": 9}
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    assert ours.eos_token_ids == {0, 2, 7, 9}  # <|endoftext|> and <|im_end|> by their text
    ordinary = {**metadata, PREFIX + "token_type": [1] * len(metadata[PREFIX + "tokens"])}
    ours = tokenizer_from_gguf(ordinary, "small.gguf")
    assert ours.eos_token_ids == {0, 2, 7, 9}
    assert ours.is_special(2)


def test_a_text_that_html_has_too_ends_a_turn_only_as_a_control_token(small_metadata):
    first = len(small_metadata[PREFIX + "tokens"])
    for type, expected in ((1, {0, 2}), (3, {0, 2, first, first + 1})):
        metadata = with_tokens(small_metadata, ["</s>", "[EOS]"], type)
        assert tokenizer_from_gguf(metadata, "small.gguf").eos_token_ids == expected


def test_a_message_of_several_in_a_turn_does_not_end_it(small_metadata):
    first = len(small_metadata[PREFIX + "tokens"])
    metadata = with_tokens(small_metadata, ["<|end|>"], 3)
    assert tokenizer_from_gguf(metadata, "small.gguf").eos_token_ids == {0, 2, first}
    metadata = with_tokens(small_metadata, ["<|end|>", "<|call|>", "<|return|>"], 3)
    found = tokenizer_from_gguf(metadata, "small.gguf").eos_token_ids
    assert found == {0, 2, first + 1, first + 2}


def test_empty_places_of_a_vocabulary_stand_for_nothing_in_a_text(small_metadata):
    metadata = with_tokens(small_metadata, ["", ""], 5)
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    plain = tokenizer_from_gguf(small_metadata, "small.gguf")
    assert [ours.encode(text) for text in CORPUS] == [plain.encode(text) for text in CORPUS]
    assert ours.vocab_size == plain.vocab_size + 2


def test_arrays_may_be_longer_than_the_vocabulary(small_metadata):
    types = [*small_metadata[PREFIX + "token_type"], 3, 3]
    ours = tokenizer_from_gguf({**small_metadata, PREFIX + "token_type": types}, "small.gguf")
    assert ours.vocab_size == len(small_metadata[PREFIX + "tokens"])


def test_a_sentencepiece_file_without_ids_means_those_of_the_trainer(processor):
    metadata = sentencepiece_metadata(processor)
    for name in ("bos", "eos", "unknown"):
        metadata.pop(f"{PREFIX}{name}_token_id", None)
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    assert ours.named_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert ours.encode("the")[0] == 1


def test_named_templates_without_a_default_are_refused(small_metadata):
    template = {"tokenizer.chat_template.tool_use": "{{ tools }}"}
    assert "tool_use" in refusal({**small_metadata, **template})
    template["tokenizer.chat_template"] = "{{ messages }}"
    ours = tokenizer_from_gguf({**small_metadata, **template}, "small.gguf")
    assert ours.chat_template == "{{ messages }}"


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
        ("pre", None, "is missing; expected one of chatglm-bpe, dbrx, deepseek"),
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
        ("suppress_tokens", np.array([5], np.int32), "it is not supported"),
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


# --- word pieces ---


@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
def test_word_pieces_are_those_of_berts_own_tokenizer(lowercase, tmp_path):
    from transformers import BertTokenizer

    vocabulary = {piece: id for id, piece in enumerate(word_pieces(lowercase=lowercase))}
    theirs = BertTokenizer(vocabulary, do_lower_case=lowercase)
    ours = tokenizer_from_gguf(word_piece_metadata(lowercase=lowercase), "bert.gguf")
    for text in (*CORPUS, "[SEP] a [MASK]b [unused0]", "a" * 100 + " x", "a" * 101 + " x"):
        assert ours.encode(text) == theirs(text)["input_ids"], text
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == plain
    assert ours.named_tokens["sep_token"] == "[SEP]"


def test_what_a_file_says_of_letters_counts_before_what_its_vocabulary_has():
    metadata = word_piece_metadata(lowercase=False)
    said = {PREFIX + "normalizer.lowercase": True}
    cased, uncased = (
        tokenizer_from_gguf(file, "bert.gguf") for file in (metadata, metadata | said)
    )
    assert uncased.encode("IT") == cased.encode("it") != cased.encode("IT")
    marked = tokenizer_from_gguf(
        metadata | said | {PREFIX + "normalizer.strip_accents": False}, "bert.gguf"
    )
    assert marked.encode("caf\u00e9") != uncased.encode("caf\u00e9") == cased.encode("cafe")


def test_a_bert_file_ends_texts_with_what_separates_them_unless_it_says_not_to():
    metadata = word_piece_metadata()
    first, last = metadata[PREFIX + "bos_token_id"], metadata[PREFIX + "seperator_token_id"]
    flags = {PREFIX + "add_sep_token": False}
    assert tokenizer_from_gguf(metadata, "bert.gguf").encode("") == [first, last]
    assert tokenizer_from_gguf(metadata | flags, "bert.gguf").encode("") == [first]
    flags |= {PREFIX + "add_eos_token": True}
    assert tokenizer_from_gguf(metadata | flags, "bert.gguf").encode("") == [first, last]


def test_unused_places_of_older_bert_files_are_no_pieces_within_a_word():
    metadata = word_piece_metadata()
    tokens = [text.removeprefix("\u2581") if "unused" in text else text
              for text in metadata[PREFIX + "tokens"]]  # fmt: skip
    ours = tokenizer_from_gguf(metadata | {PREFIX + "tokens": tokens}, "bert.gguf")
    newer = tokenizer_from_gguf(metadata, "bert.gguf")
    assert [ours.token_text(1), newer.token_text(1)] == ["[unused0]"] * 2


def test_a_bert_file_without_a_token_for_unknown_words_is_refused():
    metadata = word_piece_metadata(vocab_size=90)
    del metadata[PREFIX + "unknown_token_id"]
    with pytest.raises(ModelFileError, match="unknown_token_id is missing"):
        tokenizer_from_gguf(metadata, "bert.gguf")


def gemma4_metadata(*merges):
    """Pieces of letters and blanks as they are, bytes, and the merges that a file states."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["a", "b", "\u2581", "\n", "ab", "\u2581a", "\n\n", "a\n"]
    return {
        PREFIX + "model": "gemma4",
        PREFIX + "tokens": [*special, *bytes_, *pieces],
        PREFIX + "token_type": np.array([3] * 4 + [6] * 256 + [1] * len(pieces)),
        PREFIX + "scores": np.full(260 + len(pieces), -1000.0),
        PREFIX + "merges": list(merges),
        PREFIX + "bos_token_id": 2,
        PREFIX + "eos_token_id": 1,
        PREFIX + "unknown_token_id": 3,
    }


def test_gemma4s_merges_are_taken_in_the_order_of_the_file_and_bytes_stand_for_the_rest():
    a, b, blank, _, ab, blank_a, lines = range(260, 267)
    texts = {"ab": [ab], " ab": [blank, ab], " a": [blank_a], "b\n\nab": [b, lines, ab]}
    texts |= {"a\u00e9": [a, 4 + 0xC3, 4 + 0xA9]}
    ours = tokenizer_from_gguf(gemma4_metadata("a b", "\u2581 a", "\n \n"), "small.gguf")
    for text, ids in texts.items():
        assert ours.encode(text) == [2, *ids]
        assert ours.decode(ids) == text
    other = tokenizer_from_gguf(gemma4_metadata("\u2581 a", "a b"), "small.gguf")
    assert other.encode(" ab", add_special_tokens=False) == [blank_a, b]


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("a q", "merge 1 'a q' needs 'q', which is no token"),
        ("b a", "merge 1 'b a' needs 'ba', which is no token"),
        ("a \n", r"merge 1 'a \\n' joins lines"),
    ],
)
def test_a_merge_of_gemma4_that_cannot_be_is_named(merge, message):
    with pytest.raises(ModelFileError, match=re.escape(message).replace(r"\\\\", r"\\")):
        tokenizer_from_gguf(gemma4_metadata("a b", merge), "small.gguf")
