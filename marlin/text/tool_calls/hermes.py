"""Hermes, Qwen 2.5 and 3, Granite 4: a JSON object between two tags; Nemotron, Apriel: an array."""

from marlin.text.tool_calls.family import Family, tagged_json


def _family(name, tag):
    tags = f"<{tag}>", f"</{tag}>"
    return Family(name, (tags[0], '"name"', '"arguments"'), tagged_json(*tags), tags)


FAMILY = _family("hermes", "tool_call")
NEMOTRON = _family("nemotron", "TOOLCALL")
APRIEL = _family("apriel", "tool_calls")
