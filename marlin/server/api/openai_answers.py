"""The OpenAI API's answers: results to JSON bodies and server-sent events.

The way in is api/openai_requests.py. No I/O and no clock: ids and times are passed in.
"""

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from marlin import __version__
from marlin.engine.interface import ModelTokenizer
from marlin.engine.served_model import ServedModel
from marlin.engine.stream import ShownToken
from marlin.errors import MarlinError
from marlin.server.api import openai_logprobs
from marlin.server.api.dialect import Answer, Choice, ToolCall, Usage
from marlin.server.api.encoding import encode, event, joined
from marlin.text.tool_calls.scanner import Part

_DONE_EVENT = b"data: [DONE]\n\n"
# Log-probabilities are objects for so many tokens at once, some 7 KB each, and else bytes.
_TOKENS_AT_ONCE = 32


class Envelope(NamedTuple):
    """What every body and chunk of one answer repeats. created: seconds since the epoch."""

    id: str
    created: int
    model: str
    fingerprint: str

    def as_json(self, kind, choices):
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def error_status(error: MarlinError) -> int:
    """An error's own: it was made for this API."""
    return error.status


def error_body(error: MarlinError) -> dict[str, Any]:
    """The OpenAI error object."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_events(error: MarlinError) -> bytes:
    """The end of a stream that an error ends."""
    return event(error_body(error)) + _DONE_EVENT


def model_card(name: str, created: int, max_context_tokens: int) -> dict[str, Any]:
    """One entry of /v1/models. created: seconds since the epoch."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "metal-marlin"}
    # Not in OpenAI's API: vLLM's name, which clients read to size their prompts.
    return card | {"max_model_len": max_context_tokens}


def model_details(model: ServedModel, capabilities: dict[str, bool]) -> dict[str, Any]:
    """What /v1/models/{id} says of a ServedModel beyond the card; capabilities: of its routes."""
    return {
        "capabilities": {
            **capabilities,
            "streaming": True,
            "logprobs": True,
            "logit_bias": True,
            "seed": True,
            "tools": model.has_tools,
            "vision": False,
        },
        "config": {
            "format": model.format,
            "max_context_length": model.engine.max_context_tokens,
            "num_layers": model.num_layers,
            "vocab_size": model.tokenizer.vocab_size,
            "manifest": model.manifest_digest or None,
        },
    }


def fingerprint(model: ServedModel) -> str:
    """Names all that decides what a seed gives: package, model, weights and device."""
    facts = __version__, model.model_id, model.format, model.device_kind
    return _fingerprint(*facts, *filter(None, [model.manifest_digest]))


@functools.lru_cache(maxsize=1)  # a process serves one model
def _fingerprint(*facts):
    return "fp_" + hashlib.sha256("\0".join(facts).encode()).hexdigest()[:10]


def _usage_json(usage):
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
    }


