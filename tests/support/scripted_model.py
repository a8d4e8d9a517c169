"""A served model with a script in the place of weights: it calls the tools that it is offered, as
Qwen3 writes calls, and says what a tool answered.

A real server around the mock's engine, for clients that need an answer with sense. Owns the script;
knows no client.
"""

import json
import re
import threading
from contextlib import contextmanager
from pathlib import Path

from marlin.config import serve_config
from marlin.engine.mock import MockEngine, MockTokenizer
from marlin.engine.served_model import ServedModel
from marlin.server.http.limits import Limits
from marlin.server.http.listener import HttpServer, open_listener
from marlin.server.process.serve import build_app

MODEL = "scripted"
WEATHER = "It is 25 C in Rome."
DATA = {"string": "Rome", "integer": 25, "number": 25.5, "boolean": True}
_TEMPLATES = Path(__file__).parent.parent / "data" / "chat_templates"
_TURN = "<|im_start|>"


class ScriptedTokenizer(MockTokenizer):
    """Bytes and words; the template is Qwen3's."""

    chat_template = (_TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text()


def answer_to(prompt):
    """What the model says.

    The tool `weather` is called first where there is one; other tools are ways of giving the
    result, which are called with what their schemas ask for. Whoever asks for JSON gets the
    same data without a tool.
    """
    tools = [json.loads(line)["function"] for line in _tools_of(prompt)]
    turn = prompt.rpartition(f"{_TURN}user\n")[2]
    has_result = turn.startswith("<tool_response>")
    thought = (
        "" if "<think>" in prompt.rpartition(_TURN)[2] else "<think>\nLet me see.\n</think>\n\n"
    )
    weather = [tool for tool in tools if tool["name"] == "weather"]
    others = [tool for tool in tools if tool["name"] != "weather"]
    if weather and not has_result:
        return thought + _call(weather[0])
    if others:
        return thought + _call(others[0])
    if "JSON" in prompt:
        return json.dumps({"city": "Rome", "degrees": 25})
    return f"{thought}{WEATHER}"


def _tools_of(prompt):
    listed = re.search(r"<tools>\n(.*?)\n</tools>", prompt, re.DOTALL)
    return listed[1].splitlines() if listed else []


def _call(tool):
    written = json.dumps({"name": tool["name"], "arguments": _filled(tool.get("parameters") or {})})
    return f"<tool_call>\n{written}\n</tool_call>"


def _filled(schema):
    """An object with a value for each property that a schema requires."""
    properties = schema.get("properties", {})
    names = schema.get("required", list(properties))
    return {name: DATA[properties[name].get("type", "string")] for name in names}


class ScriptedEngine(MockEngine):
    """Its script says what was asked for, so that no mask is needed."""

    def guide_of(self, params):
        return None


@contextmanager
def scripted_server():
    """The base URL of a running server, without /v1."""
    tokenizer = ScriptedTokenizer()

    def answer(request):
        prompt = tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)
        yield from tokenizer.encode(answer_to(prompt))
        yield from tokenizer.eos_token_ids

    engine = ScriptedEngine(tokenizer, 128 * 1024, step_s=0, answer=answer)
    config = serve_config({"host": "127.0.0.1", "port": "0"}, {})
    limits = Limits()
    model = ServedModel(MODEL, engine, tokenizer)
    app = build_app(config, model, limits, created=1_700_000_000)
    server = HttpServer(open_listener(config.host, config.port, limits.backlog), app, limits)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.drain(10)
        model.close()
