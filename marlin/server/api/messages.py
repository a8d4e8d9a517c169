"""Anthropic's Messages API: its requests (messages_answers.py is the way back).

Blocks become the messages of chat, and tools and choices chat's, so that what those mean is said
once. No I/O and no model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from marlin.engine.sampling import parse_sampling
from marlin.engine.served_model import ServedModel
from marlin.files.fields import shown, type_name
from marlin.server.api import item_names
from marlin.server.api.dialect import WHOLE_CONTEXT, Call, ChatPrompt
from marlin.server.api.fields import checked_text, refuse, request_fields, required
from marlin.server.api.messages_answers import (
    MessagesAnswer,
    error_body,
    error_events,
    error_status,
)
from marlin.server.api.names import Names
from marlin.server.api.openai_messages import parse_message
from marlin.server.api.openai_requests import parse_stop
from marlin.server.api.openai_tools import parse_function, tool_use
from marlin.server.api.output_format import response_format
from marlin.server.api.template_options import parse_conversation
from marlin.server.http.limits import Limits

_NAMES = Names(
    "parameter of this endpoint",
    (
        *("model", "messages", "system", "max_tokens", "stop_sequences", "stream", "tools"),
        *("tool_choice", "thinking", "output_config", "output_format", "temperature", "top_p"),
        *("top_k",),
    ),
    {
        **{"metadata": dict, "service_tier": str, "cache_control": dict},
        # Clears what a client asks to have cleared; nothing is, and the prompt is as it was sent.
        **{"context_management": dict},
    },
    {"mcp_servers": ([],), "container": ()},
    {
        "thinking": Names("field of thinking", ("type", "budget_tokens"), {"display": str}),
        "output_config": item_names.OUTPUT_CONFIG,
        "tool_choice": Names("field of tool_choice", ("type", "name", "disable_parallel_tool_use")),
    },
)
# A line that differs from request to request, so that no prefix of two would be equal.
_BILLING = "x-anthropic-"
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(frozen=True, slots=True)
class MessagesCall(Call):
    """A request to /v1/messages; its one prompt is a ChatPrompt."""

    def answer(self, model: ServedModel, name: str, key: str, created: int) -> MessagesAnswer:
        return MessagesAnswer(key, name)

    def told(
        self, model: ServedModel, still_wanted: Callable[[], None], client: str
    ) -> dict[str, Any]:
        """A dialect.Question's: how many tokens the prompt has."""
        prompts = [prompt.encode(model, still_wanted, client) for prompt in self.prompts]
        return {"input_tokens": sum(len(prompt.token_ids) for prompt in prompts)}


class Messages:
    """A Dialect; counts: of the endpoint that only counts a prompt's tokens."""

    def __init__(self, counts: bool = False):
        self._counts = counts

    error_status = staticmethod(error_status)
    error_body = staticmethod(error_body)
    error_events = staticmethod(error_events)

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> MessagesCall:
        """Dialect.parse."""
        _NAMES.check(body, ignored)
        fields = request_fields(body)
        model = checked_text(required(body, "model"), "model")
        skipped: list[str] = []
        item_names.MESSAGES.tell(body, ignored, skipped)
        messages = _messages(body, skipped)
        offered, choice, is_parallel = _tools(body, skipped)
        tools = tool_use(offered, choice, is_parallel)
        if not self._counts:
            required(body, "max_tokens")
        max_tokens = fields.count("max_tokens", WHOLE_CONTEXT, maximum=limits.num_output_tokens)
        return MessagesCall(
            model,
            [ChatPrompt(parse_conversation(_options(fields), messages, tools))],
            parse_sampling(
                fields,
                max_tokens=max_tokens,
                constraint=_format(fields),
                thought_tokens=_budget(fields),
            ),
            stop=parse_stop(body, limits, "stop_sequences"),
            stream=fields.flag("stream", False),
            num_choices=1,
            skipped=tuple(skipped),
        )


MESSAGES, COUNT_TOKENS = Messages(), Messages(counts=True)


def _options(fields):
    """What is asked of thoughts, in the words of chat."""
    options: dict[str, Any] = {}
    thinking = fields.section("thinking")
    if thinking is not None:
        kind = thinking.choice("type", ("enabled", "adaptive", "disabled"))
        switches = "enable_thinking", "thinking"
        options["chat_template_kwargs"] = dict.fromkeys(switches, kind != "disabled")
    output = fields.section("output_config")
    if output is not None:
        options["reasoning_effort"] = output.text("effort", None)
    return options


def _budget(fields):
    thinking = fields.section("thinking")
    if thinking is None or thinking.raw("type") != "enabled":
        return None
    return thinking.count("budget_tokens", None, minimum=0)


def _format(fields):
    """What the answer must be, in either place where clients say so."""
    output = fields.section("output_config")
    given = (output and output.raw("format"), fields.raw("output_format"))
    places = ("output_config.format", "output_format")
    found = [response_format(*one, is_flat=True) for one in zip(given, places, strict=True)]
    if all(found):
        refuse("output_format", "and output_config.format both say what the answer is")
    return found[0] or found[1]


