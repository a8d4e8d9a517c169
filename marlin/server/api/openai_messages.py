"""The messages of a chat request: each to a role and a text, as chat templates want them.

No I/O and no model. Which names a message may have is names.py's.
"""

from typing import Any

from marlin.files.fields import shown, type_name
from marlin.server.api.fields import checked_text, refuse

# "developer" is OpenAI's newer word for system; chat templates know only the older one.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def parse_messages(value: Any) -> list[dict[str, str]]:
    """Dicts of role, content and, where given, name and reasoning_content; all of them strings.

    Raises:
        RequestError: with `param` naming the field, e.g. `messages[2].content`.
    """
    if type(value) is not list:
        refuse("messages", f"must be an array, got {type_name(value)}")
    if not value:
        refuse("messages", "must not be empty")
    return [_parse_message(item, f"messages[{index}]") for index, item in enumerate(value)]


def _parse_message(value, param):
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
    return {"role": _ROLES[role], "content": text, **texts}


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
