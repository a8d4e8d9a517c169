"""Where each family cuts text, on examples that a reader can check by eye."""

import itertools
import time

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from vocabularies import CORPUS

from marlin.text import pretokenizer
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
    ("smaug-bpe", "I'LL pay 1234", ["I", "'LL", " pay", " ", "123", "4"]),
    ("chatglm-bpe", "I'LL pay 1234", ["I", "'LL", " pay", " ", "123", "4"]),
    ("glm4", "I'LL pay 1234", ["I", "'LL", " pay", " ", "123", "4"]),
    ("gpt-4o", "I'LL payDay 1234", ["I'LL", " pay", "Day", " ", "123", "4"]),
    ("exaone4", "it's 1234", ["it", "'s", " 1234"]),
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
    assert len(cuts) == 10
    assert all(a != b for a, b in itertools.combinations(cuts.values(), 2))


def test_a_long_run_of_spaces_does_not_blow_up():
    for name in FAMILIES:
        assert pieces(name, " " * 20_000 + "x")[-1].endswith("x")


def described(*patterns):
    splits = [{"type": "Split", "pattern": {"Regex": pattern}} for pattern in patterns]
    return {"type": "Sequence", "pretokenizers": splits}


def test_the_published_patterns_are_taken_as_they_are():
    for pattern in pretokenizer.PUBLISHED - {r"\s+$"}:
        steps = described(pattern)
        assert not pretokenizer.make_safe(steps)
        assert steps == described(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "[^\r\n\\p{L}\\p{N}]?\\p{L}+",
        r"[^\u000d\x{A}\p{L}\p{N}]?\p{L}+",
    ],
)
def test_one_pattern_in_two_spellings_is_one(pattern):
    assert pretokenizer.normalised(pattern) == r"[^\r\n\p{L}\p{N}]?\p{L}+"


@pytest.mark.parametrize("kept", [r"[\-a]", r"\]", r"\\'", r"\.", "\\"])
def test_what_a_backslash_means_stays(kept):
    assert pretokenizer.normalised(kept) == kept


@pytest.mark.parametrize(
    "pattern", [r"(?:q|q){18}[^q]", r"\p{N}{1,4}", pretokenizer.LLAMA3 + "|x", "", r"\s+\$"]
)
def test_a_pattern_that_nobody_published_is_refused_unless_it_is_allowed(pattern):
    steps = described(r"\p{N}", pattern)
    with pytest.raises(pretokenizer.UnknownPatternError) as refused:
        pretokenizer.make_safe(steps)
    assert str(refused.value) == pattern
    assert not pretokenizer.make_safe(steps, allow_unknown=True)
    assert pretokenizer.make_safe([], False) is False


def test_blanks_at_the_end_are_found_in_linear_time_and_are_the_same():
    steps = described(r"\p{N}", r"\s+$")
    assert pretokenizer.make_safe(steps)
    assert steps == described(r"\p{N}", pretokenizer.BLANK_END)
    ours, theirs = (Split(Regex(p), "isolated") for p in (pretokenizer.BLANK_END, r"\s+$"))
    words = ["a", " ", "\n", "\t ", "  ", "\u3000", "b c", "\r\n"]
    for count in range(5):
        for parts in itertools.product(words, repeat=count):
            text = "".join(parts)
            assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text), repr(text)


RUNS = [
    *("\t ", " ", "\n", " \n", "1", "a", "A", "aA", ".", "a.", " a", "\u02b0", "a\u0301", "\u0301"),
    *("\u4e00", "\uac00", "'s", "\r\n", "1,", "\u2026"),
]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", sorted(pretokenizer.PUBLISHED - {r"\s+$"}))
def test_a_published_pattern_takes_linear_time(pattern):
    split = Split(Regex(pattern), "isolated")
    for run in RUNS:
        # Backtracking over half of these characters at each of them takes seconds.
        text = run * (60_000 // len(run)) + "\u2603"
        start = time.process_time()
        split.pre_tokenize_str(text)
        assert time.process_time() - start < 2, repr(run)
