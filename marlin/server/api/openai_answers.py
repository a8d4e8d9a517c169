"""The OpenAI API's answers: results to JSON bodies and server-sent events.

The way in is api/openai_requests.py. No I/O and no clock: ids and times are passed in.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from marlin import __version__
from marlin.server.api import logprobs

JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"
DONE_EVENT = b"data: [DONE]\n\n"
# ASCII only, so that no text that a model emits can make the bytes invalid UTF-8.
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer; num_cached_tokens are those of the prompt that another request
    had left computed."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0

    def as_json(self):
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_output_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole choice. tokens: engine.stream.ShownTokens, if log-probabilities were asked for."""

    index: int
    text: str
    finish_reason: str
    tokens: Sequence = ()


@dataclass(frozen=True, slots=True)
class Envelope:
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


def model_card(name, created, max_context_tokens):
    """One entry of /v1/models. created: seconds since the epoch."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "metal-marlin"}
    # Not in OpenAI's API: vLLM's name, which clients read to size their prompts.
    return card | {"max_model_len": max_context_tokens}


def model_details(model, capabilities):
    """What /v1/models/{id} says of a ServedModel beyond the card; capabilities: of its routes."""
    return {
        "capabilities": {
            **capabilities,
            "streaming": True,
            "logprobs": True,
            "logit_bias": True,
            "seed": True,
            "tools": False,
            "vision": False,
            "embeddings": False,
        },
        "config": {
            "format": model.format,
            "max_context_length": model.engine.max_context_tokens,
            "num_layers": model.num_layers,
            "vocab_size": model.tokenizer.vocab_size,
        },
    }


def fingerprint(model):
    """Names all that decides what a seed gives: package, model, weights and device."""
    facts = "\0".join((__version__, model.model_id, model.format, model.isa))
    return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:10]


class _Answer:
    """What both endpoints share.

    Args:
        envelope: Envelope.
        include_usage: chunks have `usage`.
        tokenizer: for the texts of tokens, if log-probabilities are to be shown, else None.
    """

    def __init__(self, envelope, include_usage=False, tokenizer=None):
        self.id = envelope.id
        self._envelope = envelope
        # With usage asked for, every chunk has the field and only the last one a value.
        self._usage_field = {"usage": None} if include_usage else {}
        self._frames = {}  # by choice: the bytes before and after the text of a text_chunk
        self._tokenizer = tokenizer

    def body(self, choices, usage):
        """The whole answer: Choices in order of their index, and Usage."""
        body = self._envelope.as_json(self.body_kind, [self._choice(c) for c in choices])
        return body | {"usage": usage.as_json()}

    def usage_chunk(self, usage):
        return self._envelope.as_json(self.chunk_kind, []) | {"usage": usage.as_json()}

    def text_event(self, index, text, tokens):
        """event(text_chunk(index, text, tokens)); all but the text is encoded once a choice."""
        if self._tokenizer is not None:
            return event(self.text_chunk(index, text, tokens))
        frame = self._frames.get(index)
        if frame is None:
            # No name that a path can have holds a NUL, so this one is the text's.
            frame = event(self.text_chunk(index, "\0", ())).split(encode("\0"))
            self._frames[index] = frame
        before, after = frame
        return before + encode(text) + after

    def _chunk(self, choice):
        return self._envelope.as_json(self.chunk_kind, [choice]) | self._usage_field

    def _logprobs(self, tokens):
        if self._tokenizer is None:
            return {}
        return {"logprobs": self.show_logprobs(self._tokenizer, tokens)}


class ChatAnswer(_Answer):
    """Bodies and chunks of /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    body_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    continues_prompt = False
    show_logprobs = staticmethod(logprobs.chat_shape)

    def opening_chunks(self, index):
        """Chunks before a choice's first text; here the one that names the role."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk({"index": index, "delta": delta, "finish_reason": None})]

    def text_chunk(self, index, text, tokens):
        choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
        return self._chunk(choice | self._logprobs(tokens))

    def final_chunk(self, index, finish_reason):
        return self._chunk({"index": index, "delta": {}, "finish_reason": finish_reason})

    def _choice(self, choice):
        shown = {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text},
            "finish_reason": choice.finish_reason,
        }
        return shown | self._logprobs(choice.tokens)


class CompletionAnswer(_Answer):
    """Bodies and chunks of /v1/completions; a chunk is a body without counts."""

    id_prefix = "cmpl-"
    body_kind = chunk_kind = "text_completion"
    continues_prompt = True
    show_logprobs = staticmethod(logprobs.completion_shape)

    def opening_chunks(self, _index):
        return []

    def text_chunk(self, index, text, tokens):
        return self._chunk(self._choice(Choice(index, text, None, tokens)))

    def final_chunk(self, index, finish_reason):
        return self._chunk({"index": index, "text": "", "finish_reason": finish_reason})

    def _choice(self, choice):
        shown = {
            "index": choice.index,
            "text": choice.text,
            "finish_reason": choice.finish_reason,
        }
        return shown | self._logprobs(choice.tokens)
