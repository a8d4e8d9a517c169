"""An answer's text as what it says: thoughts, content and tool calls, while it arrives.

Owns how thoughts are told from the rest. How a call is written is a family's (tool_calls/). Knows
no tokens and no API.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marlin.text.grammar import constraint
from marlin.text.tool_calls.family import Family
from marlin.text.tool_calls.scanner import Part, Reading, Scanner


@dataclass(frozen=True, slots=True)
class Thought:
    """What a family of models writes around its thoughts."""

    opening: str
    closing: str
    # What closes a thought that must end.
    forced: str

    def is_open_at_end(self, prompt: str) -> bool:
        """Whether an answer to this prompt begins inside a thought."""
        return prompt.rstrip().endswith(self.opening.rstrip())

    def is_open_in(self, answer: str) -> bool:
        """Whether what goes on from the beginning of an answer is inside a thought."""
        return answer.lstrip().startswith(self.opening) and self.closing not in answer

    def read(self, scan: Scanner, is_open: bool) -> Reading[None]:
        """Read a thought, if the answer begins with one."""
        if is_open:
            scan.turn(thinking=True)
            yield from scan.take(self.opening)  # some models write it once more
        elif (yield from scan.take(self.opening)):
            scan.turn(thinking=True)
        else:
            return
        yield from scan.until((self.closing,), scan.think)
        scan.turn()


# A template that knows thoughts names the text that ends one.
THOUGHTS = (
    Thought("<think>", "</think>", "\n</think>\n\n"),
    Thought("[THINK]", "[/THINK]", "[/THINK]"),
    Thought("<|channel>thought\n", "<channel|>", "\n<channel|>"),
    Thought("<seed:think>", "</seed:think>", "</seed:think>"),
    Thought("<mm:think>", "</mm:think>", "\n</mm:think>\n\n"),
)
# Of a family that reads thoughts itself: any number of messages, and then the answer's.
ON_CHANNELS = Thought(
    *("<|channel|>analysis<|message|>", "<|end|>"),
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)


def thought_of(template: str) -> Thought | None:
    """How the model of a template writes thoughts; None where the template knows none."""
    return next((thought for thought in THOUGHTS if thought.closing in template), None)


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a model writes its answers."""

    thought: Thought | None = None
    family: Family | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that a reader must see, though they may be special tokens."""
        thought = (self.thought.opening, self.thought.closing) if self.thought else ()
        return (*thought, *(self.family.markers if self.family else ()))


class AnswerReader:
    """Reads one answer.

    Args:
        form: of the model's answers.
        tools: {name: JSON schema of its arguments} of those that may be called.
        thinks: the answer begins inside a thought.
        max_calls: the answer is over after so many; None is no limit.

    Attributes:
        is_full: max_calls are complete, and what follows is not read.
    """

    def __init__(
        self,
        form: AnswerForm,
        tools: Mapping[str, Any],
        thinks: bool = False,
        max_calls: int | None = None,
    ):
        self.is_full = False
        self._form, self._thinks = form, thinks
        self._max_calls = max_calls
        self._scan = Scanner(tools)
        self._reading = _read(self._scan, form, thinks)
        self._resume()

    def may_begin_with(self) -> constraint.Part | None:
        """What may come before the content of an answer: thoughts; None: nothing."""
        family, thought = self._form.family, self._form.thought
        if family and family.reads_all:
            return family.shape.thoughts
        if thought is None:
            return None
        return constraint.thought(thought.opening, thought.closing, self._thinks)

    def content(self, part: constraint.Part) -> constraint.Part:
        """A part of a grammar as all that an answer's content is."""
        family = self._form.family
        return family.shape.holding(part, family.markers) if family else part

    def thoughts(self) -> tuple[Thought, bool, bool] | None:
        """How thoughts are written, whether the answer begins in one, and whether there may be
        more than one; None: there are none."""
        family, thought = self._form.family, self._form.thought
        if family and family.reads_all:
            return ON_CHANNELS, False, True
        return None if thought is None else (thought, self._thinks, False)

    @property
    def thinking(self) -> bool:
        """Whether the next text belongs to a thought, as far as is known."""
        return self._scan.thinking

    @property
    def has_called(self) -> bool:
        """Whether a call is complete."""
        return self._scan.num_called > 0

    def push(self, text: str) -> list[Part]:
        """Take more of the answer; what can be told of it now."""
        if self.is_full:
            return []
        self._scan.feed(text)
        return self._resume()

    def finish(self, is_cut: bool) -> list[Part]:
        """The answer has ended; is_cut: in the middle, so that what may have become a marker is
        none of its text."""
        if self.is_full:
            return []
        self._scan.end(is_cut)
        return self._resume()

    def _resume(self):
        next(self._reading, None)
        parts, self._scan.parts = self._scan.parts, []
        if self._max_calls is not None and self._scan.num_called >= self._max_calls:
            self.is_full = True
            ends = [index for index, part in enumerate(parts) if part.kind == "called"]
            parts = parts[: ends[-1 - (self._scan.num_called - self._max_calls)] + 1]
        return parts


def _read(scan, form, thinks):
    family = form.family
    if form.thought is not None and not (family and family.reads_all):
        yield from form.thought.read(scan, thinks)
    if family is not None and (scan.tools or family.reads_all):
        yield from family.read(scan)
    else:
        yield from scan.content()
