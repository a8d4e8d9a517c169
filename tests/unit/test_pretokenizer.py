"""Where each family cuts text, on examples that a reader can check by eye."""

import itertools

import pytest
from vocabularies import CORPUS

from marlin.text.pretokenizer import FAMILIES
from marlin.text.tokenizer import BYTE_OF_CHAR


def pieces(family, text):
    cut = FAMILIES[family].pre_tokenizer().pre_tokenize_str(text)
    return [bytes(BYTE_OF_CHAR[char] for char in piece).decode() for piece, _ in cut]


EXAMPLES = [
    ("gpt-2", "I'll pay 123", ["I", "'ll", " pay", " 123"]),
    ("gpt-2", "a   b\n\n", ["a", "  ", " b", "\n\n"]),
    ("smollm", "pay 123", ["pay", " ", "1", "2", "3"]),
    ("smollm", "x  4", ["x", "  ", "4"]),
    ("starcoder", "v2.0", ["v", "2", ".", "0"]),
    ("refact", "v2.0", ["v", "2", ".", "0"]),
    ("llama-bpe", "I'LL pay 12345", ["I", "'LL", " pay", " ", "123", "45"]),
    ("llama-bpe", "(foo)\n\n  bar", ["(foo", ")\n\n", " ", " bar"]),
    ("dbrx", "I'LL pay 1234", ["I", "'LL", " pay", " ", "123", "4"]),
    ("qwen2", "I'LL pay 123", ["I", "'LL", " pay", " ", "1", "2", "3"]),
    ("qwen2", "\tx;\r\ny", ["\tx", ";\r\n", "y"]),
    ("qwen2", "नमस्ते", ["नमस", "्त", "े"]),
    ("qwen35", "नमस्ते", ["नमस्ते"]),
    ("tekken", "camelCaseHTTP 12", ["camel", "Case", "HTTP", " ", "1", "2"]),
    ("tekken", "I'll a/b//", ["I", "'ll", " a", "/b", "//"]),
    ("deepseek-v3", "x1234 中文と (f) b", ["x", "123", "4", " ", "中文と", " (", "f", ")", " b"]),
    ("deepseek-v3", "don't .get", ["don", "'t", " .", "get"]),
    ("deepseek-coder", "if x1:\n 中", ["if", " x", "1", ":", "\n", " ", "中"]),
    ("deepseek-llm", "if x12 ,中文\n", ["if", " x", "1", "2", " ,", "中文", "\n"]),
    ("deepseek-llm", "ñandú été", ["ñ", "and", "ú", " é", "t", "é"]),
]


@pytest.mark.parametrize(("family", "text", "expected"), EXAMPLES)
def test_a_family_cuts_where_its_published_rules_do(family, text, expected):
    assert pieces(family, text) == expected


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_family_loses_or_changes_text(family):
    for text in CORPUS:
        assert "".join(pieces(family, text)) == text


def test_families_with_different_rules_cut_the_corpus_differently():
    cuts = {}
    for family in FAMILIES.values():
        steps = (family.splits, family.single_digits, family.gpt2)
        cuts[steps] = [family.pre_tokenizer().pre_tokenize_str(text) for text in CORPUS]
    assert len(cuts) == 9
    assert all(a != b for a, b in itertools.combinations(cuts.values(), 2))


def test_a_long_run_of_spaces_does_not_blow_up():
    for name in FAMILIES:
        assert pieces(name, " " * 20_000 + "x")[-1].endswith("x")
