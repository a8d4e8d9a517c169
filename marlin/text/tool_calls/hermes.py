"""Hermes, Qwen 2.5 and 3, Granite 4: a JSON object between two tags."""

from marlin.text.tool_calls.family import Family, tagged_json

OPENING, CLOSING = "<tool_call>", "</tool_call>"

FAMILY = Family(
    "hermes",
    (OPENING, '"name"', '"arguments"'),
    tagged_json(OPENING, CLOSING),
    (OPENING, CLOSING),
)
