"""Where a long text can be cut so that its parts have the tokens of the whole.

Nothing stops a tokenizer, and it takes up to 120 bytes of memory a byte: in parts, a text takes the
memory of one, and whoever waits is asked between two. Owns why a cut changes nothing; refuses to
know what tokens are.

A cut is before a single blank with a letter behind it, or after a single line end with a letter
behind it. There every published expression that cuts words does, whatever comes before and after;
no form of Unicode joins the two sides; and where there is no such expression (SentencePiece), no
merge leads across. tests/unit/test_cuts.py tries all of that.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from marlin.errors import RequestError
from marlin.text.pretokenizer import DIGITS, FAMILIES, WORDS, normalised

SPACE_PIECE = "\u2581"

# Of one part: 120 MB of memory, and a second or two of processor time.
MAX_PART_BYTES = 1 << 20

# Letters to every version of Unicode, which no form of it joins with what stands before them.
_LETTERS = "A-Za-z\u0400-\u0481\u048a-\u04ff\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
# What may stand before a cut: these, digits and the marks that end a phrase.
_BEFORE = "!-~" + _LETTERS[6:] + "\u2019\u201d\u3001\u3002\u300d\uff01\uff0c\uff1a\uff1b\uff1f"
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def _words_alone(patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(pattern for pattern in map(normalised, patterns) if pattern not in DIGITS)


# Sequences of expressions, those for digits aside, that cut where a cut is.
_CUTTING = frozenset(
    {
        *(_words_alone(family.splits) for family in FAMILIES.values()),
        *(_words_alone([pattern]) for pattern in WORDS),
    }
) - {()}


@dataclass(frozen=True, slots=True)
class Cuts:
    """The cuts of one tokenizer.

    Attributes:
        pattern: finds the blank that a cut is before, or the line end that it is behind.
        drops_blank: the tokenizer puts a blank before every text, so that of the next part is left
            out.
    """

    pattern: re.Pattern[str]
    drops_blank: bool

    def parts(self, text: str, num_characters: int) -> Iterator[str]:
        """A text in parts of at least num_characters but for the last, cut at the next cut."""
        start = 0
        while cut := self.pattern.search(text, start + max(1, num_characters)):
            is_line = cut[0] == "\n"
            yield text[start : cut.end() if is_line else cut.start()]
            start = cut.end() if is_line or self.drops_blank else cut.start()
        yield text[start:]


def cuts_of(
    backend: Backend, added: Collection[AddedToken], pieces: Iterable[str] | None
) -> Cuts | None:
    """The cuts that are certain for a tokenizer, or None for none.

    Args:
        added: its added tokens.
        pieces: those of its model, or None to ask it.
    """
    model = backend.model
    contents = [token.content for token in added]
    is_plain = isinstance(model, BPE) and not (
        model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix
    )
    # No added token may lie across a cut, or take the blank beside it.
    across = re.compile(rf"[^\s{SPACE_PIECE}][ {SPACE_PIECE}]|\n\S")
    if not is_plain or any(map(across.search, contents)):
        return None
    if any(token.lstrip or token.rstrip for token in added):
        return None
    prepends, replaces = _normalizing(_steps(backend.normalizer, "normalizers"))
    if prepends is None:
        return None
    steps = _steps(backend.pre_tokenizer, "pretokenizers")
    if steps and steps[-1]["type"] == "ByteLevel":
        if prepends or replaces or not _cuts_words(steps):
            return None
        return _cuts(lines=not steps[-1]["add_prefix_space"])
    metaspace = [step for step in steps if step["type"] == "Metaspace"]
    if not (replaces or metaspace) or model.ignore_merges:
        return None
    if any(step not in metaspace and not (replaces and _is_idle(step)) for step in steps):
        return None
    if any(step["replacement"] != SPACE_PIECE for step in metaspace):
        return None
    if prepends and any(re.match(f"[{_LETTERS}]", content) for content in contents):
        return None
    written = "\0".join(pieces or backend.get_vocab(with_added_tokens=False))
    joined = set("".join(re.findall(f"[^\0](?={SPACE_PIECE})", written)))
    has_lines = re.search(rf"\n[{_LETTERS}]", written) is not None
    begins = prepends or any(step["prepend_scheme"] != "never" for step in metaspace)
    return _cuts(joined, lines=not (has_lines or begins), drops_blank=prepends)


def checked(part: str) -> str:
    """A part that can be tokenized in bounded time and memory; RequestError for another."""
    num_bytes = len(part.encode())
    if num_bytes > MAX_PART_BYTES:
        raise RequestError(
            f"the prompt has {num_bytes} bytes without a blank or a line end at which it could be "
            f"tokenized in parts; {MAX_PART_BYTES} are read as one"
        )
    return part


def steps_of(component: Any, name: str) -> list[dict[str, Any]]:
    """The settings of a component's steps; `name` is what a sequence calls them."""
    state = json.loads(component.__getstate__()) if component is not None else {}
    return (state.get(name) or [{}]) if state.get("type") == "Sequence" else [state]


def _steps(component, name):
    return [step for step in steps_of(component, name) if step]


def _cuts(joined=(), *, lines, drops_blank=False):
    """joined: characters that may be in one token with a blank behind them."""
    other = rf"(?<![{re.escape(''.join(sorted(joined)))}] )" if joined else ""
    where = rf" (?<=[{_BEFORE}] ){other}"
    if lines:
        where = rf"(?:{where}|\n(?<=[{_BEFORE}]\n))"
    return Cuts(re.compile(rf"{where}(?=[{_LETTERS}])"), drops_blank)


def _normalizing(steps):
    """(whether a blank is put before a text, or None where a cut might change more; whether blanks
    become SPACE_PIECE)."""
    prepends = replaces = False
    for step in steps:
        if step == {"type": "Prepend", "prepend": SPACE_PIECE}:
            prepends = True
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_PIECE}:
            replaces = True
        elif step["type"] not in _FORMS:
            return None, False
    return (prepends if replaces or not prepends else None), replaces


def _cuts_words(steps):
    """Whether a byte-level pre-tokenizer has a piece end at every cut."""
    patterns = []
    for step in steps[:-1]:
        is_known = step["type"] == "Split" and step["behavior"] == "Isolated"
        if is_known and not step["invert"] and "Regex" in step["pattern"]:
            patterns.append(step["pattern"]["Regex"])
        elif step["type"] != "Digits":
            return False
    words = _words_alone(patterns)
    return words in _CUTTING or (steps[-1]["use_regex"] and words == ())


def _is_idle(step):
    """Whether it cuts at blanks, of which there are none by then."""
    return step["type"] == "Split" and step["pattern"] == {"String": " "}
