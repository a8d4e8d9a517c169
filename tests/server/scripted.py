"""A server whose model says what a test has it say, by a published chat template."""

import json
from pathlib import Path

from fakes import ByteTokenizer, FakeEngine, say

TEMPLATES = Path(__file__).parent.parent / "data" / "chat_templates"
THOUGHT = "<think>\nHm.\n</think>\n\n"
ARGUMENTS = '{"city": "Rome", "days": 3}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


class Qwen(ByteTokenizer):
    chat_template = (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text()


def saying(text):
    """(engine, tokenizer) of a model that says this, a byte a token, to whatever it is asked."""
    return FakeEngine(say(*([byte] for byte in text.encode()))), Qwen()


def prompt_of(server):
    """The text of the last request's prompt."""
    return bytes(server.engine.requests[-1].prompt_token_ids).decode()


def named_events(body):
    """[(name, data)] of server-sent events that have names."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    pairs = [block.removeprefix("event: ").split("\ndata: ") for block in blocks]
    return [(name, json.loads(data)) for name, data in pairs]