def _tools(body, skipped):
    """(function tools, tool_choice, parallel_tool_calls) of chat; tools that another service would
    run are left out."""
    parsed = []
    for index, tool in enumerate(request_fields(body).of_type(list, "tools", [])):
        param = f"tools[{index}]"
        if type(tool) is not dict:
            refuse(param, f"must be an object, got {type_name(tool)}")
        if tool.get("type") in (None, "custom"):
            function = {**tool, "parameters": tool.get("input_schema")}
            parsed.append(parse_function(function, param))
        else:
            skipped.append(f"{param} {shown(tool['type'])}")
    choice = request_fields(body).section("tool_choice")
    if choice is None:
        return parsed, None, True
    kind = choice.choice("type", (*_CHOICES, "tool"))
    named = {"type": "function", "function": {"name": choice.raw("name")}}
    is_parallel = not choice.flag("disable_parallel_tool_use", False)
    return parsed, _CHOICES.get(kind, named), is_parallel


def _messages(body, skipped):
    history = _History(skipped)
    system = body.get("system")
    if system is not None:
        history.say_system(system, "system")
    given = required(body, "messages")
    if type(given) is not list or not given:
        refuse("messages", f"must be an array of messages, got {type_name(given)}")
    for index, message in enumerate(given):
        history.add(message, f"messages[{index}]")
    return history.messages


class _History:
    """The messages of chat that blocks become."""

    def __init__(self, skipped):
        self.messages: list[dict[str, Any]] = []
        self._skipped = skipped
        self._called: dict[str, str] = {}

    def say_system(self, content, param):
        texts = [_without_billing(_text(block, place)) for block, place in _blocks(content, param)]
        if any(texts):
            self._append({"role": "system", "content": "\n".join(filter(None, texts))}, param)

    def add(self, message, param):
        if type(message) is not dict:
            refuse(param, f"must be an object, got {type_name(message)}")
        role = request_fields(message, f"{param}.").choice("role", ("user", "assistant", "system"))
        if "content" not in message:
            refuse(f"{param}.content", "is required")
        content, place = message["content"], f"{param}.content"
        if role == "system":
            self.say_system(content, place)
        elif role == "user":
            self._add_user(content, place)
        else:
            self._add_assistant(content, place)

    def _add_user(self, content, param):
        """Results of calls come before the words, whatever the order of their blocks: a template
        pairs them with the calls before."""
        texts: list[str] = []
        for block, place in _blocks(content, param):
            if _type(block, place) == "tool_result":
                self._add_result(block, place)
            else:
                texts.append(_text(block, place))
        if texts or not content:
            self._append({"role": "user", "content": "\n".join(texts)}, param)

    def _add_result(self, block, param):
        id = checked_text(block.get("tool_use_id"), f"{param}.tool_use_id")
        blocks = _blocks(block.get("content") or "", f"{param}.content")
        content = "\n".join(_text(inner, place) for inner, place in blocks)
        self._append({"role": "tool", "tool_call_id": id, "content": content}, param)

    def _add_assistant(self, content, param):
        texts: dict[str, list[str]] = {"text": [], "thinking": []}
        calls: list[dict[str, Any]] = []
        for block, place in _blocks(content, param):
            kind = _type(block, place)
            if kind in texts:
                texts[kind].append(checked_text(block.get(kind), f"{place}.{kind}"))
            elif kind == "tool_use":
                calls.append(self._call(block, place))
            elif kind != "redacted_thinking":  # which only its writer can read
                self._skipped.append(f"{place} {shown(kind)}")
        message = {"role": "assistant", "content": "\n".join(texts["text"]), "tool_calls": calls}
        if texts["thinking"]:
            message["reasoning_content"] = "\n".join(texts["thinking"])
        self._append(message, param)
        self._called |= {call["id"]: call["function"]["name"] for call in calls}

    def _call(self, block, param):
        fields = request_fields(block, f"{param}.")
        function = {"name": fields.text("name"), "arguments": fields.of_type(dict, "input")}
        return {"id": fields.text("id"), "type": "function", "function": function}

    def _append(self, value, param):
        self.messages.append(parse_message(value, param, self._called))


def _blocks(content, param):
    """(block, its place) of each; text is one block."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, param)]
    if type(content) is not list:
        refuse(param, f"must be text or an array of blocks, got {type_name(content)}")
    return [(block, f"{param}[{index}]") for index, block in enumerate(content)]


def _type(block, param):
    if type(block) is not dict:
        refuse(param, f"must be an object, got {type_name(block)}")
    return request_fields(block, f"{param}.").text("type")


def _text(block, param):
    kind = _type(block, param)
    if kind != "text":
        refuse(f"{param}.type", f'must be "text", got {shown(kind)}')
    return checked_text(block.get("text"), f"{param}.text")


def _without_billing(text):
    return text.partition("\n")[2] if text.startswith(_BILLING) else text
