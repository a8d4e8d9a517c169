"""OpenAI's Responses API: its requests (responses_answers.py is the way back).

Stateless: what was said before comes with every request, and nothing is kept for another. Items
become the messages of chat, and tools and choices chat's, so that what those mean is said once. No
I/O and no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marlin.engine.sampling import parse_sampling
from marlin.engine.served_model import ServedModel
from marlin.files.fields import shown, type_name
from marlin.server.api import item_names
from marlin.server.api.dialect import WHOLE_CONTEXT, Call, ChatPrompt
from marlin.server.api.fields import checked_text, refuse, request_fields, required
from marlin.server.api.names import REASONING, Names
from marlin.server.api.openai_answers import error_body, error_status
from marlin.server.api.openai_messages import parse_message
from marlin.server.api.openai_tools import parse_function, tool_use
from marlin.server.api.output_format import response_format
from marlin.server.api.responses_answers import REASONING_PREFIX, ResponsesAnswer, error_events
from marlin.server.api.template_options import parse_conversation, parse_thought_tokens
from marlin.server.http.limits import Limits

_NAMES = Names(
    "parameter of this endpoint",
    (
        *("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls"),
        *("stream", "max_output_tokens", "temperature", "top_p", "text", "reasoning"),
        *("chat_template_kwargs", "top_k", "min_p", "repetition_penalty", "seed", "metadata"),
        "thinking_token_budget",
    ),
    {
        **{"user": str, "store": bool, "include": list, "truncation": str, "service_tier": str},
        **{"prompt_cache_key": str, "prompt_cache_retention": str, "safety_identifier": str},
        **{"client_metadata": dict, "stream_options": dict},
    },
    {
        **{"previous_response_id": (), "conversation": (), "background": (False,), "prompt": ()},
        **{"max_tool_calls": (), "top_logprobs": (0,)},
    },
    {"reasoning": REASONING, "text": item_names.TEXT},
)
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


@dataclass(frozen=True, slots=True)
class ResponsesCall(Call):
    """A request to /v1/responses; its one prompt is a ChatPrompt.

    Attributes:
        echoed: fields of the request that its answers repeat.
        shows_summary: thoughts come as a summary, for clients that ask for one, which is all that
            they show.
    """

    echoed: Mapping[str, Any]
    shows_summary: bool

    def answer(self, model: ServedModel, name: str, key: str, created: int) -> ResponsesAnswer:
        head = {"id": f"resp_{key}", "object": "response", "created_at": created, "model": name}
        return ResponsesAnswer(key, {**head, **self.echoed}, self.shows_summary)


class Responses:
    """A Dialect."""

    error_status = staticmethod(error_status)
    error_body = staticmethod(error_body)
    error_events = staticmethod(error_events)

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> ResponsesCall:
        """Dialect.parse; answers may fill the context where no number of tokens is given."""
        _NAMES.check(body, ignored)
        fields = request_fields(body)
        model = checked_text(required(body, "model"), "model")
        skipped: list[str] = []
        item_names.RESPONSES.tell(body, ignored, skipped)
        messages = _messages(body, skipped)
        is_parallel = fields.flag("parallel_tool_calls", True)
        offered, choice = _tools(body, skipped)
        tools = tool_use(offered, choice, is_parallel)
        max_tokens = fields.count("max_output_tokens", None, maximum=limits.num_output_tokens)
        most = limits.num_output_tokens or WHOLE_CONTEXT
        reasoning = fields.of_type(dict, "reasoning", {})
        asked = {"constraint": _format(fields), "thought_tokens": parse_thought_tokens(fields)}
        return ResponsesCall(
            model,
            [ChatPrompt(parse_conversation(body, messages, tools))],
            parse_sampling(fields, max_tokens=max_tokens or most, **asked),
            stop=(),
            stream=fields.flag("stream", False),
            num_choices=1,
            skipped=tuple(skipped),
            echoed=_echoed(body, max_tokens),
            shows_summary=reasoning.get("summary") is not None,
        )


RESPONSES = Responses()


def _echoed(body, max_tokens):
    defaults: dict[str, Any] = {"instructions": None, "metadata": {}, "tools": []}
    defaults |= {"tool_choice": "auto", "parallel_tool_calls": True}
    defaults |= {"temperature": 0.7, "top_p": 0.9}
    echoed = {
        name: default if body.get(name) is None else body[name]
        for name, default in defaults.items()
    }
    reasoning = body.get("reasoning") or {}
    return echoed | {
        "max_output_tokens": max_tokens,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": False,  # whatever was asked: nothing is
        "text": body.get("text") or {"format": {"type": "text"}},
        "truncation": "disabled",
    }


def _format(fields):
    text = fields.section("text")
    return text and response_format(text.values.get("format"), "text.format", is_flat=True)


def _tools(body, skipped):
    """(function tools, tool_choice) in the words of chat; tools of other types are left out, which
    are another service's."""
    parsed = []
    for index, tool in enumerate(request_fields(body).of_type(list, "tools", [])):
        if type(tool) is not dict:
            refuse(f"tools[{index}]", f"must be an object, got {type_name(tool)}")
        if tool.get("type") == "function":
            parsed.append(parse_function(tool, f"tools[{index}]"))
        else:
            skipped.append(f"tools[{index}] {shown(tool.get('type'))}")
    choice = body.get("tool_choice")
    if type(choice) is dict and choice.get("type") == "function":
        choice = {"type": "function", "function": choice}
    elif type(choice) is dict and choice.get("type") == "allowed_tools":
        tools = request_fields(choice, "tool_choice.").of_type(list, "tools")
        named = [{"type": "function", "function": tool} for tool in tools]
        choice = {"type": "allowed_tools", "allowed_tools": {**choice, "tools": named}}
    return parsed, choice


