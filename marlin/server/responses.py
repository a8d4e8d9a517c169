"""The OpenAI API's answers: results to JSON bodies and server-sent events.

The way in is server/openai.py. No I/O and no clock: ids and times are passed in.
"""

import json
from dataclasses import dataclass

JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"
DONE_EVENT = b"data: [DONE]\n\n"
# ASCII only, so that no text that a model emits can make the bytes invalid UTF-8.
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer."""

    num_prompt_tokens: int
    num_output_tokens: int

    def as_json(self):
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_output_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_output_tokens,
        }


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every body and chunk of one answer repeats. created: seconds since the epoch."""

    id: str
    created: int
    model: str

    def as_json(self, kind, choices):
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def encode(value):
    """JSON bytes."""
    return _ENCODER.encode(value).encode("ascii")


def event(value):
    """One server-sent event holding value as JSON; bytes."""
    return b"data: " + encode(value) + b"\n\n"


def error_body(error):
    """The OpenAI error object of a MarlinError."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def model_card(model_id, created):
    """One entry of /v1/models. created: seconds since the epoch."""
    return {"id": model_id, "object": "model", "created": created, "owned_by": "metal-marlin"}


class ChatAnswer:
    """Bodies and chunks of /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    continues_prompt = False

    def __init__(self, envelope, include_usage=False):
        self.id = envelope.id
        self._envelope = envelope
        # With usage asked for, every chunk has the field and only the last one a value.
        self._usage_field = {"usage": None} if include_usage else {}

    def body(self, text, finish_reason, usage):
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": finish_reason,
        }
        body = self._envelope.as_json("chat.completion", [choice])
        return body | {"usage": usage.as_json()}

    def opening_chunks(self):
        """Chunks before the first text; here the one that names the role."""
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def text_chunk(self, text):
        return self._chunk({"content": text}, None)

    def final_chunk(self, finish_reason):
        return self._chunk({}, finish_reason)

    def usage_chunk(self, usage):
        chunk = self._envelope.as_json("chat.completion.chunk", [])
        return chunk | {"usage": usage.as_json()}

    def _chunk(self, delta, finish_reason):
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self._envelope.as_json("chat.completion.chunk", [choice]) | self._usage_field


class CompletionAnswer:
    """Bodies and chunks of /v1/completions; a chunk is a body without counts."""

    id_prefix = "cmpl-"
    continues_prompt = True

    def __init__(self, envelope, include_usage=False):
        self.id = envelope.id
        self._envelope = envelope
        # With usage asked for, every chunk has the field and only the last one a value.
        self._usage_field = {"usage": None} if include_usage else {}

    def body(self, text, finish_reason, usage):
        choice = _text_choice(text, finish_reason)
        return self._envelope.as_json("text_completion", [choice]) | {"usage": usage.as_json()}

    def opening_chunks(self):
        return []

    def text_chunk(self, text):
        return self._chunk(text, None)

    def final_chunk(self, finish_reason):
        return self._chunk("", finish_reason)

    def usage_chunk(self, usage):
        return self._envelope.as_json("text_completion", []) | {"usage": usage.as_json()}

    def _chunk(self, text, finish_reason):
        choice = _text_choice(text, finish_reason)
        return self._envelope.as_json("text_completion", [choice]) | self._usage_field


def _text_choice(text, finish_reason):
    return {"index": 0, "text": text, "finish_reason": finish_reason}
