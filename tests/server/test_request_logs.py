"""What a live server writes to its log: the fields, the request id, and never a prompt or a key."""

import json
import logging
import re

import pytest
from clients import CLIENT_TIMEOUT_S, chat_body, request_bytes
from fakes import EngineDown, FakeEngine, say
from test_serve_process import start  # noqa: F401  (a fixture)

from marlin.server.observe.logs import JsonFormatter

CHAT = "/v1/chat/completions"
PROMPT = [{"role": "user", "content": "xyzzy-prompt"}]
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def json_lines(errors):
    return [json.loads(line) for line in errors.splitlines() if line.startswith("{")]


def test_every_line_of_a_json_log_is_an_object_and_a_request_leaves_one(start):  # noqa: F811
    process = start("hello", "--host", "127.0.0.1", "--log-format", "json")
    with process.connect() as client:
        body = chat_body(model="hello", messages=PROMPT)
        answer = client.ask("POST", CHAT, body, ["X-Request-ID: mine-1"])
        assert answer.headers["x-request-id"] == "mine-1"
        made_up = client.ask("POST", CHAT, body | {"stream": True}).headers["x-request-id"]
        client.ask("GET", "/nowhere")
    code, errors = process.stop()
    assert code == 0
    assert [line for line in errors.splitlines() if not line.startswith("{")] == []
    whole, streamed, missing = [line for line in json_lines(errors) if "path" in line]
    assert RFC3339.fullmatch(whole.pop("time"))
    assert re.fullmatch(r"127\.0\.0\.1 POST .* id=mine-1", whole.pop("message"))
    assert 0 < whole.pop("duration_ms") < 1000 * CLIENT_TIMEOUT_S
    assert whole == {
        "level": "INFO",
        "logger": "marlin.server",
        "pid": process.popen.pid,
        "request_id": "mine-1",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "client": "127.0.0.1",
        "prompt_tokens": len("user: xyzzy-prompt\nassistant:"),
        "output_tokens": len("Hello there!"),
    }
    assert (streamed["request_id"], streamed["output_tokens"]) == (made_up, 12)
    assert (missing["status"], missing["path"]) == (404, "/nowhere")
    assert "prompt_tokens" not in missing


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_log_holds_a_prompt_an_answer_or_a_key(start, log_format):  # noqa: F811
    options = ("--host", "127.0.0.1", "--log-format", log_format)
    process = start(
        "hello", *options, METAL_MARLIN_API_KEY="plugh-key", METAL_MARLIN_LOG_LEVEL="DEBUG"
    )
    key = ["Authorization: Bearer plugh-key"]
    bodies = [
        chat_body(model="hello", messages=PROMPT),
        chat_body(model="hello", messages=PROMPT, stream=True),
        chat_body(model="hello", messages=[{"role": "xyzzy-role", "content": "xyzzy-prompt"}]),
        b'{"messages": "xyzzy-prompt',
    ]
    with process.connect() as client:
        statuses = [client.ask("POST", CHAT, body, key).status for body in bodies]
        statuses.append(client.ask("POST", CHAT, bodies[0]).status)
        wrong = ["Authorization: Bearer plugh-wrong"]
        statuses.append(client.ask("GET", "/v1/models?key=plugh-key", None, wrong).status)
        client.ask("GET", "/health")
    assert statuses == [200, 200, 422, 400, 401, 401]
    code, errors = process.stop()
    assert code == 0 and "/health" in errors and CHAT in errors
    for word in ("xyzzy", "plugh", "Hello there"):
        assert word not in errors


def test_an_internal_error_is_logged_with_its_request_id_and_traceback(start_server, caplog):
    def script(_request):
        yield from ()
        raise EngineDown("tripped")

    server = start_server(FakeEngine(script))
    with caplog.at_level(logging.INFO, logger="marlin.server"), server.connect() as client:
        client.ask("POST", CHAT, chat_body(), ["X-Request-ID: mine-2"])
        # The error is logged before it is answered.
        failed = next(record for record in caplog.records if record.exc_info)
    line = json.loads(JsonFormatter().format(failed))
    assert (line["level"], line["request_id"]) == ("ERROR", "mine-2")
    assert line["exception"].endswith("EngineDown: tripped")


def test_a_malformed_request_is_one_line_with_its_status(start):  # noqa: F811
    process = start("hello", "--host", "127.0.0.1", "--log-format", "json")
    with process.connect() as client:
        assert client.send(b"GET / HTTP/1.1\r\nA: \x1b[31m\r\n\r\n").read().status == 400
    _, errors = process.stop()
    line = next(line for line in json_lines(errors) if "malformed" in line["message"])
    assert (line["status"], line["client"]) == (400, "127.0.0.1")
    assert "\x1b" not in errors


@pytest.mark.parametrize("given", ["a\tb", "x" * 129, "ü", 'a"b', "id=1 forged"])
def test_a_request_id_that_could_harm_a_log_is_replaced(start_server, caplog, given):
    server = start_server(FakeEngine(say(b"x")))
    with caplog.at_level(logging.INFO, logger="marlin.server"), server.connect() as client:
        client.send(request_bytes("GET", "/v1/models", None, [f"X-Request-ID: {given}"]))
        assert re.fullmatch(r"req-[0-9a-f]{24}", client.read().headers["x-request-id"])
        client.ask("GET", "/v1/models")  # by now the first request's line is written
    assert caplog.records and not any(given in record.getMessage() for record in caplog.records)
