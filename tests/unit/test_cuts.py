"""Cuts of long texts: parts have the tokens of the whole, and no part takes much."""

import itertools
import json
import random
import re
import time
import unicodedata

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from vocabularies import (
    CORPUS,
    SPECIAL_TEXT,
    byte_level_metadata,
    hugging_face_backend,
    metaspace_backend,
    sentencepiece_metadata,
    train_sentencepiece,
)

from marlin.errors import RequestError
from marlin.text import cuts
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.pretokenizer import DIGITS, FAMILIES, OTHERS, WORDS
from marlin.text.tokenizer import Tokenizer
from marlin.weights.gguf import GGUFFile

# Of every class of characters that an expression tells apart, before, at and behind cuts.
ALPHABET = (
    *"aZ q9_'.,/(\"\\-`~$^", *"\n\r\t \n  ",
    *"\u0416\u0439\u4f60\u597d\u3042\u30a2\ud55c\uff0c\u3002\u2019\u00e9\u0301\u00a0\u3000",
    *"\u0942\u2028\u01c5\u02b0\u00bd\U0001f642\u00ad", "'s", "'ll", "  a", "\n\n", "a b", ",\nZ",
    "<tool>", "<|im_end|>", "\u2581", "\u2581a", "a\u2581",
)  # fmt: skip


def texts(num_texts, num_pieces=24, seed=11):
    random.seed(seed)
    for _ in range(num_texts):
        yield "".join(random.choices(ALPHABET, k=random.randint(1, num_pieces)))
    yield from CORPUS
    yield from SPECIAL_TEXT


def check_parts(ours, num_texts=300):
    """That parts have the whole's tokens, and that there are parts."""
    num_cuts = 0
    for text in texts(num_texts):
        for adds, size in itertools.product((False, True), (0, 5)):
            parts = list(ours.encode_parts(text, size, add_special_tokens=adds))
            whole = ours.encode(text, add_special_tokens=adds)
            assert [*itertools.chain(*parts)] == whole, (text, size)
            num_cuts += len(parts) - 3
    assert num_cuts > num_texts / 5


def steps(*patterns, digits=False, use_regex=False):
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    if digits:
        splits.append({"type": "Digits", "individual_digits": True})
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return [*splits, {**last, "use_regex": use_regex}]


@pytest.fixture(scope="module")
def metadata():
    return byte_level_metadata("gpt-2")


@pytest.fixture(scope="module")
def processor():
    return train_sentencepiece()


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"default", "refact", "starcoder"}))
def test_parts_of_a_text_have_its_tokens_in_every_family(family, metadata):
    named = {**metadata, "tokenizer.ggml.pre": family, "tokenizer.ggml.add_bos_token": True}
    check_parts(tokenizer_from_gguf(named, "small.gguf"))


@pytest.mark.parametrize("pattern", WORDS)
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_parts_of_a_text_have_its_tokens_with_every_other_published_expression(
    pattern, ignore_merges, metadata
):
    described = steps(DIGITS[ignore_merges], pattern)
    backend = hugging_face_backend(metadata, described, ignore_merges=ignore_merges)
    check_parts(Tokenizer(backend), 150)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_parts_of_a_text_have_its_tokens_after_a_form_of_unicode(form, metadata):
    qwen = hugging_face_backend(metadata, steps(*FAMILIES["qwen2"].splits), {"type": form})
    check_parts(Tokenizer(qwen))


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_no_form_of_unicode_joins_what_stands_before_a_cut_with_what_stands_behind(form):
    letters = re.findall(f"[{cuts._LETTERS}]", "".join(map(chr, range(0x10000))))
    assert len(letters) > 32_000
    for letter in letters:
        assert letter.isalpha() and unicodedata.combining(letter) == 0
        own = unicodedata.normalize(form, letter)
        assert unicodedata.normalize(form, "a\n" + letter) == "a\n" + own
        assert unicodedata.normalize(form, "a " + letter) == "a " + own


@pytest.mark.parametrize("adds_blank", [False, True])
def test_parts_of_a_text_have_its_tokens_with_a_sentencepiece_vocabulary(adds_blank, processor):
    described = sentencepiece_metadata(processor)
    described["tokenizer.ggml.add_space_prefix"] = adds_blank
    check_parts(tokenizer_from_gguf(described, "small.gguf"))


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("split", [False, True])
def test_parts_of_a_text_have_its_tokens_with_metaspace(scheme, split, processor):
    backend = tokenizer_from_gguf(sentencepiece_metadata(processor), "small.gguf")._backend
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    check_parts(Tokenizer(backend))


def test_parts_of_a_text_have_its_tokens_as_gemma_cuts_it(processor):
    backend = tokenizer_from_gguf(sentencepiece_metadata(processor), "small.gguf")._backend
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("\n\n", "\u2581\u2581")])
    check_parts(Tokenizer(backend))


def test_parts_of_a_text_have_its_tokens_in_the_demo_model(demo_model_path):
    metadata = GGUFFile(demo_model_path).metadata
    check_parts(tokenizer_from_gguf(metadata, demo_model_path))


