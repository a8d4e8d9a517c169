"""The tools of a chat request, and which of them the answer may call.

No I/O and no model: how a model is told of tools, and how it calls one, are text/'s. The older
`functions` and `function_call` are the same in other words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marlin.files.fields import shown, type_name
from marlin.files.strict_json import JsonError, parse_json
from marlin.server.api.fields import checked_text, refuse, request_fields

# As the API has it; what is longer or has blanks would not be found again in an answer.
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools.

    Attributes:
        offered: those that the answer may call, as templates want them.
        max_calls: of one answer; None is no limit.
        must_call: names of those of which one must be called; () leaves that to the model.
        is_strict: arguments must be as the schemas say.
    """

    offered: Sequence[Mapping[str, Any]] = ()
    max_calls: int | None = None
    must_call: Sequence[str] = ()
    is_strict: bool = False


def parse_tools(body: Mapping[str, Any]) -> ToolUse:
    """What a request's fields ask for.

    Raises:
        RequestError: with `param` naming the field.
    """
    offered = _parse_offered(body)
    choice = body.get("tool_choice")
    if choice is None:
        choice = _older_choice(body.get("function_call"))
    fields = request_fields(dict(body))
    is_parallel = fields.flag("parallel_tool_calls", not body.get("functions"))
    return tool_use(offered, choice, is_parallel)


def tool_use(offered: list[dict[str, Any]], choice: Any, is_parallel: bool) -> ToolUse:
    """What parse_function()'s tools, a `tool_choice` and `parallel_tool_calls` come to."""
    names: set[str] = set()
    for tool in offered:
        name = tool["function"]["name"]
        if name in names:
            refuse("tools", f"has more than one tool of the name {shown(name)}")
        names.add(name)
    # Of what templates are told, this is no part.
    is_strict = True in [tool["function"].pop("strict") for tool in offered]
    offered, must_call = _chosen(choice, offered)
    is_named = type(choice) is dict and choice.get("type") == "function"
    one = bool(offered) and (is_named or not is_parallel)
    return ToolUse(offered, 1 if one else None, must_call, is_strict and bool(offered))


def _parse_offered(body):
    fields = request_fields(dict(body))
    tools = fields.of_type(list, "tools", None)
    if tools is not None:
        return [_parse_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    given = fields.of_type(list, "functions", [])
    return [parse_function(item, f"functions[{index}]") for index, item in enumerate(given)]


def _parse_tool(tool, param):
    if type(tool) is not dict:
        refuse(param, f"must be an object, got {type_name(tool)}")
    if tool.get("type") != "function":
        refuse(f"{param}.type", f'must be "function", got {shown(tool.get("type"))}')
    return parse_function(tool.get("function"), f"{param}.function")


def parse_function(function: Any, param: str) -> dict[str, Any]:
    """A tool for tool_use(), from what APIs say of a function; RequestError as above."""
    if type(function) is not dict:
        refuse(param, f"must be an object, got {type_name(function)}")
    fields = request_fields(function, f"{param}.")
    name = fields.text("name")
    if not _NAME.fullmatch(name):
        refuse(f"{param}.name", f"must be letters, digits, _ and -, got {shown(name)}")
    checked = {
        "name": name,
        "strict": fields.flag("strict", False),
        "description": checked_text(fields.text("description", ""), f"{param}.description"),
        "parameters": fields.of_type(dict, "parameters", {"type": "object", "properties": {}}),
    }
    return {"type": "function", "function": checked}


def _older_choice(choice):
    """`function_call` as `tool_choice`."""
    if type(choice) is dict:
        return {"type": "function", "function": choice}
    return choice


def _chosen(choice, offered):
    """(tools that may be called, names of those of which one must be)."""
    if choice in (None, "auto"):
        return offered, ()
    if choice == "none":
        return [], ()
    if choice == "required":
        return offered, _forced(offered)
    if type(choice) is dict and choice.get("type") == "function":
        return offered, _forced([_offered(_named(choice, "tool_choice"), offered)])
    if type(choice) is dict and choice.get("type") == "allowed_tools":
        allowed = request_fields(choice, "tool_choice.").object("allowed_tools")
        tools = allowed.of_type(list, "tools")
        names = [_named(tool, "tool_choice.allowed_tools") for tool in tools]
        chosen = [_offered(name, offered) for name in dict.fromkeys(names)]
        is_auto = allowed.choice("mode", ("auto", "required")) == "auto"
        return chosen, () if is_auto else _forced(chosen)
    kinds = "none, auto or required, name a tool, or be allowed_tools"
    refuse("tool_choice", f"must be {kinds}, got {shown(choice)}")


def _forced(tools):
    if not tools:
        refuse("tool_choice", "asks for a call, but there are no tools")
    return tuple(tool["function"]["name"] for tool in tools)


def _named(tool, param):
    function = tool.get("function") if type(tool) is dict else None
    if type(function) is not dict or type(function.get("name")) is not str:
        refuse(param, "must name functions")
    return function["name"]


def _offered(name, offered):
    for tool in offered:
        if tool["function"]["name"] == name:
            return tool
    refuse("tool_choice", f"names {shown(name)}, which is not among the tools")


def parse_arguments(value: Any, param: str) -> Any:
    """The arguments of a call in a conversation: an object, which they are the JSON of (no text is
    none of them), or the text itself where it is none."""
    if type(value) is dict:
        return value
    text = checked_text(value, param)
    if not text.strip():
        return {}
    try:
        arguments = parse_json(text.encode())
    except JsonError:
        return text
    return arguments if isinstance(arguments, dict) else text
