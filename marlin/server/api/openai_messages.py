"""The messages of a chat request: each to a role, a text and calls, as chat templates want them.

No I/O and no model. Which names a message may have is names.py's.
"""

from collections.abc import Mapping
from typing import Any

from marlin.files.fields import shown, type_name
from marlin.server.api.fields import checked_text, refuse, request_fields
from marlin.server.api.openai_tools import parse_arguments

# "developer" is OpenAI's newer word for system, and "function" its older one for tool; chat
# templates know only the others.
_ROLES = {
    **{"system": "system", "developer": "system", "user": "user", "assistant": "assistant"},
    **{"tool": "tool", "function": "tool"},
}


def parse_messages(value: Any) -> list[dict[str, Any]]:
    """Dicts of role, content and, where given, name and reasoning_content, all of them strings;
    tool_calls of an assistant, whose arguments are objects; tool_call_id and name of a tool.

    Raises:
        RequestError: with `param` naming the field, e.g. `messages[2].content`.
    """
    if type(value) is not list:
        refuse("messages", f"must be an array, got {type_name(value)}")
    if not value:
        refuse("messages", "must not be empty")
    messages: list[dict[str, Any]] = []
    called: dict[str, str] = {}  # names of tools by the ids of their calls
    for index, item in enumerate(value):
        message = parse_message(item, f"messages[{index}]", called)
        messages.append(message)
        for call in message.get("tool_calls", ()):
            called[call["id"]] = call["function"]["name"]
    return messages


def parse_message(value: Any, param: str, called: Mapping[str, str]) -> dict[str, Any]:
    """One message; called: names of tools by the ids of the calls before it."""
    if type(value) is not dict:
        refuse(param, f"must be an object, got {type_name(value)}")
    role = value.get("role")
    if type(role) is not str or role not in _ROLES:
        known = ", ".join(_ROLES)
        refuse(f"{param}.role", f"must be one of {known}; got {shown(role)}")
    texts = {
        name: checked_text(value[name], f"{param}.{name}")
        for name in ("name", "reasoning_content", "reasoning", "refusal")
        if value.get(name) is not None
    }
    reasoning, refusal = texts.pop("reasoning", None), texts.pop("refusal", "")
    content = value.get("content")
    if role == "assistant" and content in (None, []):
        # An answer that was all tool calls, reasoning or refusal has no content of its own.
        text = refusal
    else:
        text = _parse_content(value, f"{param}.content")
    if reasoning is not None:  # another server's name for it
        texts.setdefault("reasoning_content", reasoning)
    message = {"role": _ROLES[role], "content": text, **texts}
    for name in ("tool_calls", "function_call"):
        if value.get(name) and role != "assistant":
            refuse(f"{param}.{name}", "is for messages of the assistant")
    calls = _parse_calls(value, param, called)
    if calls:
        message["tool_calls"] = calls
    return message | _parse_result(value, param, called)


def _parse_calls(value, param, called):
    """The calls of a message; an older one has a single one, without an id."""
    older = value.get("function_call")
    if older not in (None, []):
        call = _parse_function(older, f"{param}.function_call")
        return [{"id": f"call_{len(called)}", "type": "function", "function": call}]
    calls = request_fields(value, f"{param}.").of_type(list, "tool_calls", [])
    return [_parse_call(call, f"{param}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _parse_call(call, param):
    if type(call) is not dict:
        refuse(param, f"must be an object, got {type_name(call)}")
    id = checked_text(call.get("id"), f"{param}.id")
    if call.get("type", "function") != "function":
        refuse(f"{param}.type", f'must be "function", got {shown(call["type"])}')
    function = _parse_function(call.get("function"), f"{param}.function")
    return {"id": id, "type": "function", "function": function}


def _parse_function(function, param):
    if type(function) is not dict:
        refuse(param, f"must be an object, got {type_name(function)}")
    name = checked_text(function.get("name"), f"{param}.name")
    arguments = parse_arguments(function.get("arguments", ""), f"{param}.arguments")
    return {"name": name, "arguments": arguments}


def _parse_result(value, param, called):
    """What a tool's message says of the call that it answers."""
    role = value["role"]
    if role == "function":
        name = checked_text(value.get("name"), f"{param}.name")
        ids = [id for id, other in called.items() if other == name]
        return {"name": name, "tool_call_id": ids[-1] if ids else name}
    if role == "tool":
        id = checked_text(value.get("tool_call_id"), f"{param}.tool_call_id")
        return {"tool_call_id": id, **({"name": called[id]} if id in called else {})}
    if value.get("tool_call_id") is not None:
        refuse(f"{param}.tool_call_id", "is for messages of a tool")
    return {}


def _parse_content(message, param):
    if "content" not in message:
        refuse(param, "is required")
    content = message["content"]
    if type(content) is not list:
        return checked_text(content, param)
    if not content:
        refuse(param, "must not be empty")
    return "\n".join(_parse_part(part, f"{param}[{i}]") for i, part in enumerate(content))


def _parse_part(part, param):
    if type(part) is not dict:
        refuse(param, f"must be an object, got {type_name(part)}")
    if part.get("type") != "text":
        refuse(f"{param}.type", f'must be "text", got {shown(part.get("type"))}')
    return checked_text(part.get("text"), f"{param}.text")
