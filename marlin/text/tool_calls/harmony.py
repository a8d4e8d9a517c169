"""gpt-oss: messages on channels, of which one is thoughts and one is calls."""

import re

from marlin.text.grammar.constraint import InOrder, Repeated, Text, Until, marker
from marlin.text.tool_calls.family import Family, json_arguments
from marlin.text.tool_calls.scanner import Reading, Scanner, drop
from marlin.text.tool_calls.shape import Shape, named_json

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", START)
# The receiver of a message stands before its channel or after it.
_RECEIVER, _CHANNEL = re.compile(r"\bto=functions\.([^\s<]+)"), re.compile(r"<\|channel\|>(\w+)")


def read(scan: Scanner) -> Reading[None]:
    scan.mark()
    head: list[str] = []
    found = yield from scan.until((MESSAGE,), head.append)
    if found is None and _is_content("".join(head), scan.is_cut):
        scan.rewind()
        yield from scan.content()
    scan.keep()
    while found:
        yield from _message(scan, "".join(head))
        head.clear()
        found = yield from scan.until((MESSAGE,), head.append)


def _is_content(text, is_cut):
    """Whether an answer without a message is one all the same."""
    may_be_head = text.startswith("<|") or "to=functions." in text
    return not (may_be_head or (is_cut and CHANNEL.startswith(text.lstrip())))


def _message(scan, head):
    receiver, channel = _RECEIVER.search(head), _CHANNEL.search(head)
    if receiver and scan.tools:
        scan.begin_call(receiver[1])
        if (yield from json_arguments(scan, scan.arguments)):
            scan.end_call()
        yield from scan.until(ENDS, drop)
    elif channel and channel[1] == "analysis":
        scan.turn(thinking=True)
        yield from scan.until(ENDS, scan.think)
        scan.turn()
    else:
        yield from scan.content(*ENDS)


_THOUGHTS = Repeated(
    InOrder(
        [
            *(marker(CHANNEL), Text("analysis"), marker(MESSAGE), Until(ENDS[0])),
            *(marker(START), Text("assistant")),
        ]
    )
)
_CALL = named_json(f"{CHANNEL}commentary to=functions.", f" <|constrain|>json{MESSAGE}")
FAMILY = Family(
    *("harmony", (CHANNEL, MESSAGE), read),
    (CHANNEL, MESSAGE, "<|constrain|>", *ENDS),
    Shape(_CALL, between=None, content=f"{CHANNEL}final{MESSAGE}", thoughts=_THOUGHTS),
    reads_all=True,
)
