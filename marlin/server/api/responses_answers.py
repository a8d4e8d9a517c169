"""OpenAI's Responses API: its answers, as one object or as the events that build it.

The way in is responses.py. No I/O and no clock: ids and times are passed in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from marlin.engine.stream import ShownToken
from marlin.errors import MarlinError
from marlin.server.api.dialect import Answer, Choice, ToolCall, Usage
from marlin.server.api.encoding import encode
from marlin.text.tool_calls.scanner import Part

REASONING_PREFIX = "rs"  # of the ids of thoughts


def _event(kind, number, fields):
    data = encode({"type": kind, "sequence_number": number, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def _error(error):
    return {"code": error.code or error.type, "message": error.message}


def error_events(error: MarlinError) -> bytes:
    """The end of a stream in which no answer had begun."""
    return _event("error", 0, {**_error(error), "param": error.param})


class ResponsesAnswer(Answer):
    """The one answer to a call.

    Args:
        key: hexadecimal digits for its ids.
        head: fields of the object that are known from the beginning.
        shows_summary: thoughts are the summary of their item, not its content.
    """

    def __init__(self, key: str, head: Mapping[str, Any], shows_summary: bool):
        self.id = head["id"]
        self._key = key
        self._head = head
        self._thoughts = "summary" if shows_summary else "content"
        self._number = 0  # of the next event
        self._items: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._reason = "stop"

    # As one object.

    def body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        (choice,) = choices
        self._reason = choice.finish_reason or "stop"
        if choice.reasoning:
            self._items.append(self._thought(choice.reasoning))
        if choice.text or not choice.calls:
            self._items.append(self._message(choice.text))
        for call in choice.calls:
            self._items.append(self._call(call))
        if self._reason == "length":
            self._items[-1]["status"] = "incomplete"
        return self._response(usage)

    def _response(self, usage=None, error=None):
        is_cut = self._reason == "length"
        status = "in_progress" if usage is None else "incomplete" if is_cut else "completed"
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            **self._head,
            "status": "failed" if error else status,
            "error": error,
            "incomplete_details": reason,
            "output": list(self._items),
            "usage": None if usage is None else _usage(usage),
        }

    def _thought(self, text, status="completed"):
        item = {
            "type": "reasoning",
            "id": self._item_id(REASONING_PREFIX),
            "summary": [],
            "status": status,
        }
        kind = "summary_text" if self._thoughts == "summary" else "reasoning_text"
        return item | {self._thoughts: [{"type": kind, "text": text}] if text else []}

    def _message(self, text, status="completed"):
        parts = [_text_part(text)] if status != "in_progress" else []
        item = {"type": "message", "id": self._item_id("msg"), "status": status}
        return item | {"role": "assistant", "content": parts}

    def _call(self, call: ToolCall, status="completed"):
        id = self._item_id("fc")
        item = {"type": "function_call", "id": id, "call_id": call.id or f"call_{id[3:]}"}
        return item | {"name": call.name, "arguments": call.arguments, "status": status}

    def _item_id(self, prefix):
        return f"{prefix}_{self._key}{len(self._items):02x}"

    # As events.

    def _event(self, kind, **fields):
        self._number += 1
        return _event(f"response.{kind}", self._number - 1, fields)

    def opening(self, index: int, usage: Usage) -> bytes:
        response = self._response()
        return self._event("created", response=response) + self._event(
            "in_progress", response=response
        )

    def text(self, index: int, text: str, tokens: Sequence[ShownToken]) -> bytes:
        if not text:
            return b""
        begun = self._begin("message", lambda: self._message("", "in_progress"))
        return begun + self._more(text)

    def part(self, index: int, part: Part) -> bytes:
        if part.kind == "reasoning":
            begun = self._begin("reasoning", lambda: self._thought("", "in_progress"))
            return begun + self._more(part.text)
        if part.kind == "call":
            call = ToolCall(part.text, part.id)
            ended = self._end("completed")
            return ended + self._begin("call", lambda: self._call(call, "in_progress"))
        return self._more(part.text) if part.kind == "arguments" else self._end("completed")

    def ending(self, index: int, finish_reason: str, stop_string: str | None) -> bytes:
        self._reason = finish_reason
        begun = b""
        if not self._items and self._open is None:
            begun = self._begin("message", lambda: self._message("", "in_progress"))
        return begun + self._end("incomplete" if finish_reason == "length" else "completed")

    def closing(self, usage: Usage) -> bytes:
        kind = "incomplete" if self._reason == "length" else "completed"
        return self._event(kind, response=self._response(usage))

    def failing(self, error: MarlinError) -> bytes:
        return self._event("failed", response=self._response(error=_error(error)))

    def _begin(self, kind, item):
        """Begin an item of a kind, unless one is open."""
        if self._open is not None and self._open.kind == kind:
            return b""
        ended = self._end("completed")
        self._open = opened = _Open(kind, item(), len(self._items), self._thoughts)
        added = self._event("output_item.added", output_index=opened.index, item=opened.item)
        return ended + added + self._part_event(opened, "added", "")

    def _more(self, text):
        opened = self._open
        assert opened is not None
        opened.texts.append(text)
        more = {"logprobs": []} if opened.kind == "message" else {}
        return self._event(f"{opened.event}.delta", **opened.place, delta=text, **more)

    def _end(self, status):
        """End the open item, if there is one."""
        opened, self._open = self._open, None
        if opened is None:
            return b""
        text = "".join(opened.texts)
        done: dict[str, Any] = {"arguments" if opened.kind == "call" else "text": text}
        done |= {"logprobs": []} if opened.kind == "message" else {}
        events = self._event(f"{opened.event}.done", **opened.place, **done)
        events += self._part_event(opened, "done", text)
        item = opened.finished(text, status)
        events += self._event("output_item.done", output_index=opened.index, item=item)
        self._items.append(item)
        return events

    def _part_event(self, opened, what, text):
        if opened.part_event is None:
            return b""
        part = opened.part(text)
        return self._event(f"{opened.part_event}.{what}", **opened.place, part=part)


class _Open:
    """An item that goes on."""

    def __init__(self, kind, item, index, thoughts):
        self.kind, self.item, self.index = kind, item, index
        self.texts: list[str] = []
        self.place = {"item_id": item["id"], "output_index": index}
        self.part_event: str | None
        self._in_summary = kind == "reasoning" and thoughts == "summary"
        self._thoughts = thoughts
        if kind == "message":
            self.event, self.part_event = "output_text", "content_part"
        elif kind == "call":
            self.event, self.part_event = "function_call_arguments", None
        elif self._in_summary:
            self.event, self.part_event = "reasoning_summary_text", "reasoning_summary_part"
        else:
            self.event, self.part_event = "reasoning_text", "content_part"
        if kind != "call":
            self.place["summary_index" if self._in_summary else "content_index"] = 0

    def part(self, text):
        if self.kind == "message":
            return _text_part(text)
        return {"type": "summary_text" if self._in_summary else "reasoning_text", "text": text}

    def finished(self, text, status):
        """The item as it stands in the whole answer."""
        if self.kind == "call":
            return self.item | {"arguments": text, "status": status}
        where = "content" if self.kind == "message" else self._thoughts
        return self.item | {where: [self.part(text)], "status": status}


def _text_part(text):
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage):
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "output_tokens": usage.num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
    }