class OpenAiAnswer(Answer):
    """What both endpoints share.

    Args:
        include_usage: chunks have `usage`.
        tokenizer: for the texts of tokens, if log-probabilities are to be shown, else None.
    """

    id_prefix: ClassVar[str]
    body_kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    show_logprobs: ClassVar[Callable[..., dict[str, Any]]]

    def __init__(self, envelope: Envelope, include_usage: bool, tokenizer: ModelTokenizer | None):
        self.id = envelope.id
        self._envelope = envelope
        # With usage asked for, every chunk has the field and only the last one a value.
        self._usage_field = {"usage": None} if include_usage else {}
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # what is around a choice's text
        self._tokenizer = tokenizer

    @abstractmethod
    def choice(self, choice: Choice) -> dict[str, Any]:
        """A choice of a whole answer."""

    @abstractmethod
    def piece(self, choice: Choice) -> dict[str, Any]:
        """A choice of a chunk: its next text, or without text its end."""

    def body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        shown = [self.choice(c) | self._logprobs(c.tokens) for c in choices]
        return self._envelope.as_json(self.body_kind, shown) | {"usage": _usage_json(usage)}

    def opening(self, index: int, usage: Usage) -> bytes:
        return b""

    def text(self, index: int, text: str, tokens: Sequence[ShownToken]) -> bytes:
        """All but the text is encoded once a choice, unless tokens are shown."""
        if self._tokenizer is not None:
            return self._text_event(index, text, tokens)
        frame = self._frames.get(index)
        if frame is None:
            # No name that a path can have holds a NUL, so this one is the text's.
            before, after = self._text_event(index, "\0", ()).split(encode("\0"))
            frame = self._frames[index] = before, after
        before, after = frame
        return before + encode(text) + after

    def _text_event(self, index, text, tokens):
        piece = self.piece(Choice(index, text, None, tokens))
        return self._chunk(piece | self._logprobs(tokens))

    def ending(self, index: int, finish_reason: str, stop_string: str | None) -> bytes:
        return self._chunk(self.piece(Choice(index, "", finish_reason)))

    def closing(self, usage: Usage) -> bytes:
        if not self._usage_field:
            return _DONE_EVENT
        chunk = self._envelope.as_json(self.chunk_kind, []) | {"usage": _usage_json(usage)}
        return event(chunk) + _DONE_EVENT

    def _chunk(self, choice):
        return event(self._envelope.as_json(self.chunk_kind, [choice]) | self._usage_field)

    def _logprobs(self, tokens):
        if self._tokenizer is None:
            return {}
        if len(tokens) <= _TOKENS_AT_ONCE:
            return {"logprobs": self.show_logprobs(self._tokenizer, tokens)}
        runs = (
            tokens[start : start + _TOKENS_AT_ONCE]
            for start in range(0, len(tokens), _TOKENS_AT_ONCE)
        )
        return {"logprobs": joined(self.show_logprobs(self._tokenizer, run) for run in runs)}


class ChatAnswer(OpenAiAnswer):
    """Bodies and chunks of /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    body_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    show_logprobs = staticmethod(openai_logprobs.chat_shape)

    def opening(self, index: int, usage: Usage) -> bytes:
        """The chunk that names the role."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk({"index": index, "delta": delta, "finish_reason": None})

    def piece(self, choice: Choice) -> dict[str, Any]:
        delta = {} if choice.finish_reason else {"content": choice.text}
        return {"index": choice.index, "delta": delta, "finish_reason": choice.finish_reason}

    def part(self, index: int, part: Part) -> bytes:
        if part.kind == "reasoning":
            return self._delta(index, _reasoning(part.text))
        if part.kind == "called":
            return b""
        # What names a call comes once; its arguments are all that follows.
        named: dict[str, Any] = {}
        function = {"arguments": part.text}
        if part.kind == "call":
            named = {"id": part.id or self._call_id(index, part.call), "type": "function"}
            function = {"name": part.text, "arguments": ""}
        call = {"index": part.call, **named, "function": function}
        return self._delta(index, {"tool_calls": [call]})

    def _delta(self, index, delta):
        return self._chunk({"index": index, "delta": delta, "finish_reason": None})

    def _call_id(self, index, call):
        return f"call_{self.id.removeprefix(self.id_prefix)}{index:x}_{call}"

    def choice(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        if choice.reasoning:
            message |= _reasoning(choice.reasoning)
        if choice.calls:
            message["content"] = choice.text or None
            calls = enumerate(choice.calls)
            message["tool_calls"] = [self._call(choice.index, *numbered) for numbered in calls]
        return {
            "index": choice.index,
            "message": message,
            "finish_reason": choice.finish_reason,
        }

    def _call(self, index: int, number: int, call: ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": call.arguments}
        id = call.id or self._call_id(index, number)
        return {"id": id, "type": "function", "function": function}


def _reasoning(text):
    """Thoughts by the name that most servers and clients have, and by the newer one."""
    return {"reasoning_content": text, "reasoning": text}


class CompletionAnswer(OpenAiAnswer):
    """Bodies and chunks of /v1/completions; a chunk is a body without counts."""

    id_prefix = "cmpl-"
    body_kind = chunk_kind = "text_completion"
    show_logprobs = staticmethod(openai_logprobs.completion_shape)

    def piece(self, choice: Choice) -> dict[str, Any]:
        return {"index": choice.index, "text": choice.text, "finish_reason": choice.finish_reason}

    choice = piece
