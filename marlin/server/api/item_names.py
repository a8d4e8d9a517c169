"""The names within the Responses API's items and the Messages API's blocks, tools and choices.

Agents send what others' servers put there, and new names with each release. So what no table has is
not refused but told, as are items of unknown types; a server that is to be strict refuses it. Owns
the tables; what the names mean is responses.py's and messages.py's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from marlin.server.api.names import Names


class _Kinds(NamedTuple):
    """In the place of Names, for objects of several types.

    Attributes:
        by_type: names of each; the owner judges others.
        default: the type of an object that says none.
    """

    by_type: Mapping[str, Names]
    default: str = ""

    def check(self, given: dict[str, Any], ignored: list[str] | None, place: str) -> None:
        kind = self.default if given.get("type") is None else given["type"]
        if isinstance(kind, str) and kind in self.by_type:
            self.by_type[kind].check(given, ignored, place)


class _Inside(NamedTuple):
    """tables: of the names within what a request's body has of these."""

    tables: Mapping[str, Any]

    def tell(self, body: dict[str, Any], ignored: list[str] | None, told: list[str]) -> None:
        """Look at them all.

        Args:
            ignored: as Names.check()'s; where it is None, `told` takes what no table has.
        """
        given = {name: body[name] for name in self.tables if name in body}
        taken = told if ignored is None else ignored
        Names("parameter", self.tables, inside=self.tables).check(given, taken)


def _names(noun: str, honoured: str, accepted: Mapping[str, type], **inside: Any) -> Names:
    return Names(noun, honoured.split(), accepted, inside=inside)


_OF_ITEM = {"id": str, "status": str}
_PART = _names("field of a part", "type text refusal", {"annotations": list, "logprobs": list})
_ITEMS = _Kinds(
    {
        "message": _names(
            "field of a message", "type role content", {**_OF_ITEM, "phase": str}, content=_PART
        ),
        "function_call": _names("field of a call", "type name arguments call_id", _OF_ITEM),
        "function_call_output": _names(
            "field of a result", "type call_id output", {**_OF_ITEM, "name": str}, output=_PART
        ),
        "reasoning": _names(
            *("field of a thought", "type summary content", {**_OF_ITEM, "encrypted_content": str}),
            summary=_PART,
            content=_PART,
        ),
        "item_reference": _names("field of a reference", "type id", {}),
    },
    default="message",
)
_FUNCTION = _names("field of a tool", "type name description parameters strict", {})
RESPONSES = _Inside(
    {
        "input": _ITEMS,
        "tools": _Kinds({"function": _FUNCTION}),
        "tool_choice": _names("field of tool_choice", "type name mode tools", {}),
    }
)
_FORMAT = _names("field of a format", "type schema strict name", {"description": str})
TEXT = _names("field of text", "format", {"verbosity": str}, format=_FORMAT)

_CACHED = {"cache_control": dict}
_TEXT = _names("field of a text", "type text", {**_CACHED, "citations": list})
_BLOCKS = {
    "text": _TEXT,
    "thinking": _names("field of a thought", "type thinking", {"signature": str, **_CACHED}),
    "redacted_thinking": _names("field of a thought", "type", {"data": str, **_CACHED}),
    "tool_use": _names("field of a call", "type id name input", {"caller": dict, **_CACHED}),
    "tool_result": _names(
        *("field of a result", "type tool_use_id content", {"is_error": bool, **_CACHED}),
        content=_Kinds({"text": _TEXT}),
    ),
}
_CUSTOM = _names(
    *("field of a tool", "type name description input_schema strict"),
    {**_CACHED, "eager_input_streaming": bool},
)
MESSAGES = _Inside(
    {
        "messages": _names("field of a message", "role content", {}, content=_Kinds(_BLOCKS)),
        "system": _Kinds({"text": _TEXT}),
        "tools": _Kinds({"custom": _CUSTOM}, default="custom"),
        "output_format": _FORMAT,
    }
)
OUTPUT_CONFIG = _names("field of output_config", "effort format", {}, format=_FORMAT)
