"""Kimi K2: the id of a call has its name and index, and must be sent back as it is."""

from marlin.text.tool_calls.family import Family, between, json_arguments
from marlin.text.tool_calls.scanner import Reading, Scanner

OPENING, CLOSING = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = (
    *("<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
    "<|tool_call_end|>",
)


def _call(scan: Scanner) -> Reading[bool]:
    id = yield from scan.text(ARGUMENTS)
    if id is None:
        return False
    id = id.strip()
    scan.begin_call(id.removeprefix("functions.").rpartition(":")[0] or id, id)
    if not (yield from json_arguments(scan, scan.arguments)):
        return False
    scan.end_call()
    return True


FAMILY = Family(
    *("kimi", (CALL, ARGUMENTS), between(OPENING, CLOSING, CALL, _call)),
    (OPENING, CLOSING, CALL, ARGUMENTS, CALL_END),
)
