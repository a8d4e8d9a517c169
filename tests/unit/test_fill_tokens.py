"""Tokens that mark a gap: which a vocabulary has, and what a prompt becomes of them."""

import pytest
from vocabularies import byte_level_metadata, sentencepiece_metadata, train_sentencepiece

from marlin.engine.gaps import encode_gap
from marlin.engine.served_model import ServedModel
from marlin.text.gaps import FillTokens, Gap, fill_tokens
from marlin.text.gguf_tokenizer import PREFIX, tokenizer_from_gguf

FAMILIES = {
    "qwen2.5-coder": (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], False),
    "starcoder": (["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], False),
    "codellama": (["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"], False),
    "deepseek-coder": (
        [
            "<\uff5cfim\u2581begin\uff5c>",
            "<\uff5cfim\u2581hole\uff5c>",
            "<\uff5cfim\u2581end\uff5c>",
        ],
        False,
    ),
    "codestral": (["[PREFIX]", "[SUFFIX]"], True),
}
MARKS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


def with_tokens(metadata, texts, kind=3):
    """A vocabulary with more tokens, and the ids that they have."""
    tokens = [*metadata[PREFIX + "tokens"], *texts]
    old = len(tokens) - len(texts)
    types = [*list(metadata.get(PREFIX + "token_type", [1] * old)), *[kind] * len(texts)]
    more = {PREFIX + "tokens": tokens, PREFIX + "token_type": types}
    if PREFIX + "scores" in metadata:
        more[PREFIX + "scores"] = [*metadata[PREFIX + "scores"], *[0.0] * len(texts)]
    return {**metadata, **more}, list(range(old, len(tokens)))


@pytest.fixture(scope="module")
def small():
    return byte_level_metadata("qwen2")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_marks_of_a_family_are_found_by_their_texts(family):
    texts, suffix_first = FAMILIES[family]
    found = fill_tokens({text: 10 + i for i, text in enumerate(texts)}.get)
    middle = 12 if len(texts) == 3 else None
    assert found == FillTokens(10, 11, middle, suffix_first)
    assert fill_tokens(dict.fromkeys(texts[1:], 1).get) is None


def test_a_projects_marks_come_with_a_gaps():
    texts = [*MARKS, "<|repo_name|>", "<|file_sep|>"]
    assert fill_tokens({text: i for i, text in enumerate(texts)}.get) == FillTokens(
        0, 1, 2, False, 3, 4
    )


@pytest.mark.parametrize(
    "keys", [("prefix", "suffix", "middle"), ("fim_pre", "fim_suf", "fim_mid")]
)
def test_keys_of_a_gguf_file_name_the_marks_whatever_they_are_called(small, keys):
    metadata, ids = with_tokens(small, ["<p>", "<s>", "<m>"])
    named = {f"{PREFIX}{key}_token_id": id for key, id in zip(keys, ids, strict=True)}
    assert tokenizer_from_gguf({**metadata, **named}, "a.gguf").fill_tokens == FillTokens(*ids)
    assert tokenizer_from_gguf(metadata, "a.gguf").fill_tokens is None


@pytest.fixture
def served():
    class Bounds:
        max_context_tokens, vocab_size = 1000, 10**6

    models = []

    def serve(metadata):
        models.append(ServedModel("a", Bounds(), tokenizer_from_gguf(metadata, "a.gguf")))
        return models[-1]

    yield serve
    for model in models:
        model.reader.close()


@pytest.mark.parametrize("kind", [3, 4])
def test_text_around_a_gap_spells_no_mark_and_no_special_token(small, served, kind):
    metadata, (prefix, suffix, middle) = with_tokens(small, MARKS, kind)
    model = served(metadata)
    plain = model.tokenizer.encode("x<|fim_suffix|>y", parse_special=False)
    assert suffix not in plain
    ids = encode_gap(model, Gap("x<|fim_suffix|>y", "z"), "suffix", lambda: None)
    assert ids == [prefix, *plain, suffix, *model.tokenizer.encode("z"), middle]


def test_sentencepiece_puts_no_blank_before_the_text_around_a_gap(served):
    processor = train_sentencepiece()
    metadata, (prefix, suffix, middle) = with_tokens(
        sentencepiece_metadata(processor), ["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"]
    )
    model = served(metadata)
    ids = encode_gap(model, Gap("the end", " of it"), "suffix", lambda: None)
    assert ids[:2] == [processor.bos_id(), prefix] and ids[-1] == middle
    before, after = ids[2 : ids.index(suffix)], ids[ids.index(suffix) + 1 : -1]
    assert b"".join(map(model.tokenizer.token_bytes, before)) == b"the end"
    assert b"".join(map(model.tokenizer.token_bytes, after)) == b" of it"
