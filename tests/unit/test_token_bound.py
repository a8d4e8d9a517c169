"""Tokenizer.min_tokens: never more than there are, and 0 wherever text could vanish."""

import json
import unicodedata

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
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

from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.tokenizer import Tokenizer
from marlin.weights.gguf import GGUFFile

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}  # fmt: skip
MANY = 50_000


@pytest.fixture(scope="module")
def metadata():
    return byte_level_metadata("gpt-2")


@pytest.fixture
def backend(metadata):
    return hugging_face_backend(metadata, [BYTE_LEVEL])


def num_tokens(tokenizer, text):
    return len(tokenizer.encode(text, add_special_tokens=False))


def check_bound(ours):
    characters = "".join(map(chr, range(0x400)))  # some models have no token for a control byte
    texts = [*CORPUS, *SPECIAL_TEXT, characters, " " * MANY, "\ud83d\ude42" * 99, "\ud800" * 99]
    for text in texts:
        assert ours.min_tokens(text) <= num_tokens(ours, text)
    assert ours.min_tokens("") == 0
    assert ours.min_tokens("1" * MANY) > 500


def test_no_text_has_fewer_tokens_than_the_bound(metadata):
    check_bound(tokenizer_from_gguf(metadata, "small.gguf"))


def test_no_text_has_fewer_tokens_than_the_bound_of_the_demo_model(demo_model_path):
    metadata = GGUFFile(demo_model_path).metadata
    check_bound(tokenizer_from_gguf(metadata, demo_model_path))


def test_the_bound_is_the_bytes_over_those_of_the_longest_token(backend):
    backend.add_tokens([AddedToken("é" * 50, normalized=False)])
    ours = Tokenizer(backend)
    assert [ours.min_tokens("é" * count) for count in (50, 51, 500)] == [1, 2, 10]
    assert num_tokens(ours, "é" * 500) == 10


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_an_added_token_that_takes_the_blanks_beside_it_leaves_no_bound(backend, side):
    backend.add_tokens([AddedToken("<cut>", normalized=False, **{side: True})])
    ours = Tokenizer(backend)
    blanks = " " * MANY
    text = blanks + "<cut>" if side == "lstrip" else "<cut>" + blanks
    assert num_tokens(ours, text) == 1
    assert ours.min_tokens(text) == 0


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [
        (normalizers.Strip(), " " * MANY + "a"),
        (normalizers.Replace(Regex("a+"), "a"), "a" * MANY),
        (normalizers.Replace("aaaa", "a"), "a" * MANY),
        (normalizers.Lowercase(), "a" * MANY),
        (normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()]), "e\u0301" * MANY),
    ],
)
def test_a_normalizer_that_may_drop_text_leaves_no_bound(backend, normalizer, text):
    backend.normalizer = normalizer
    assert Tokenizer(backend).min_tokens(text) == 0


@pytest.mark.parametrize(
    "dropping",
    [
        pre_tokenizers.Split(" ", "removed"),
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.CharDelimiterSplit(" "),
    ],
)
def test_a_pre_tokenizer_that_drops_separators_leaves_no_bound(backend, dropping):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([dropping, byte_level])
    ours = Tokenizer(backend)
    assert num_tokens(ours, "a" + " " * MANY) == 1
    assert ours.min_tokens("a" + " " * MANY) == 0


def test_bytes_that_are_no_token_do_not_count(backend):
    description = json.loads(backend.to_str())
    model = description["model"]
    model["vocab"] = {
        piece: id for piece, id in model["vocab"].items() if "z" not in piece or id < 5
    }
    model["merges"] = [pair for pair in model["merges"] if "z" not in "".join(pair)]
    ours = Tokenizer(Backend.from_str(json.dumps(description)))
    assert num_tokens(ours, "z" * MANY) == 0
    assert ours.min_tokens("z" * MANY) == 0
    assert ours.min_tokens("az" * MANY) == ours.min_tokens("a" * MANY) > 1000
    assert num_tokens(ours, "az" * MANY) >= ours.min_tokens("az" * MANY)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_no_text_has_fewer_tokens_than_the_bound_after_a_form_of_unicode(backend, form):
    backend.normalizer = getattr(normalizers, form)()
    ours = Tokenizer(backend)
    check_bound(ours)
    for text in (
        "\U0001d41a",
        "e\u0301",
        "\u1fbe\u0308\u0301",
        "\u2126\u0313\u0342\u0345",
        "\u212a",
    ):
        assert 0 < ours.min_tokens(text * MANY) <= num_tokens(ours, text * MANY)
    # ASCII is no other in any form: the bound is that without a normalizer.
    backend.normalizer = None
    assert ours.min_tokens("a" * MANY) == Tokenizer(backend).min_tokens("a" * MANY)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_no_form_of_unicode_makes_a_text_four_times_shorter_than_that(form):
    """Each text is made of characters that decompose; what its decomposed characters may have been
    is at most so many bytes each, and a form only joins them."""
    decomposed, bytes_of, parts_of = form.replace("C", "D"), {}, {}
    for char in (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000):
        parts = unicodedata.normalize(decomposed, char)
        if parts != char:
            parts_of[char] = parts
        if parts != char and len(parts) == 1:
            bytes_of[parts] = max(bytes_of.get(parts, len(parts.encode())), len(char.encode()))
    # Every other character is its own decomposition, and nothing else's.
    for char, parts in (parts_of | {part: part for part in bytes_of}).items():
        before = sum(bytes_of.get(part, len(part.encode())) for part in parts)
        assert len(char.encode()) <= before  # so that bytes_of counts every text in full
        if unicodedata.normalize(form, char) == char:
            assert before <= 4 * len(char.encode())


def test_no_text_has_fewer_tokens_than_the_bound_where_pieces_fall_back_to_bytes():
    ours = tokenizer_from_gguf(sentencepiece_metadata(train_sentencepiece()), "small.gguf")
    check_bound(ours)
    assert 0 < ours.min_tokens("\U0001f642" * MANY) <= num_tokens(ours, "\U0001f642" * MANY)


def test_pieces_that_are_neither_bytes_nor_fall_back_to_them_have_no_bound(backend):
    backend.pre_tokenizer = pre_tokenizers.Digits()
    assert Tokenizer(backend).min_tokens(" " * MANY) == 0


def test_a_run_of_unknown_characters_may_be_one_token_where_a_byte_has_no_piece(backend):
    description = json.loads(metaspace_backend().to_str())
    description["model"]["byte_fallback"] = True
    description["model"]["fuse_unk"] = True
    assert "<0x00>" not in description["model"]["vocab"]
    assert Tokenizer(Backend.from_str(json.dumps(description))).min_tokens("a" * MANY) == 0


def test_a_word_that_is_unknown_as_a_whole_has_no_bound():
    words = Backend(models.WordLevel({"a": 0, "<unk>": 1, "z": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = Tokenizer(words)
    assert num_tokens(ours, "z" * MANY) == 1
    assert ours.min_tokens("z" * MANY) == 0
