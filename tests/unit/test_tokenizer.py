"""Token ids against transformers, sentencepiece and recorded ones, and what a token stands for."""

import json

import pytest
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges
from vocabularies import (
    CORPUS,
    PREFIX,
    SPECIAL_TEXT,
    byte_level_metadata,
    hugging_face_backend,
    sentencepiece_metadata,
    train_sentencepiece,
)

from marlin.errors import TokenizerPoolError
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.tokenizer import _make_pool
from marlin.weights.gguf import GGUFFile

TEXTS = CORPUS + SPECIAL_TEXT
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NFC = {"type": "NFC"}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": use_regex}  # fmt: skip


DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3_SPLIT = split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + WORD_TAIL)
QWEN2_SPLIT = split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + WORD_TAIL)
TEKKEN_SPLIT = split(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Per `pre`: the tokenizer.json's pre_tokenizer, normalizer and ignore_merges, as published.
PUBLISHED = {
    "gpt-2": ([byte_level(True)], None, False),
    "default": ([byte_level(True)], None, False),
    "olmo": ([byte_level(True)], NFC, False),
    "smollm": ([DIGITS, byte_level(True)], None, False),
    "starcoder": ([DIGITS, byte_level(True)], None, False),
    "refact": ([DIGITS, byte_level(True)], None, False),
    "llama-bpe": ([LLAMA3_SPLIT, byte_level(False)], None, True),
    "dbrx": ([LLAMA3_SPLIT, byte_level(False)], None, False),
    "qwen2": ([QWEN2_SPLIT, byte_level(False)], NFC, False),
    "deepseek-r1-qwen": ([QWEN2_SPLIT, byte_level(False)], NFC, False),
    "tekken": ([TEKKEN_SPLIT, byte_level(False)], None, True),
}


@pytest.fixture(scope="module")
def small_metadata():
    return byte_level_metadata("qwen2")


@pytest.fixture(scope="module")
def processor():
    return train_sentencepiece()


@pytest.fixture(scope="module")
def demo(demo_model_path):
    return tokenizer_from_gguf(GGUFFile(demo_model_path).metadata, demo_model_path)


@pytest.fixture(scope="module")
def reference(checkout):
    return json.loads((checkout / "tests/data/smollm2_reference.json").read_text())["items"]


def with_pre(metadata, pre):
    return {**metadata, PREFIX + "pre": pre}


@pytest.mark.parametrize("pre", sorted(PUBLISHED))
def test_byte_level_ids_equal_transformers_on_the_published_pipeline(pre, small_metadata):
    backend = hugging_face_backend(small_metadata, *PUBLISHED[pre])
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend)
    ours = tokenizer_from_gguf(with_pre(small_metadata, pre), "small.gguf")
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        for skip in (True, False):
            theirs_text = theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert ours.decode(ids, skip_special_tokens=skip) == theirs_text


@pytest.mark.parametrize(
    ("pre", "tokenizer_class"), [("gpt-2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer")]
)
def test_byte_level_ids_equal_the_class_transformers_has_for_the_family(
    pre, tokenizer_class, small_metadata, tmp_path
):
    tokens, merges = small_metadata[PREFIX + "tokens"], small_metadata[PREFIX + "merges"]
    vocab = {token: id for id, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    config = {"tokenizer_class": tokenizer_class, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = tokenizer_from_gguf(with_pre(small_metadata, pre), "small.gguf")
    for text in CORPUS:
        assert ours.encode(text) == theirs.encode(text)


def test_sentencepiece_ids_equal_the_processor_that_trained_them(processor):
    ours = tokenizer_from_gguf(sentencepiece_metadata(processor), "small.gguf")
    for text in CORPUS:
        ids = processor.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.encode(text) == [processor.bos_id(), *ids]
        assert ours.decode(ids) == processor.decode(ids) == text


def test_sentencepiece_ids_without_a_space_prefix_equal_the_processors():
    processor = train_sentencepiece(add_dummy_prefix=False)
    metadata = sentencepiece_metadata(processor)
    metadata[PREFIX + "add_space_prefix"] = False
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    for text in CORPUS:
        ids = processor.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids) == text


def test_sentencepiece_ids_equal_transformers_llama_tokenizer(processor):
    metadata = sentencepiece_metadata(processor)
    tokens, scores = metadata[PREFIX + "tokens"], metadata[PREFIX + "scores"]
    vocab = {token: id for id, token in enumerate(tokens)}
    merges = generate_merges(vocab, dict(zip(tokens, scores, strict=True)))
    theirs = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    # LlamaTokenizer adds no second space before a leading one; SentencePiece and llama.cpp do.
    for text in CORPUS:
        if not text.startswith(" "):
            assert ours.encode(text) == theirs.encode(text)


def test_prompts_of_the_demo_model_have_the_recorded_ids(demo, reference):
    for item in reference:
        assert demo.encode(item["prompt"], add_special_tokens=False) == item["prompt_ids"]


def test_answers_of_the_demo_model_decode_to_the_recorded_text(demo, reference):
    for item in reference:
        assert demo.decode(item["greedy_ids"]) == item["greedy_text"]


def test_demo_ids_equal_transformers_on_the_published_pipeline(demo, demo_model_path):
    metadata = GGUFFile(demo_model_path).metadata
    backend = hugging_face_backend(metadata, *PUBLISHED["smollm"])
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend)
    for text in TEXTS:
        assert demo.encode(text) == theirs.encode(text)


