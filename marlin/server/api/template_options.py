"""What a chat request may tell the model's template: its variables, whose turn it is, and for how
long the model may think.

No I/O and no template: whether one reads a variable is its own business.
"""

from collections.abc import Sequence
from typing import Any

from marlin.files.fields import Fields, shown, type_name
from marlin.server.api.fields import checked_text, plain, refuse, request_fields
from marlin.server.api.openai_tools import ToolUse
from marlin.text.conversation import RESERVED_VARIABLES, Conversation, Message

# Published templates know a handful of switches; what is longer is a message, not a setting.
MAX_VARIABLES, MAX_VARIABLE_CHARACTERS = 32, 1024
_MAX_INTEGER = 2**63
_NO_THOUGHT = ("none", "minimal")


def parse_conversation(
    body: dict[str, Any], messages: Sequence[Message], tools: ToolUse
) -> Conversation:
    """What a chat request makes of its messages and tools.

    Raises:
        RequestError: with `param` naming the field.
    """
    continues, variables = _parse_continues(body, messages), _parse_variables(body)
    use = tools.offered, tools.max_calls, tools.must_call, tools.is_strict
    return Conversation(messages, continues, variables, *use)


def parse_thought_tokens(fields: Fields) -> int | None:
    """How many tokens a thought may have, by either name; None for no bound."""
    given = fields.count("thinking_token_budget", None, minimum=0)
    reasoning = fields.section("reasoning")
    inner = None if reasoning is None else reasoning.count("max_tokens", None, minimum=0)
    if None not in (given, inner) and given != inner:
        refuse("thinking_token_budget", f"is {given} but reasoning.max_tokens is {inner}")
    return given if inner is None else inner


def _parse_variables(body):
    effort = _parse_effort(body)
    variables: dict[str, Any] = {}
    if effort:
        variables |= {"reasoning_effort": effort, "thinking_effort": effort}
        # Qwen's, DeepSeek's and others' templates have a switch instead.
        variables["thinking"] = effort not in _NO_THOUGHT
        if effort in _NO_THOUGHT:
            variables["enable_thinking"] = False
    given = request_fields(body).of_type(dict, "chat_template_kwargs", {})
    if len(given) > MAX_VARIABLES:
        refuse("chat_template_kwargs", f"may hold {MAX_VARIABLES} names, got {len(given)}")
    return variables | {name: _checked(name, value) for name, value in given.items()}


def _parse_effort(body):
    fields = request_fields(body)
    reasoning = fields.section("reasoning")
    effort = fields.text("reasoning_effort", None)
    if reasoning is not None:
        inner = reasoning.text("effort", None)
        off = not reasoning.flag("enabled", True)
        effort = effort or ("none" if off else inner)
    return effort and _bounded(effort, "reasoning_effort")


def _checked(name, value):
    param = f"chat_template_kwargs.{plain(name)}"
    if name in RESERVED_VARIABLES:
        refuse(param, "is not for a request to set")
    if len(name) > MAX_VARIABLE_CHARACTERS:
        refuse(param, f"may have {MAX_VARIABLE_CHARACTERS} characters, got {len(name)}")
    if isinstance(value, str):
        return _bounded(value, param)
    if isinstance(value, (dict, list)):
        refuse(param, f"must be a plain value, got {type_name(value)}")
    if type(value) is int and not -_MAX_INTEGER <= value < _MAX_INTEGER:
        refuse(param, f"must be a 64-bit integer, got {shown(value)}")
    return value


def _bounded(text, param):
    if len(text) > MAX_VARIABLE_CHARACTERS:
        refuse(param, f"may have {MAX_VARIABLE_CHARACTERS} characters, got {len(text)}")
    return checked_text(text, param)


def _parse_continues(body, messages):
    """Whether the last message is to be continued: by default if it is the assistant's."""
    fields = request_fields(body)
    # After calls come their results.
    is_answer = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    # The other servers' name for the opposite, which their clients send along.
    new_turn = fields.flag("add_generation_prompt", None)
    continues = fields.flag("continue_final_message", is_answer and not new_turn)
    if continues and not is_answer:
        refuse("continue_final_message", "is true, but the last message is not the assistant's")
    if new_turn is continues:
        refuse("add_generation_prompt", f"must be {shown(not continues)}, got {shown(new_turn)}")
    return continues
