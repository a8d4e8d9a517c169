"""Llama 3: an answer that is one JSON object and nothing else, or code after a token of its own."""

from marlin.text.tool_calls.family import Family, json_call
from marlin.text.tool_calls.pythonic import python_arguments
from marlin.text.tool_calls.scanner import Reading, Scanner, drop
from marlin.text.tool_calls.shape import Shape, json_object

CODE = "<|python_tag|>"


def read(scan: Scanner) -> Reading[None]:
    scan.mark()
    is_code = yield from scan.take(CODE)
    if is_code and (yield from scan.peek()) != "{":
        scan.keep()
        yield from _built_in(scan)
        return
    is_call = is_code or (yield from _names_a_tool(scan))
    if not is_call and scan.is_cut:
        return  # what it would have been was never told
    scan.rewind()
    if is_call:
        yield from scan.take(CODE)
        yield from json_call(scan)
        while (yield from scan.take(";", ",")):
            yield from json_call(scan)
    yield from scan.content()


def _names_a_tool(scan):
    """Whether a JSON object begins with the name of a tool; any other is content."""
    if not (yield from scan.take("{")):
        return False
    while (key := (yield from scan.string())) is not None:
        if not (yield from scan.take(":")):
            return False
        value = yield from scan.string()
        if key == "name":
            return value in scan.tools
        if key != "type" or value is None or not (yield from scan.take(",")):
            return False
    return False


def _built_in(scan):
    name = yield from scan.text("(")
    if name is not None:
        scan.begin_call(name.strip().removesuffix(".call"))
        if (yield from python_arguments(scan)):
            scan.end_call()
    yield from scan.until((), drop)


_SHAPE = Shape(json_object(arguments="parameters"), between=None)
FAMILY = Family("llama", ('"name"', '"parameters": {"word"'), read, (CODE,), _SHAPE)