def test_a_character_that_may_be_joined_with_a_blank_is_no_place_to_cut(processor):
    described = sentencepiece_metadata(processor)
    tokens = described["tokenizer.ggml.tokens"]
    tokens[-1] = "a\u2581"
    ours = tokenizer_from_gguf(described, "small.gguf")
    text = "a b" * 20
    assert [part for part in ours.encode_parts(text, 0) if len(part) > 1] == [ours.encode(text)[1:]]
    check_parts(ours, 300)


@pytest.mark.parametrize(
    "unlike",
    [
        pytest.param(dict(pre=steps(r"\p{N}")), id="no expression that cuts words"),
        pytest.param(dict(pre=steps(OTHERS[-8])), id="words that hold blanks"),
        pytest.param(dict(pre=steps(OTHERS[-7])), id="lines"),
        pytest.param(dict(pre=steps(r"\p{L}+x")), id="an expression that is not published"),
        pytest.param(dict(pre=steps(), normalizer=normalizers.Lowercase()), id="a normalizer"),
        pytest.param(dict(added=AddedToken("a b", normalized=False)), id="a token with a blank"),
        pytest.param(dict(added=AddedToken("\na", normalized=False)), id="one with a line end"),
        pytest.param(dict(added=AddedToken("x", rstrip=True)), id="one that takes blanks"),
    ],
)  # fmt: skip
def test_a_text_is_one_part_where_a_cut_may_change_its_tokens(unlike, metadata):
    pre = unlike.get("pre") or steps(use_regex=True)
    backend = hugging_face_backend(metadata, pre)
    backend.normalizer = unlike.get("normalizer")
    if "added" in unlike:
        backend.add_tokens([unlike["added"]])
    text = CORPUS[0] * 20
    before, whole, after = Tokenizer(backend).encode_parts(text, 0)
    assert (before, after) == ([], []) and whole == backend.encode(text).ids


@pytest.mark.parametrize(
    ("replaces", "steps"),
    [
        (True, [pre_tokenizers.Digits()]),
        (True, [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("n", "isolated")]),
        (False, [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.Metaspace()]),
    ],
)
def test_a_text_is_one_part_where_a_step_beside_the_blanks_splits_it(replaces, steps, processor):
    backend = tokenizer_from_gguf(sentencepiece_metadata(processor), "small.gguf")._backend
    backend.normalizer = normalizers.Replace(" ", "\u2581") if replaces else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    parts = Tokenizer(backend).encode_parts(CORPUS[0] * 20, 0, add_special_tokens=False)
    assert len(list(filter(None, parts))) == 1


def test_a_model_that_is_no_bpe_is_not_cut():
    text = "the fox jumps " * 20
    assert len(list(Tokenizer(metaspace_backend()).encode_parts(text, 0))) == 3


def test_a_tokenizer_that_does_more_than_add_tokens_is_given_the_whole(metadata):
    backend = hugging_face_backend(metadata, steps(use_regex=True))
    description = json.loads(backend.to_str())
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "B", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"B": {"id": "B", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    ours = Tokenizer(Backend.from_str(json.dumps(description)))
    assert list(ours.encode_parts("a b c", 0)) == [ours.encode("a b c")] == [[1]]


def test_a_part_is_as_long_as_asked_for_and_ends_at_the_next_cut(metadata):
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    text = "one two, three\nfour  five six"
    parts = [ours.decode(ids) for ids in ours.encode_parts(text, 5, add_special_tokens=False)]
    assert parts == ["", "one two,", " three\n", "four  five", " six", ""]


def test_a_part_that_has_no_end_is_refused_before_it_is_tokenized(metadata, monkeypatch):
    monkeypatch.setattr(cuts, "MAX_PART_BYTES", 1000)
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    text = "a b c" + "x" * 989 + "\u00e9" * 6
    parts = ours.encode_parts(text, 1, add_special_tokens=False)
    assert next(parts) == [] and [ours.decode(next(parts)) for _ in range(2)] == ["a", " b"]
    with pytest.raises(RequestError, match="1003 bytes without a blank .* 1000 are read as one"):
        next(parts)


def cost_s(ours, unit, num_bytes):
    text = unit * (num_bytes // len(unit.encode()))
    began = time.process_time()
    ours.encode(text)
    return time.process_time() - began


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "tekken", "qwen2", "deepseek-llm", "llama"])
def test_what_is_read_as_one_takes_time_in_proportion_to_its_length(kind, metadata, processor):
    """Runs without an end for the longest pieces, for merges, for marks that a form sorts."""
    described = {**metadata, "tokenizer.ggml.pre": kind}
    if kind == "llama":
        described = sentencepiece_metadata(processor)
    ours = tokenizer_from_gguf(described, "small.gguf")
    scrambled = "".join(random.Random(3).choices("abcdefghijklmnopqrstuvwxyz", k=1021))
    for unit in ("a", " ", "\n", "=-", "\u597d", "\U0001f642", "\u0301\u0327", scrambled):
        few, many = (cost_s(ours, unit, num_bytes) for num_bytes in (1 << 14, 1 << 17))
        assert many < 8 * 4 * few + 0.2, (unit, few, many)  # 64 times if it were the square
        assert many < 3, unit
