"""DeepSeek: V3 and R1 in tokens of their own around JSON, V3.2 and later in DSML."""

from marlin.text.tool_calls.family import Family, between, json_arguments
from marlin.text.tool_calls.scanner import Reading, Scanner
from marlin.text.tool_calls.shape import Shape, in_tags, named_json
from marlin.text.tool_calls.tagged import Tags, tagged_call

_BAR, _BLANK = "\uff5c", "\u2581"


def _token(words):
    return f"<{_BAR}{words.replace(' ', _BLANK)}{_BAR}>"


OPENING, CLOSING = _token("tool calls begin"), _token("tool calls end")
CALL, SEPARATOR, CALL_END = _token("tool call begin"), _token("tool sep"), _token("tool call end")


def _call(scan: Scanner) -> Reading[None]:
    name = yield from scan.text(SEPARATOR)
    if name is not None and name.strip() == "function":
        # V3 and R1: the kind comes first, and the JSON stands in a fence.
        name = yield from scan.text("\n")
        yield from scan.take("```json")
    if name is None:
        return
    scan.begin_call(name.strip())
    if (yield from json_arguments(scan, scan.arguments)):
        scan.end_call()


FAMILY = Family(
    *("deepseek", (CALL, SEPARATOR), between(OPENING, CLOSING, CALL, _call)),
    (OPENING, CLOSING, CALL, SEPARATOR, CALL_END),
    Shape(named_json(CALL, SEPARATOR, CALL_END), OPENING, CLOSING),
)

_DSML = f"{_BAR}DSML{_BAR}"
_TAGS = Tags(
    *(('">',), f'<{_DSML}parameter name="', '">', f"</{_DSML}parameter>"),
    (f"</{_DSML}invoke>",),
)
_dsml_call = in_tags(
    lambda name: f'<{_DSML}invoke name="{name}">\n',
    lambda key, is_text: f'<{_DSML}parameter name="{key}" string="{str(is_text).lower()}">',
    *(f"</{_DSML}parameter>\n", f"</{_DSML}invoke>\n"),
)


def _dsml(word):
    """Versions differ in the word of the outer tag."""
    tags = f"<{_DSML}{word}>", f"</{_DSML}{word}>"
    calls = between(*tags, f'<{_DSML}invoke name="', lambda scan: tagged_call(scan, _TAGS))
    shape = Shape(_dsml_call, f"{tags[0]}\n", tags[1])
    return Family(f"dsml {word}", (f"{_DSML}invoke", tags[0]), calls, (*tags, _DSML), shape)


DSML = tuple(map(_dsml, ("function_calls", "tool_calls")))
