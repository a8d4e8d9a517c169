"""A dialect: one API's way of asking for text and of giving it.

A dialect makes a Call of a request, the Call an Answer, and the Answer all that the client is sent;
generation.py runs what is between and knows no dialect. A new one is a file that declares the three
and a row in the routes. Declarations, and what passes through them; knows no API.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from marlin.engine.gaps import encode_gap
from marlin.engine.interface import ModelTokenizer
from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams
from marlin.engine.served_model import ModelPrompt, ServedModel
from marlin.engine.stream import ShownToken
from marlin.errors import MarlinError
from marlin.server.http.limits import Limits
from marlin.text.conversation import Conversation
from marlin.text.gaps import Gap
from marlin.text.tool_calls.scanner import Part

if TYPE_CHECKING:  # As in engine/request.py.
    import numpy as np

# SamplingParams.max_tokens of whoever takes what the context holds: none holds so many.
WHOLE_CONTEXT = 2**31


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A prompt to be made by the model's chat template."""

    conversation: Conversation

    @property
    def continues(self) -> bool:
        return self.conversation.continues

    def encode(
        self, model: ServedModel, still_wanted: Callable[[], None], client: str
    ) -> ModelPrompt:
        return model.encode_chat(self.conversation, still_wanted, client)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to be continued.

    Attributes:
        content: text, or token ids, at least one, not yet checked against a vocabulary.
        param: what errors call it.
    """

    continues: ClassVar[bool] = True
    content: str | list[int]
    param: str

    def encode(
        self, model: ServedModel, still_wanted: Callable[[], None], client: str
    ) -> ModelPrompt:
        return ModelPrompt(model.encode_prompt(self.content, self.param, still_wanted, client))


@dataclass(frozen=True, slots=True)
class GapPrompt:
    """A gap to be filled; param: what errors call the field that asks for it."""

    continues: ClassVar[bool] = True
    gap: Gap
    param: str

    @property
    def content(self) -> str:
        return self.gap.before

    def encode(
        self, model: ServedModel, still_wanted: Callable[[], None], client: str
    ) -> ModelPrompt:
        return ModelPrompt(encode_gap(model, self.gap, self.param, still_wanted, client))


class Usage(NamedTuple):
    """Token counts of one answer; num_cached_tokens are those of the prompt that another request
    had left computed, num_reasoning_tokens those of the output that were thoughts."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0
    num_reasoning_tokens: int = 0


@dataclass(slots=True)
class ToolCall:
    """A call in a whole answer.

    Attributes:
        arguments: JSON, as the model wrote it.
        id: as Part's.
        is_whole: the model has written all of it.
    """

    name: str
    id: str | None = None
    arguments: str = ""
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice, or as much of it as there is.

    Attributes:
        text: what is neither a thought nor a call.
        finish_reason: "stop", "tool_calls" or "length"; None while it goes on.
        tokens: behind the answer, if log-probabilities were asked for.
        calls: all of them whole, unless the model ended its answer within the last.
        stop_string: that ended it, if one did.
    """

    index: int
    text: str
    finish_reason: str | None
    tokens: Sequence[ShownToken] = ()
    reasoning: str = ""
    calls: Sequence[ToolCall] = ()
    stop_string: str | None = None


class Answer(ABC):
    """What one Call is sent, as JSON or as server-sent events. Made once a call, kept to its end.

    Attributes:
        id: of the answer, for the client and the log.
    """

    id: str

    @abstractmethod
    def body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The whole answer; choices in order of their index."""

    @abstractmethod
    def opening(self, index: int, usage: Usage) -> bytes:
        """Events before a choice's first text; usage: without output."""

    @abstractmethod
    def text(self, index: int, text: str, tokens: Sequence[ShownToken]) -> bytes:
        """The event of a choice's next text; tokens as Choice's."""

    def part(self, index: int, part: Part) -> bytes:
        """The events of a choice's next Part that is not content, of a call whose prompts are
        conversations."""
        raise AssertionError("an answer to a text has no parts")

    @abstractmethod
    def ending(self, index: int, finish_reason: str, stop_string: str | None) -> bytes:
        """Events after a choice's last text; reason and stop_string as Choice's."""

    @abstractmethod
    def closing(self, usage: Usage) -> bytes:
        """Events after the ending of the last choice."""

    def failing(self, error: MarlinError) -> bytes | None:
        """Events that end a stream after opening(); None: those of the dialect."""
        return None


