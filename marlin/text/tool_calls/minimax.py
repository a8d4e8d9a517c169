"""MiniMax M2: invocations and their parameters as XML."""

from marlin.text.tool_calls.family import Family, between
from marlin.text.tool_calls.tagged import Tags, tagged_call

OPENING, CLOSING = "<minimax:tool_call>", "</minimax:tool_call>"
TAGS = Tags(('">',), '<parameter name="', '">', "</parameter>", ("</invoke>",))

FAMILY = Family(
    *("minimax", (OPENING, "<invoke name=")),
    between(OPENING, CLOSING, '<invoke name="', lambda scan: tagged_call(scan, TAGS)),
    (OPENING, CLOSING),
)
