"""Anthropic's Messages API: its answers, as one object or as the events that build it.

The way in is messages.py. No I/O and no clock: ids are passed in.
"""

from collections.abc import Sequence
from typing import Any

from marlin.engine.stream import ShownToken
from marlin.errors import ContextLengthError, MarlinError
from marlin.files.strict_json import JsonError, parse_json
from marlin.server.api.dialect import Answer, Choice, Usage
from marlin.server.api.encoding import encode
from marlin.text.tool_calls.scanner import Part

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_STATUSES = {422: 400, 503: 529}  # of errors that this API has other numbers for
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
# A client sends thoughts back with the signature they came with. Nothing depends on it.
_SIGNATURE = "unsigned"


def error_status(error: MarlinError) -> int:
    """The status of an error in this API."""
    return _STATUSES.get(error.status, error.status)


def error_body(error: MarlinError) -> dict[str, Any]:
    """The error object of this API."""
    message = error.message
    if isinstance(error, ContextLengthError):
        # By these words clients know that a conversation has to become shorter.
        message = f"prompt is too long: {error.num_tokens} tokens > {error.most_tokens} maximum"
    kind = _ERROR_TYPES.get(error_status(error), "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_events(error: MarlinError) -> bytes:
    """The end of a stream that an error ends."""
    return _event("error", error_body(error))


def _event(kind, fields):
    data = encode({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def _usage(usage):
    return {
        "input_tokens": usage.num_prompt_tokens - usage.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.num_cached_tokens,
        "output_tokens": usage.num_output_tokens,
    }


def _input(arguments):
    """A call's arguments as the object that this API wants."""
    try:
        value = parse_json(arguments)
    except JsonError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}


class MessagesAnswer(Answer):
    """The one answer to a call.

    Args:
        key: hexadecimal digits for its ids.
        model: the name that it gives the model.
    """

    def __init__(self, key: str, model: str):
        self.id = f"msg_{key}"
        self._key = key
        self._model = model
        self._num_blocks = 0
        self._open: str | None = None  # the kind of block that goes on
        self._stop: tuple[str | None, str | None] = None, None

    def _message(self, content, usage, stop_reason=None, stop_sequence=None):
        return {
            **{"id": self.id, "type": "message", "role": "assistant", "model": self._model},
            **{"content": content, "stop_reason": stop_reason, "stop_sequence": stop_sequence},
            "usage": _usage(usage),
        }

    def body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        (choice,) = choices
        content: list[dict[str, Any]] = []
        if choice.reasoning:
            thought = {"type": "thinking", "thinking": choice.reasoning}
            content.append(thought | {"signature": _SIGNATURE})
        if choice.text:
            content.append({"type": "text", "text": choice.text})
        for number, call in enumerate(choice.calls):
            tool_use = {"type": "tool_use", "id": call.id or self._tool_id(number)}
            content.append(tool_use | {"name": call.name, "input": _input(call.arguments)})
        return self._message(content, usage, *_stop(choice.finish_reason, choice.stop_string))

    def _tool_id(self, number):
        return f"toolu_{self._key}{number:02x}"

    def opening(self, index: int, usage: Usage) -> bytes:
        return _event("message_start", {"message": self._message([], usage)})

    def text(self, index: int, text: str, tokens: Sequence[ShownToken]) -> bytes:
        if not text:
            return b""
        begun = self._begin("text", {"type": "text", "text": ""})
        return begun + self._delta({"type": "text_delta", "text": text})

    def part(self, index: int, part: Part) -> bytes:
        if part.kind == "reasoning":
            block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            begun = self._begin("thinking", block)
            return begun + self._delta({"type": "thinking_delta", "thinking": part.text})
        if part.kind == "call":
            id = part.id or self._tool_id(part.call)
            block = {"type": "tool_use", "id": id, "name": part.text, "input": {}}
            return self._end() + self._begin("tool_use", block)
        if part.kind == "arguments":
            return self._delta({"type": "input_json_delta", "partial_json": part.text})
        return self._end()

    def ending(self, index: int, finish_reason: str, stop_string: str | None) -> bytes:
        self._stop = _stop(finish_reason, stop_string)
        return self._end()

    def closing(self, usage: Usage) -> bytes:
        reason, sequence = self._stop
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        ended = _event("message_delta", {"delta": delta, "usage": _usage(usage)})
        return ended + _event("message_stop", {})

    def _begin(self, kind, block):
        """Begin a block, unless one of its kind is open."""
        if self._open == kind:
            return b""
        ended = self._end()
        self._open = kind
        started = {"index": self._num_blocks, "content_block": block}
        return ended + _event("content_block_start", started)

    def _delta(self, delta):
        return _event("content_block_delta", {"index": self._num_blocks, "delta": delta})

    def _end(self):
        """End the open block, if there is one."""
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._delta({"type": "signature_delta", "signature": _SIGNATURE})
        self._open = None
        ended = _event("content_block_stop", {"index": self._num_blocks})
        self._num_blocks += 1
        return signed + ended


def _stop(finish_reason, stop_string):
    """(stop_reason, stop_sequence)."""
    if stop_string is not None:
        return "stop_sequence", stop_string
    return _STOP_REASONS[finish_reason], None
