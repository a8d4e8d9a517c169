"""Messages in the shapes that templates can take: what differs between them and the API.

Each function gives new messages and changes none; which a template needs is conversation.py's to
find out. Knows no template and no API.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from marlin.text.tool_calls.family import ShowCalls

# role, content and what else a template may read: name, tool_calls, tool_call_id,
# reasoning_content.
Message = Mapping[str, Any]

_FUNCTION = {"name": "probe_tool", "description": "Looks up a number."}
_SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "description": "A word."}},
    "required": ["word"],
}
# A conversation with a call, from whose text the way of writing calls is told.
PROBE_TOOLS = ({"type": "function", "function": {**_FUNCTION, "parameters": _SCHEMA}},)
_PROBE_CALL = {"name": "probe_tool", "arguments": {"word": "probe value"}}
PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "probe question"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_1", "type": "function", "function": _PROBE_CALL}],
    },
    {"role": "tool", "name": "probe_tool", "tool_call_id": "call_1", "content": "probe result"},
)


def with_systems_joined(messages: Sequence[Message]) -> list[Message]:
    """Each run of system messages as one, its texts with a blank line between them."""
    return _joined(messages, "system")


def with_results_in_order(messages: Sequence[Message]) -> list[Message]:
    """Each run of tool messages in the order of the calls before it, which is how templates that
    write no ids pair them."""
    ordered: list[Message] = []
    places: dict[str, int] = {}
    for message in messages:
        if message["role"] == "assistant":
            calls = message.get("tool_calls", ())
            places = {call["id"]: place for place, call in enumerate(calls)}
        ordered.append(message)
        index = len(ordered) - 1
        while index and _is_before(ordered[index], ordered[index - 1], places):
            ordered[index - 1 : index + 1] = ordered[index], ordered[index - 1]
            index -= 1
    return ordered


def _is_before(message, other, places):
    if not message["role"] == other["role"] == "tool":
        return False
    return places.get(message["tool_call_id"], len(places)) < places.get(
        other["tool_call_id"], len(places)
    )


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """Ids of calls as nine letters and digits, which Mistral's templates insist on."""
    shortened: list[Message] = []
    for message in messages:
        changed = dict(message)
        if "tool_calls" in message:
            calls = message["tool_calls"]
            changed["tool_calls"] = [{**call, "id": _short(call["id"])} for call in calls]
        if "tool_call_id" in message:
            changed["tool_call_id"] = _short(message["tool_call_id"])
        shortened.append(changed)
    return shortened


def _short(id):
    if len(id) == 9 and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode()).hexdigest()[:9]


def with_calls_shown(messages: Sequence[Message], show: ShowCalls) -> list[Message]:
    """Calls as a part of their message's text, for a template that does not write them."""
    return [
        {**message, "content": message["content"] + show(message["tool_calls"])}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def plainer(messages: Sequence[Message]) -> list[Message]:
    """For a template that refuses messages: a system message only at the head, where the others
    become the user's words, and one message where a user has several in a row."""
    messages = with_systems_joined(messages)
    told = [*messages[:1], *(_as_reminder(message) for message in messages[1:])]
    return _joined(told, "user")


def _as_reminder(message):
    if message["role"] != "system":
        return message
    content = f"<system-reminder>\n{message['content']}\n</system-reminder>"
    return {"role": "user", "content": content}


def _joined(messages, role):
    joined: list[Message] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == role:
            content = joined[-1]["content"] + "\n\n" + message["content"]
            joined[-1] = {**joined[-1], "content": content}
        else:
            joined.append(message)
    return joined
