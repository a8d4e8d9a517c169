"""Kimi K2: the id of a call has its name and index, and must be sent back as it is."""

from marlin.text.grammar.constraint import InOrder, JsonSchema, Regex
from marlin.text.tool_calls.family import Family, between, json_arguments
from marlin.text.tool_calls.scanner import Reading, Scanner
from marlin.text.tool_calls.shape import Shape

OPENING, CLOSING = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = (
    *("<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
    "<|tool_call_end|>",
)


def _call(scan: Scanner) -> Reading[None]:
    id = yield from scan.text(ARGUMENTS)
    if id is None:
        return
    id = id.strip()
    scan.begin_call(id.removeprefix("functions.").rpartition(":")[0] or id, id)
    if (yield from json_arguments(scan, scan.arguments)):
        scan.end_call()


def _shape(name, schema, write):
    """The index is that of the call in the conversation, which the model knows."""
    parts = [write(f"{CALL}functions.{name}:"), Regex("[0-9]{1,3}"), write(ARGUMENTS)]
    return InOrder([*parts, JsonSchema(schema), write(CALL_END)])


FAMILY = Family(
    *("kimi", (CALL, ARGUMENTS), between(OPENING, CLOSING, CALL, _call)),
    (OPENING, CLOSING, CALL, ARGUMENTS, CALL_END),
    Shape(_shape, OPENING, CLOSING),
)
