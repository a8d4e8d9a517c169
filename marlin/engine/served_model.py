"""One loaded model, for whoever asks it: its name, text to token ids and back, and its engine.

A model from files (load.py) and a mock (mock.py) are the same here. Holds no request; the engine
owns the model's state. Knows no API and no socket.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from marlin.engine.bounds import check_prompt, check_prompt_fits, check_text, check_text_fits
from marlin.engine.gate import SlotGate
from marlin.engine.helpers import Helpers
from marlin.engine.interface import ModelEngine, ModelTokenizer
from marlin.engine.shared_reader import SharedReader
from marlin.errors import NoChatTemplateError, NotServedError, TemplateError
from marlin.text.answer import AnswerReader
from marlin.text.chat_template import ChatTemplate
from marlin.text.conversation import Conversation, Prompter
from marlin.text.grammar.automaton import Grammar
from marlin.text.grammar.constraint import Constraint, Part
from marlin.text.origin import Origins
from marlin.text.tool_calls.shape import ToolGrammar

if TYPE_CHECKING:  # As in request.py.
    from marlin.engine.pooler import Pooler

logger = logging.getLogger(__name__)

# Longer texts are tokenized in parts of this length, clients by turns: a part takes 4 to 30 MB and
# some 0.1 s. One that cannot be ended there takes up to 120 MB and 2 s (text/cuts.py).
LONG_TEXT_CHARACTERS = 64 * 1024
# How often a text that waits for its turn looks whether it is still wanted.
POLL_S = 0.1
# Compiled grammars that are kept, and how large: 32 take 20 MB.
MAX_KEPT_GRAMMARS, MAX_KEPT_EDGES = 32, 25_000


def _wanted() -> None:
    """The still_wanted of who does not give up."""


@dataclass(frozen=True, slots=True)
class ModelPrompt:
    """A prompt as the engine takes it.

    Attributes:
        new_reader: makes what reads one answer to it; None where answers are content alone.
        tool_grammar: what it asks of calls; None where there are none.
    """

    token_ids: list[int]
    new_reader: Callable[[], AnswerReader] | None = None
    tool_grammar: ToolGrammar | None = None


class ServedModel:
    """What a server, or one command, has of a model.

    Args:
        long_text_characters, poll_s: see the constants.
        num_helpers: threads that texts are tokenized on, where nobody knows how long that takes; 0
            is the caller's own.

    Attributes:
        model_id: what API calls name it by.
        engine: ModelEngine, running.
        reader: SharedReader, of answers.
        tokenizer: ModelTokenizer.
        format: of the weights: "gguf", "safetensors", or a native folder's "fp4", "int4", "int8";
            "mock" for none.
        device_kind: "cpu", or a GPU's family; "" for none.
        num_layers: of the model.
        new_pooler: makes what takes the hidden states of one text; None where it makes no vectors
            and no scores of texts.
        vector_dim: values of such a vector.
        ranks: these are scores of documents.
        generates: whether it goes on with texts.
        manifest_digest: of the manifest that its files were compared with, "" for none.
        trusts_texts: special tokens that messages spell are such; else they are words.
        marker_ids: special tokens that the readers of its answers must see.
    """

    def __init__(
        self,
        model_id: str,
        engine: ModelEngine,
        tokenizer: ModelTokenizer,
        format: str = "mock",
        device_kind: str = "",
        num_layers: int = 0,
        *,
        new_pooler: "Callable[[], Pooler] | None" = None,
        vector_dim: int = 0,
        ranks: bool = False,
        generates: bool = True,
        long_text_characters: int = LONG_TEXT_CHARACTERS,
        poll_s: float = POLL_S,
        num_helpers: int = 0,
    ):
        self.model_id = model_id
        self.trusts_texts = False
        self.engine = engine
        self.tokenizer = tokenizer
        self.format = format
        self.device_kind = device_kind
        self.num_layers = num_layers
        self.new_pooler = new_pooler
        self.vector_dim = vector_dim
        self.ranks = ranks
        self.generates = generates
        self.manifest_digest = ""
        self._prompter = prompter_for(tokenizer)
        self._grammars: dict[str, Grammar] = {}
        self._grammars_lock = threading.Lock()
        self.marker_ids = frozenset(self._special_ids_of_markers())
        self._long_text_characters = long_text_characters
        self._long_parts = SlotGate(1, None, poll_s)
        self.reader = SharedReader(poll_s)
        self._helpers = Helpers(num_helpers, poll_s) if num_helpers else None
        self._began: dict[int, float] = {}  # by thread: of each call of the tokenizer in hand

    @property
    def has_chat(self) -> bool:
        """Whether encode_chat() works: there is a chat template that can be used."""
        return self.generates and self._prompter is not None

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors of texts."""
        return self.new_pooler is not None and not self.ranks

    def check_generates(self) -> None:
        """Raise NotServedError where it does not."""
        if not self.generates:
            made = "scores of documents" if self.ranks else "embeddings"
            raise NotServedError(
                f"model {self.model_id!r} makes {made}, and generates no text", param="model"
            )

    @property
    def has_tools(self) -> bool:
        """Whether conversations may have tools."""
        return self._prompter is not None and self._prompter.form.family is not None

    @property
    def fills_gaps(self) -> bool:
        """Whether encode_fill() works."""
        return self.generates and self.tokenizer.fill_tokens is not None

    def tokenizing_s(self) -> float:
        """How long the tokenizer has been at the part of a text that it has been at longest."""
        began = min(self._began.copy().values(), default=None)
        return 0.0 if began is None else time.monotonic() - began

    def encode_chat(
        self,
        conversation: Conversation,
        still_wanted: Callable[[], None] = _wanted,
        client: str = "",
    ) -> ModelPrompt:
        """The prompt of a conversation.

        Args:
            still_wanted: called while a long text waits for its turn, and after each part of it;
                raises to give up.
            client: whose it is.

        Raises:
            TemplateError: the model has no chat template, or it refuses the conversation.
            RequestError: the conversation has tools, and its template none.
            ContextLengthError: more tokens than the context holds.
            RequestError: it can neither be tokenized at once nor in parts.
        """
        if self._prompter is None:
            raise NoChatTemplateError(
                f"model {self.model_id!r} has no chat template; use /v1/completions"
            )
        # A template writes the special tokens itself, beginning-of-sequence included.
        prompter = self._prompter
        text = prompter.prompt(conversation)
        token_ids = self._encode(text, still_wanted, client, add_special_tokens=False)
        if not self.trusts_texts:
            controls = prompter.controls(conversation, text)
            token_ids = self._without_forged(token_ids, text, controls, still_wanted, client)
        new_reader = prompter.new_reader(conversation, text)
        return ModelPrompt(token_ids, new_reader, prompter.tool_grammar(conversation))

    def encode_prompt(
        self,
        prompt: str | list[int],
        name: str = "prompt",
        still_wanted: Callable[[], None] = _wanted,
        client: str = "",
    ) -> list[int]:
        """Prompt token ids of a text, or of ids after a look at them; the rest as above.

        Args:
            name: what errors call it.

        Raises:
            RequestError: no tokens at all, an id outside the vocabulary, or as above.
            ContextLengthError: more tokens than the context holds.
        """
        if isinstance(prompt, str):
            token_ids = self._encode(prompt, still_wanted, client)
        else:
            token_ids = prompt
        check_prompt(token_ids, self.engine, name)
        return token_ids

    def encode_text(
        self, text: str, still_wanted: Callable[[], None], client: str, **kinds: bool
    ) -> list[int]:
        """Token ids of a text that is as long as a prompt may be; kinds: Tokenizer.encode()'s, the
        rest as encode_chat()."""
        return self._encode(text, still_wanted, client, **kinds)

    def encode_input(
        self,
        text: str | list[int],
        name: str = "input",
        still_wanted: Callable[[], None] = _wanted,
        client: str = "",
        *,
        add_special_tokens: bool = True,
    ) -> list[int]:
        """As encode_prompt(), of a text that nothing follows, so that it may fill the context.

        Args:
            add_special_tokens: False for a text that has its own.
        """
        if isinstance(text, str):
            kinds = {"add_special_tokens": add_special_tokens}
            fits = partial(check_text_fits, name=name)
            token_ids = self._encode(text, still_wanted, client, fits=fits, **kinds)
        else:
            token_ids = text
        check_text(token_ids, self.engine, name)
        return token_ids

    def grammar(self, constraint: Constraint, before: Part | None) -> Grammar:
        """What a constraint is behind another part, compiled once while others ask for the same;
        RequestError where it cannot be."""
        key = repr((constraint, before))
        with self._grammars_lock:
            found = self._grammars.pop(key, None)
        if found is None:
            found = constraint.compiled(before)
        with self._grammars_lock:
            if found.num_edges < MAX_KEPT_EDGES and len(key) < MAX_KEPT_EDGES:
                self._grammars[key] = found
            while len(self._grammars) > MAX_KEPT_GRAMMARS:
                self._grammars.pop(next(iter(self._grammars)))
        return found

    def close(self) -> None:
        """Free the engine, and end what tokenizes and reads answers."""
        self.engine.close()
        self.reader.close()
        if self._helpers is not None:
            self._helpers.close()

    def _special_ids_of_markers(self):
        markers = () if self._prompter is None else self._prompter.form.markers
        for marker in markers:
            for token_id in self.tokenizer.encode(marker, add_special_tokens=False):
                if self.tokenizer.is_special(token_id):
                    yield token_id

    def _without_forged(self, token_ids, text, controls, still_wanted, client):
        """The ids of a rendered text in which only `controls` steer the model: what else spells
        such a token was somebody's words."""
        known = self.tokenizer.control_tokens
        ids = set(known.values())
        if controls is None or [id for id in token_ids if id in ids] == [
            known[control.text] for control in controls
        ]:
            return token_ids
        kinds = {"add_special_tokens": False, "parse_special": False}
        kept: list[int] = []
        at, before = 0, None
        for start, end, token in (*controls, (len(text), len(text), "")):
            after = known.get(token)
            part = self.tokenizer.trimmed(text[at:start], before, after)
            kept += self._encode(part, still_wanted, client, **kinds) if part else []
            kept += [] if after is None else [after]
            at, before = end, after
        return kept

    def _encode(self, text, still_wanted, client, *, fits=check_prompt_fits, **kinds):
        context = self.engine.max_context_tokens
        fits(self.tokenizer.min_tokens(text), context, bound="at least ")
        if len(text) <= self._long_text_characters:
            short = self._timed(still_wanted, self.tokenizer.encode, text, **kinds)
            still_wanted()
            return short
        parts = self.tokenizer.encode_parts(text, self._long_text_characters, **kinds)
        token_ids: list[int] = []
        part: list[int] | None = []
        while part is not None:
            token_ids += part
            fits(len(token_ids), context, bound="at least ")
            with self._long_parts.slot(still_wanted, client):
                part = self._timed(still_wanted, next, parts, None)
            # Nothing stops a tokenizer, and it may have taken longer than the request has.
            still_wanted()
        return token_ids

    def _timed(self, still_wanted, tokenize, *arguments, **options):
        work = partial(self._noted, tokenize, *arguments, **options)
        return work() if self._helpers is None else self._helpers.run(work, still_wanted)

    def _noted(self, tokenize, *arguments, **options):
        thread = threading.get_ident()
        self._began[thread] = time.monotonic()
        try:
            return tokenize(*arguments, **options)
        finally:
            del self._began[thread]


def prompter_for(tokenizer: ModelTokenizer) -> Prompter | None:
    """What makes prompts by the model's own chat template, or None without one."""
    source, for_tools = tokenizer.chat_template, tokenizer.tool_template
    if source is None:
        return None
    try:
        template = ChatTemplate(source)
        tool_template = None if for_tools is None else ChatTemplate(for_tools)
    except TemplateError as error:
        logger.warning("chat is not available: %s", error.message)
        return None
    origins = Origins(tokenizer.control_tokens)
    return Prompter(template, tokenizer.named_tokens, tool_template, origins)
