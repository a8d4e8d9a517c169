"""How each family of byte-level vocabularies cuts text before BPE.

Owns the families' rules, by the name a GGUF file gives them (`tokenizer.ggml.pre`), and the regular
expressions that a tokenizer.json may hold; refuses to know vocabularies. A family is here only if
its rules are known: a near miss would quietly give other tokens than the model was trained on. An
expression is here only if it is published, and if its time grows with the length of a text: one
that somebody made up can take a server for minutes with a line of text.

Source: the `normalizer`, `pre_tokenizer` and `model.ignore_merges` of the tokenizer.json published
with each family. Characters outside ASCII are spelled by number, for several look alike.
"""

import re
import sys
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tokenizers import Regex
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split


def _characters(runs):
    """Runs of code points, hexadecimal, as the inside of a character class."""
    return "".join("-".join(chr(int(end, 16)) for end in run.split("-")) for run in runs.split())


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_O200K_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    rf"{_SUFFIX}?|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+"
    rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_SUFFIX}?"
)
O200K = _O200K_WORDS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
CJK_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_AND_HANGUL)
# The letters with case that DeepSeek LLM lists one by one; not any Unicode version's \p{L&}.
CASED_LETTERS = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F "
    "386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD "
    "1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 "
    "1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 "
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 "
    "2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 "
    "2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 "
    "A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
# Published as \s+$, which is tried again at every blank of a run; what it finds is the same.
BLANK_END = r"(?<!\s)\s+$"
DEEPSEEK_LLM = (
    r"[\r\n]",
    r"\s?[" + _characters(CASED_LETTERS) + "]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    BLANK_END,
    CJK_AND_HANGUL,
)


@dataclass(frozen=True)
class Family:
    """The rules of one family, in the order they apply.

    Attributes:
        composes: put the text into Unicode's composed form (NFC) first.
        splits: patterns applied in turn; every match and every gap becomes a piece.
        single_digits: make every digit a piece of its own.
        gpt2: end with GPT-2's own pattern.
        whole_words: a piece that is itself a token needs no merges.
        adds_bos: what a file means that does not say whether a text starts with the bos token.
    """

    composes: bool = False
    splits: tuple = ()
    single_digits: bool = False
    gpt2: bool = False
    whole_words: bool = False
    adds_bos: bool = False

    def normalizer(self):
        return NFC() if self.composes else None

    def pre_tokenizer(self):
        steps: list[Any] = [Split(Regex(split), "isolated") for split in self.splits]
        if self.single_digits:
            steps.append(Digits(individual_digits=True))
        steps.append(ByteLevel(add_prefix_space=False, use_regex=self.gpt2))
        return Sequence(steps)


_GPT2 = Family(gpt2=True)
_STARCODER = Family(single_digits=True, gpt2=True)
_LLAMA3 = Family(splits=(LLAMA3,), whole_words=True, adds_bos=True)
_QWEN2 = Family(composes=True, splits=(QWEN2,))
FAMILIES = MappingProxyType(
    {
        "default": _GPT2,
        "gpt-2": _GPT2,
        "olmo": Family(composes=True, gpt2=True),
        "smollm": _STARCODER,
        "starcoder": _STARCODER,
        "refact": _STARCODER,
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "llama-bpe": _LLAMA3,
        "lfm2": _LLAMA3,
        # Phi-4 and OLMo 2; SmolLM3; GLM-4 of both kinds of checkpoint.
        "dbrx": Family(splits=(LLAMA3,)),
        "smaug-bpe": Family(splits=(LLAMA3,)),
        "chatglm-bpe": Family(splits=(LLAMA3,)),
        "glm4": Family(splits=(LLAMA3,), whole_words=True),
        # Phi-4-mini, gpt-oss; EXAONE 4.
        "gpt-4o": Family(splits=(O200K,)),
        "exaone4": _GPT2,
        "qwen2": _QWEN2,
        "deepseek-r1-qwen": _QWEN2,
        "qwen35": Family(composes=True, splits=(QWEN35,)),
        "tekken": Family(splits=(TEKKEN,), whole_words=True, adds_bos=True),
        "deepseek-llm": Family(splits=DEEPSEEK_LLM, single_digits=True),
        "deepseek-coder": Family(splits=DEEPSEEK_CODER, single_digits=True),
        "deepseek-v3": Family(splits=DEEPSEEK_V3),
    }
)

# Expressions of tokenizer.json files that are no family's here. None of them takes more than linear
# time on runs of any class of characters; two published ones do and are left out, those that cut
# runs of digits from the right.
# Each of these cuts words at blanks and line ends.
WORDS = (
    # GPT-2, where it is spelled out.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # cl100k as tiktoken spells it, and Ling's.
    *(
        rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|{numbers}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        for numbers in (r"\p{N}{1,3}", r"\p{N}")
    ),
    # Seed-Coder, MiniCPM 5, Jais 2.
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    + "|".join(rf"\s{{{width}}}(?!\S)" for width in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
    + r"|\s{1}",
    # BLOOM and Viking.
    " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
)
DIGITS = ("[0-9][0-9][0-9]", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"\d", r"\d+")
OTHERS = (
    *(*WORDS, *DIGITS),
    # EXAONE MoE, whose words may hold blanks, and Laguna, whose pieces are lines.
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\n]+|[\n]+",
    # Normalizers made from SentencePiece models.
    *(" {2,}", r"\s{2,}|[\n\r\t]", r"[\n\r\t]", r"\s+", r"\n", "\\A\u2581"),
)

_SPELLED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x\{([0-9a-fA-F]{1,6})\}|(.))|([\r\n\t])", re.DOTALL)
_ESCAPED_FOR_NOTHING = frozenset("'\"/,!#%&:;<=>@`~_ ")
_CONTROLS = MappingProxyType({"\r": r"\r", "\n": r"\n", "\t": r"\t"})


def normalised(pattern: str) -> str:
    """A pattern in the one spelling of several that mean the same: characters as themselves, but
    for line ends and tabs, and no backslash where it changes nothing."""

    def spelled(match):
        code = match[1] or match[2]
        char = chr(min(int(code, 16), sys.maxunicode)) if code else match[4] or match[3]
        if match[3] and char not in _ESCAPED_FOR_NOTHING:
            return match[0]
        return _CONTROLS.get(char, char)

    return _SPELLED.sub(spelled, pattern)


def _family_patterns():
    return {split for family in FAMILIES.values() for split in family.splits}


_BLANK_END_AS_PUBLISHED = r"\s+$"
PUBLISHED = frozenset(map(normalised, {*_family_patterns(), *OTHERS, _BLANK_END_AS_PUBLISHED}))


class UnknownPatternError(ValueError):
    """A regular expression that is not PUBLISHED; str() is the expression."""


def make_safe(steps: Any, allow_unknown: bool = False) -> bool:
    """Look at the regular expressions of one part of a tokenizer.json, and put the linear one in
    place of the published one that is not.

    Args:
        steps: decoded JSON; changed in place.

    Returns:
        whether it was changed.

    Raises:
        UnknownPatternError: unless allow_unknown.
    """
    is_changed = False
    inner = steps.items() if isinstance(steps, dict) else enumerate(steps)
    for name, value in inner:
        if isinstance(value, (dict, list)):
            is_changed |= make_safe(value, allow_unknown)
        elif name == "Regex" and value == _BLANK_END_AS_PUBLISHED:
            steps[name], is_changed = BLANK_END, True
        elif name == "Regex" and not allow_unknown and normalised(str(value)) not in PUBLISHED:
            raise UnknownPatternError(value)
    return is_changed