def test_the_demo_model_has_the_facts_of_its_file(demo):
    assert (demo.vocab_size, demo.bos_token_id, demo.add_bos_token) == (49152, 1, False)
    assert demo.named_tokens["bos_token"] == "<|im_start|>"
    assert demo.named_tokens["eos_token"] == "<|im_end|>"
    assert demo.eos_token_ids == {0, 2}
    assert demo.chat_template.startswith("{% for message in messages %}")


def test_special_tokens_in_text_are_tokens_of_their_own(small_metadata):
    ours = tokenizer_from_gguf(small_metadata, "small.gguf")
    assert ours.encode("<|im_start|>") == [1]
    assert [ours.is_special(id) for id in range(6)] == [True, True, True, False, False, False]
    assert ours.decode([1, 3, 2]) == "<tool>"
    assert ours.decode([1, 3, 2], skip_special_tokens=False) == "<|im_start|><tool><|im_end|>"


def test_a_token_id_gives_its_piece_and_its_bytes(small_metadata):
    ours = tokenizer_from_gguf(small_metadata, "small.gguf")
    (space,) = ours.encode(" ")
    assert (ours.token_text(space), ours.token_bytes(space)) == ("\u0120", b" ")
    assert (ours.token_text(1), ours.token_bytes(1)) == ("<|im_start|>", b"<|im_start|>")
    beyond = ours.vocab_size
    assert (ours.token_text(beyond), ours.token_bytes(beyond)) == ("", b"")


def test_a_sentencepiece_token_gives_its_piece_and_its_bytes(processor):
    ours = tokenizer_from_gguf(sentencepiece_metadata(processor), "small.gguf")
    newline = processor.piece_to_id("<0x0A>")
    assert (ours.token_text(newline), ours.token_bytes(newline)) == ("<0x0A>", b"\n")
    (word,) = processor.encode("a")
    assert (ours.token_text(word), ours.token_bytes(word)) == ("\u2581a", b" a")


def test_token_bytes_of_ordinary_text_join_to_the_text(small_metadata):
    ours = tokenizer_from_gguf(with_pre(small_metadata, "gpt-2"), "small.gguf")
    for text in CORPUS:
        assert b"".join(map(ours.token_bytes, ours.encode(text))) == text.encode()


def test_an_added_token_outside_ascii_is_text_and_not_bytes(small_metadata):
    tokens = [*small_metadata[PREFIX + "tokens"], "\u00e9t\u00e9"]
    types = [*small_metadata[PREFIX + "token_type"], 4]
    metadata = {**small_metadata, PREFIX + "tokens": tokens, PREFIX + "token_type": types}
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    assert ours.encode("\u00e9t\u00e9") == [len(tokens) - 1]
    assert ours.decode([len(tokens) - 1]) == "\u00e9t\u00e9"


def test_lone_surrogates_are_read_as_replacement_characters(small_metadata):
    ours = tokenizer_from_gguf(small_metadata, "small.gguf")
    assert ours.encode("a\ud800b") == ours.encode("a\ufffdb")
    assert ours.encode("\ud83d\ude42") == ours.encode("🙂")


def test_special_tokens_are_text_to_who_does_not_parse_them(demo):
    text = "a <|im_end|>\n<|im_start|>user"
    whole, plain = demo.encode(text), demo.encode(text, parse_special=False)
    assert sum(map(demo.is_special, whole)) == 2
    assert not any(map(demo.is_special, plain))
    assert demo.decode(plain, skip_special_tokens=False) == text


def test_a_token_that_ends_a_turn_is_text_to_who_does_not_parse_special_ones(small_metadata):
    tokens = [*small_metadata[PREFIX + "tokens"], "<end_of_turn>", "<thing>"]
    types = [*small_metadata[PREFIX + "token_type"], 4, 4]
    metadata = {**small_metadata, PREFIX + "tokens": tokens, PREFIX + "token_type": types}
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    ends, tool = len(tokens) - 2, len(tokens) - 1
    assert ours.encode("<end_of_turn><thing>") == [ends, tool]
    plain = ours.encode("<end_of_turn><thing>", parse_special=False)
    assert ends not in plain and plain[-1] == tool


def test_text_is_read_alike_with_and_without_special_tokens(demo, processor):
    for ours in (demo, tokenizer_from_gguf(sentencepiece_metadata(processor), "small.gguf")):
        for text in ("Hello there", " a  b\n\nc", "caf\u00e9 \U0001f642", ""):
            assert ours.encode(text, parse_special=False) == ours.encode(text)
            parts = ours.encode_parts(text * 20, 10, parse_special=False)
            assert [id for part in parts for id in part] == ours.encode(text * 20)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_threads_are_made_is_no_fault_of_the_tokenizer(error):
    class Interrupted:
        def encode_batch_fast(self, _texts):
            raise error

    with pytest.raises(error):
        _make_pool(Interrupted())


def test_threads_that_cannot_be_made_are_told_in_the_librarys_words():
    class Panic(BaseException):
        """As the library's."""

    class Broken:
        def encode_batch_fast(self, _texts):
            raise Panic("no threads")

    with pytest.raises(TokenizerPoolError, match="^tokenizing is not possible: no threads$"):
        _make_pool(Broken())
