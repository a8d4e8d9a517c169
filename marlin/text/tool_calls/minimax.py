"""MiniMax M2: invocations and their parameters as XML."""

from marlin.text.tool_calls.family import Family, between
from marlin.text.tool_calls.shape import Shape, in_tags
from marlin.text.tool_calls.tagged import Tags, tagged_call

OPENING, CLOSING = "<minimax:tool_call>", "</minimax:tool_call>"
TAGS = Tags(('">',), '<parameter name="', '">', "</parameter>", ("</invoke>",))
_call = in_tags(
    lambda name: f'<invoke name="{name}">\n',
    lambda key, is_text: f'<parameter name="{key}">',
    *("</parameter>\n", "</invoke>\n"),
)

FAMILY = Family(
    *("minimax", (OPENING, "<invoke name=")),
    between(OPENING, CLOSING, '<invoke name="', lambda scan: tagged_call(scan, TAGS)),
    *((OPENING, CLOSING), Shape(_call, f"{OPENING}\n", CLOSING)),
)
