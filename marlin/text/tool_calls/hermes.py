"""Hermes, Qwen 2.5 and 3, Granite 4: a JSON object between two tags; Nemotron, Apriel: an array."""

from marlin.text.tool_calls.family import Family, tagged_json
from marlin.text.tool_calls.shape import Shape, json_object


def _family(name, tag, shape):
    tags = f"<{tag}>", f"</{tag}>"
    return Family(name, (tags[0], '"name"', '"arguments"'), tagged_json(*tags), tags, shape)


def _array(tag):
    return Shape(json_object(), f"<{tag}>[", f"]</{tag}>", ", ")


_ALONE = Shape(json_object("<tool_call>\n", "\n</tool_call>"), between="\n")
FAMILY = _family("hermes", "tool_call", _ALONE)
NEMOTRON = _family("nemotron", "TOOLCALL", _array("TOOLCALL"))
APRIEL = _family("apriel", "tool_calls", _array("tool_calls"))
