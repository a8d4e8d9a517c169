"""Every name that an OpenAI request may hold, as tables: what is honoured, accepted, or refused.

Owns the names and what becomes of one that no table has; a misspelt parameter never passes for one
that was honoured. Refuses to know what the honoured ones mean: that is openai_requests.py and
openai_messages.py. docs/serving.md lists what is accepted without effect; a test compares.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from marlin.engine.sampling import PARAMETERS
from marlin.files.fields import shown
from marlin.server.api.fields import plain, refuse, request_fields

# A header and a log line hold so many names of a request; whoever sends more knows from these.
MAX_IGNORED = 20
# Two names are this alike when one is most likely the other misspelt; a longer one is none of ours.
_ALIKE = 0.7
_LONGEST_COMPARED = 64


class Strict(list[str]):
    """Takes no names, and lets none pass that has no effect on the answer."""


def taking(unknown_parameters: str) -> list[str] | None:
    """What Names.check() and a dialect's parse() take as `ignored`, by the setting of that name."""
    return {"warn": [], "strict": Strict()}.get(unknown_parameters)


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one kind of object.

    Attributes:
        noun: what an unknown one is not.
        honoured: read by the code that owns the object.
        accepted: name to JSON type; whatever effect it has is not on the answer's text.
        limited: name to the values that ask for nothing; any other is refused by the name.
        inside: honoured name to the names of the object, or objects of the array, that is there.
        type: of the objects that these names are for, None for any; the owner judges others.
    """

    noun: str
    honoured: Collection[str]
    accepted: Mapping[str, type] = field(default_factory=dict)
    limited: Mapping[str, tuple] = field(default_factory=dict)
    inside: Mapping[str, "Names"] = field(default_factory=dict)
    type: str | None = None

    def check(
        self, given: dict[str, Any], ignored: list[str] | None = None, place: str = ""
    ) -> None:
        """Look at the names of an object and of those inside it.

        Args:
            ignored: takes the names that no table has, MAX_IGNORED at most; None refuses them, and
                a Strict the accepted ones, too.
            place: put before the name in errors: `messages[2].`.

        Raises:
            RequestError: for the first name, or value of an accepted one, that cannot be.
        """
        if self.type is not None and given.get("type") != self.type:
            return
        for name, value in given.items():
            if name in self.inside:
                for where, item in _objects(f"{place}{name}", value):
                    self.inside[name].check(item, ignored, where)
            elif name in self.honoured or (value is None and name in self.known):
                continue
            elif name in self.accepted and isinstance(ignored, Strict):
                refuse(place + plain(name), "has no effect here, and this server refuses such")
            elif name in self.accepted:
                request_fields(given, place).of_type(self.accepted[name], name)
            elif name in self.limited:
                self._check_limited(name, value, place)
            elif ignored is None or isinstance(ignored, Strict):
                refuse(place + plain(name), f"is not a known {self.noun}{self._hint(name)}")
            elif len(ignored) < MAX_IGNORED:
                ignored.append(place + plain(name))

    def _check_limited(self, name, value, place):
        taken = self.limited[name]
        if not any(type(value) is type(plain) and value == plain for plain in taken):
            refuse(place + name, f"is not supported by this server, got {shown(value)}")

    @property
    def known(self) -> set[str]:
        return {*self.honoured, *self.accepted, *self.limited}

    def _hint(self, name):
        known = sorted(self.known) if len(name) <= _LONGEST_COMPARED else ()
        near = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
        return f"; did you mean {near[0]}?" if near else ""


def _objects(place, value):
    """(place of its names, object) of an object, or of each in an array."""
    if type(value) is dict:
        yield f"{place}.", value
    elif type(value) is list:
        for index, item in enumerate(value):
            if type(item) is dict:
                yield f"{place}[{index}].", item


PARAMETER = "parameter of this endpoint"
_HONOURED_BY_BOTH = (
    *("model", "stream", "stream_options", "stop", "n", "best_of", "logprobs", "logit_bias"),
    *("response_format", "structured_outputs"),
    *(row.name for row in PARAMETERS),
)
_ACCEPTED_BY_BOTH = {
    "user": str,
    "metadata": dict,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "service_tier": str,
    "parallel_tool_calls": bool,
    "store": bool,  # nothing is stored
}
_JSON_SCHEMA = Names("field of a schema", ("name", "schema", "strict"), {"description": str})
_FORMATS = {
    "response_format": Names(
        "field of response_format", ("type", "json_schema"), inside={"json_schema": _JSON_SCHEMA}
    ),
    "structured_outputs": Names(
        "field of structured_outputs", ("json", "json_object", "regex", "choice", "grammar")
    ),
}
STREAM_OPTIONS = Names("stream option", ("include_usage",), {}, {"include_obfuscation": (False,)})
REASONING = Names(
    "field of reasoning",
    ("effort", "enabled", "max_tokens"),
    {"exclude": bool, "summary": str, "generate_summary": str},
)
CONTENT_PART = Names(
    "field of a text part",
    ("type", "text"),
    {"annotations": list, "cache_control": dict},
    type="text",
)
CALLED = Names("field of a call", ("name", "arguments"), {"parsed_arguments": dict})
TOOL_CALL = Names(
    "field of a tool call", ("id", "type", "function"), {"index": int}, {}, {"function": CALLED}
)
FUNCTION = Names("field of a function", ("name", "description", "parameters", "strict"))
TOOL = Names(
    *("field of a tool", ("type", "function"), {"cache_control": dict}, {}),
    {"function": FUNCTION},
    type="function",
)
# SDK users send a message of an earlier answer back whole, with what other servers put into it.
MESSAGE = Names(
    "field of a message",
    (
        *("role", "content", "name", "reasoning_content", "reasoning", "refusal"),
        *("tool_calls", "tool_call_id", "function_call"),
    ),
    {"id": str, "reasoning_details": list, "annotations": list, "cache_control": dict}
    | {"parsed": dict},
    {"audio": ([],)},
    {"content": CONTENT_PART, "tool_calls": TOOL_CALL, "function_call": CALLED},
)
CHAT = Names(
    PARAMETER,
    (
        *("messages", "max_completion_tokens", "top_logprobs", "reasoning_effort", "reasoning"),
        *("chat_template_kwargs", "continue_final_message", "add_generation_prompt"),
        "thinking_token_budget",
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *_HONOURED_BY_BOTH,
    ),
    {**_ACCEPTED_BY_BOTH, "verbosity": str},
    {"modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": ()},
    {
        "messages": MESSAGE,
        "reasoning": REASONING,
        "stream_options": STREAM_OPTIONS,
        **_FORMATS,
        "tools": TOOL,
        "tool_choice": Names("field of tool_choice", ("type", "function", "allowed_tools")),
        "functions": FUNCTION,
    },
)
COMPLETION = Names(
    PARAMETER,
    ("prompt", "echo", "suffix", *_HONOURED_BY_BOTH),
    _ACCEPTED_BY_BOTH,
    inside={"stream_options": STREAM_OPTIONS, **_FORMATS},
)