def _messages(body, skipped):
    given = required(body, "input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if type(items) is not list or not items:
        refuse("input", f"must be text or an array of items, got {type_name(given)}")
    history = _History(skipped)
    instructions = body.get("instructions")
    if instructions is not None:
        history.say("system", checked_text(instructions, "instructions"), "instructions")
    for index, item in enumerate(items):
        history.add(item, f"input[{index}]")
    if not history.messages:
        refuse("input", "has no messages")
    return history.messages


class _History:
    """The messages of chat that items become."""

    def __init__(self, skipped):
        self.messages: list[dict[str, Any]] = []
        self._skipped = skipped
        self._called: dict[str, str] = {}
        self._reasoning: list[str] = []

    def add(self, item, param):
        if type(item) is not dict:
            refuse(param, f"must be an object, got {type_name(item)}")
        kind = item.get("type", "message")
        if kind == "message":
            role = checked_text(item.get("role"), f"{param}.role")
            self.say(role, _text(item.get("content"), f"{param}.content"), param)
        elif kind == "function_call":
            self._add_call(item, param)
        elif kind == "function_call_output":
            output = _text(item.get("output"), f"{param}.output")
            id = checked_text(item.get("call_id"), f"{param}.call_id")
            self._append({"role": "tool", "content": output, "tool_call_id": id}, param)
        elif kind == "reasoning":
            for name in ("content", "summary"):
                text = _text(item.get(name) or "", f"{param}.{name}")
                if text:
                    self._reasoning.append(text)
                    break
        elif kind == "item_reference":
            self._add_reference(item, param)
        else:
            self._skipped.append(f"{param} {shown(kind)}")

    def _add_reference(self, item, param):
        """A thought can be left out; what else is referred to was said to be kept, and is not."""
        if not str(item.get("id")).startswith(REASONING_PREFIX):
            kept = "is item_reference, but this server keeps no items; send store: false"
            refuse(f"{param}.type", kept)
        self._skipped.append(f'{param} "item_reference"')

    def say(self, role, text, param):
        self._append({"role": role, "content": text}, param)

    def _add_call(self, item, param):
        """Calls that follow one another, or the assistant's words, are one message."""
        name = checked_text(item.get("name"), f"{param}.name")
        id = checked_text(item.get("call_id"), f"{param}.call_id")
        function = {"name": name, "arguments": item.get("arguments", "")}
        call = {"id": id, "type": "function", "function": function}
        message = parse_message({"role": "assistant", "tool_calls": [call]}, param, self._called)
        (parsed,) = message["tool_calls"]
        self._called[parsed["id"]] = parsed["function"]["name"]
        last: dict[str, Any] = self.messages[-1] if self.messages else {"role": None}
        if last["role"] == "assistant" and not self._reasoning:
            last.setdefault("tool_calls", []).append(parsed)
        else:
            self.messages.append(message | self._take_reasoning())

    def _append(self, value, param):
        message = parse_message(value, param, self._called)
        if message["role"] == "assistant":
            message |= self._take_reasoning()
        self.messages.append(message)

    def _take_reasoning(self):
        reasoning, self._reasoning = "\n".join(self._reasoning), []
        return {"reasoning_content": reasoning} if reasoning else {}


def _text(value, param):
    """Text, or the texts of parts."""
    if type(value) is not list:
        return checked_text(value, param)
    texts = []
    for index, part in enumerate(value):
        place = f"{param}[{index}]"
        if type(part) is not dict:
            refuse(place, f"must be an object, got {type_name(part)}")
        if part.get("type") not in _TEXT_PARTS:
            refuse(f"{place}.type", f"must be input_text, got {shown(part.get('type'))}")
        name = "refusal" if part["type"] == "refusal" else "text"
        texts.append(checked_text(part.get(name), f"{place}.{name}"))
    return "\n".join(texts)
