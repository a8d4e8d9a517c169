"""Gaps in a text that a model fills: which tokens mark one, and what stands around it.

Knows the names of marks; refuses to know how a text is tokenized.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from marlin.files.fields import Fields

# What code models mark the gap in a text with: (prefix, suffix, middle) by their texts, and whether
# the suffix comes first. Without a middle the model goes on behind the prefix.
_FILL_NAMES: tuple[tuple[str, str, str | None, bool], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", False),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", False),  # StarCoder, StableCode, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>", False),  # SantaCoder
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", False),  # CodeLlama
    (
        "<\uff5cfim\u2581begin\uff5c>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<\uff5cfim\u2581end\uff5c>",
        False,
    ),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", False),  # GLM
    ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", True),  # Seed-Coder
    ("[PREFIX]", "[SUFFIX]", None, True),  # Codestral
)
# Two spellings of the keys of GGUF files that name what marks a gap.
_FILL_KEYS = (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))
# Before a project's name, and before a file's.
_PROJECT_NAMES = (("<|repo_name|>", "<|file_sep|>"), ("<repo_name>", "<file_sep>"))


class FillTokens(NamedTuple):
    """Token ids that mark a gap in a text, which the model is to fill.

    Attributes:
        middle: behind the text around the gap; None for none.
        suffix_first: the suffix stands before the prefix.
        project, file: before a project's name and a file's; both or neither.
    """

    prefix: int
    suffix: int
    middle: int | None
    suffix_first: bool = False
    project: int | None = None
    file: int | None = None

    @property
    def ids(self) -> set[int]:
        marks = self.prefix, self.suffix, self.middle, self.project, self.file
        return {id for id in marks if id is not None}


def fill_tokens(token_to_id: Callable[[str], int | None]) -> FillTokens | None:
    """Those of a vocabulary by their texts, or None."""
    for prefix, suffix, middle, suffix_first in _FILL_NAMES:
        ids = [token_to_id(text) for text in (prefix, suffix, middle) if text is not None]
        known = [id for id in ids if id is not None]
        if len(known) == len(ids):
            pairs = ([token_to_id(text) for text in pair] for pair in _PROJECT_NAMES)
            project = next((pair for pair in pairs if None not in pair), (None, None))
            marks = known[0], known[1], known[2] if middle else None
            return FillTokens(*marks, suffix_first, *project)
    return None


def named_fill_tokens(fields: Fields, last: int) -> FillTokens | None:
    """What the keys of a GGUF file name, or None: only some models' files have them.

    Args:
        fields: those that begin with `tokenizer.ggml.`.
        last: the highest token id.
    """

    def id_of(*names):
        ids = (fields.count(f"{name}_token_id", None, minimum=0, maximum=last) for name in names)
        return next((id for id in ids if id is not None), None)

    prefix, suffix, middle = (id_of(*names) for names in _FILL_KEYS)
    if prefix is None or suffix is None:
        return None
    project = id_of("fim_rep"), id_of("fim_sep")
    project = (None, None) if None in project else project
    return FillTokens(prefix, suffix, middle, middle is None, *project)


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap in a text.

    Attributes:
        before, after: the text around it.
        files: (name, text) of what else there is to know.
    """

    before: str
    after: str
    files: Sequence[tuple[str, str]] = ()

    def parts(self, marks: "FillTokens") -> Iterator[tuple[str, list[int]]]:
        """(text, the ids that stand before it), in order."""
        if self.files and marks.file is not None and marks.project is not None:
            yield "project\n", [marks.project]
            for name, text in (*self.files, ("file", "")):
                yield f"{name}\n{text}", [marks.file]
        elif self.files:
            yield "".join(f"{text}\n\n" for _, text in self.files), []
        around = [(self.before, [marks.prefix]), (self.after, [marks.suffix])]
        yield from reversed(around) if marks.suffix_first else around
        if marks.middle is not None:
            yield "", [marks.middle]
