"""GLM 4.5 to 4.7: a name, then keys and values in turn."""

from marlin.text.tool_calls.family import Family
from marlin.text.tool_calls.scanner import Reading, Scanner, drop
from marlin.text.tool_calls.shape import Shape, in_tags
from marlin.text.tool_calls.tagged import Tags, tagged_call

OPENING, CLOSING, KEY = "<tool_call>", "</tool_call>", "<arg_key>"
TAGS = Tags(("\n",), KEY, "</arg_key>", "</arg_value>", (CLOSING,), "<arg_value>")


def read(scan: Scanner) -> Reading[None]:
    while (yield from scan.content(OPENING)):
        if not (yield from tagged_call(scan, TAGS)):
            yield from scan.until((CLOSING,), drop)


TEXTS = (KEY, "</arg_key>", "<arg_value>", "</arg_value>")
_call = in_tags(
    lambda name: f"{OPENING}{name}\n",
    lambda key, is_text: f"{KEY}{key}</arg_key>\n<arg_value>",
    *("</arg_value>\n", CLOSING),
)
FAMILY = Family(
    *("glm", (OPENING, KEY), read, (OPENING, CLOSING, *TEXTS), Shape(_call, between="\n"))
)