class Echo(NamedTuple):
    """What a choice begins with; tokens: behind it, if its log-probabilities were asked for."""

    text: str = ""
    tokens: Sequence[ShownToken] = ()


@dataclass(frozen=True, slots=True)
class Call(ABC):
    """What a request asks for.

    Attributes:
        model: the name it gives; None where the API needs none.
        prompts: at least one.
        sampling: its max_tokens may be more than the context holds.
        stop: strings that end a text, not part of it.
        stream: answer by server-sent events.
        num_choices: for each prompt.
        skipped: what of the request was left out, which the client and the log are told.
    """

    model: str | None
    prompts: Sequence[ChatPrompt | Prompt | GapPrompt]
    sampling: SamplingParams
    stop: tuple[str, ...]
    stream: bool
    num_choices: int
    skipped: tuple[str, ...]

    @abstractmethod
    def answer(self, model: ServedModel, name: str, key: str, created: int) -> Answer:
        """Begin the answer.

        Args:
            name: that answers give the model.
            key: made for this call; hexadecimal digits.
            created: now, in seconds since the epoch.
        """

    def beginning(
        self, prompt: ChatPrompt | Prompt | GapPrompt, request: Request, tokenizer: ModelTokenizer
    ) -> Echo:
        """What a choice begins with, once its request has its first event."""
        return Echo()


class Question(Protocol):
    """A request that a tokenizer answers, so that it waits for no slot.

    Attributes:
        model: the name it gives, None for none.
        skipped: as Call's.
    """

    @property
    def model(self) -> str | None: ...

    @property
    def skipped(self) -> tuple[str, ...]: ...

    def told(
        self, model: ServedModel, still_wanted: Callable[[], None], client: str
    ) -> dict[str, Any]:
        """The JSON that answers it; arguments and errors as ServedModel.encode_text()'s."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that a vector or a score is made of.

    Attributes:
        content, param: as Prompt's.
        add_special_tokens: False where it has its own.
    """

    content: str | list[int]
    param: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class VectorCall(ABC):
    """What a request for the vectors or scores of texts asks for; attributes as Call's."""

    model: str
    skipped: tuple[str, ...]

    @abstractmethod
    def texts(self, model: ServedModel) -> list[Text]:
        """At least one, in the order of the answer's items.

        Raises:
            NotServedError: the model does not do this.
            RequestError: it cannot do it as it was asked to.
        """

    @abstractmethod
    def item(self, index: int, vector: "np.ndarray") -> Any:
        """What the answer has of a text; large values as encoding.Encoded."""

    @abstractmethod
    def body(self, items: list[Any], name: str, key: str, num_tokens: int) -> dict[str, Any]:
        """The answer.

        Args:
            name: that answers give the model.
            key: as Call.answer()'s.
            num_tokens: of all texts.
        """


class Errors(Protocol):
    """How an API tells of errors."""

    def error_status(self, error: MarlinError) -> int:
        """The status that answers a request with an error."""

    def error_body(self, error: MarlinError) -> dict[str, Any]:
        """The JSON that answers a request with an error."""

    def error_events(self, error: MarlinError) -> bytes:
        """The same as the last events of a stream that has begun."""


class VectorDialect(Errors, Protocol):
    """What a route needs of an API's endpoint for vectors or scores."""

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> VectorCall:
        """As Dialect.parse(); nothing is made of max_tokens."""


class Dialect(Errors, Protocol):
    """What a route needs of an API's endpoint that generates."""

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> Call:
        """Validate a request's JSON.

        Args:
            max_tokens: of a request that names no number.
            ignored: takes the names of what the API does not know; None refuses it.

        Raises:
            RequestError: with `param` naming the field, e.g. `messages[2].content`.
        """


class Questions(Errors, Protocol):
    """What a route needs of an API's endpoint that a tokenizer answers."""

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> Question:
        """As Dialect.parse()."""
