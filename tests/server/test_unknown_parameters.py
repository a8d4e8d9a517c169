"""--unknown-parameters: what nobody knows is refused, or taken with a word in header and log."""

import logging

import pytest
from clients import MODEL, chat_body, completion_body

HEADER = "x-ignored-parameters"


@pytest.fixture
def lenient(start_server):
    return start_server(options={"unknown_parameters": "warn"})


def ask(server, path, body):
    with server.connect() as client:
        return client.ask("POST", path, body)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"mirostat": 2}, "mirostat"),
        ({"tool_choice": {"type": "auto", "disable_parallel": True}},
         "tool_choice.disable_parallel"),
    ],
)  # fmt: skip
def test_unknown_parameters_are_refused_by_default(server, given, param):
    answer = ask(server, "/v1/chat/completions", chat_body(**given))
    assert (answer.status, answer.error["param"]) == (422, param)
    assert HEADER not in answer.headers


def test_ignored_names_are_in_a_header_and_in_the_log(lenient, caplog):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi", "lang": "en"}], "x": 1}]
    body = chat_body(mirostat=2, messages=messages, stream_options={"live": True})
    with caplog.at_level(logging.WARNING, "marlin.server"):
        answer = ask(lenient, "/v1/chat/completions", body)
    names = "mirostat, messages[0].content[0].lang, messages[0].x, stream_options.live"
    assert answer.status == 200
    assert set(answer.headers[HEADER].split(", ")) == set(names.split(", "))
    (line,) = [record.getMessage() for record in caplog.records if "ignored" in record.msg]
    assert answer.headers[HEADER] in line and answer.headers["x-request-id"] in line
    plain = ask(lenient, "/v1/chat/completions", chat_body())
    assert HEADER not in plain.headers
    assert answer.json()["choices"] == plain.json()["choices"]


def test_a_stream_and_an_error_tell_of_them_too(lenient):
    for changes, status in (({"stream": True}, 200), ({"model": "none"}, 404)):
        answer = ask(lenient, "/v1/completions", completion_body(num_ctx=1, **changes))
        assert (answer.status, answer.headers[HEADER]) == (status, "num_ctx")


def test_every_endpoint_that_reads_a_body_tells_of_them(lenient):
    answer = ask(lenient, "/api/show", {"model": MODEL, "modle": 1})
    assert (answer.status, answer.headers[HEADER]) == (200, "modle")


def test_what_is_known_is_refused_all_the_same(lenient):
    for changes in ({"tools": [{}]}, {"temperature": "hot"}, {"response_format": {"type": "x"}}):
        assert ask(lenient, "/v1/chat/completions", chat_body(**changes)).status == 422


def test_names_that_are_hostile_to_headers_are_spelled_and_few(lenient):
    hostile = {"a\r\nSet-Cookie: b": 1, "\u4e2d\ud800": 1, "x" * 100_000: 1}
    answer = ask(lenient, "/v1/completions", completion_body(**hostile))
    assert answer.status == 200 and "set-cookie" not in answer.headers
    assert answer.headers[HEADER].startswith("a\\r\\nSet-Cookie: b, \\u4e2d\\ud800, xxx")
    many = {f"name_{i}": 1 for i in range(1000)}
    answer = ask(lenient, "/v1/completions", completion_body(**many))
    assert len(answer.headers[HEADER].split(", ")) == 20


def test_the_next_request_of_a_connection_does_not_inherit_them(lenient):
    with lenient.connect() as client:
        path = "/v1/completions"
        assert HEADER in client.ask("POST", path, completion_body(num_ctx=1)).headers
        assert HEADER not in client.ask("POST", path, completion_body()).headers


def test_the_official_client_gets_its_answer(lenient, sdk):
    extra = {"repeat_penalty": 1.1, "provider": {"order": []}}
    completions = sdk(lenient).completions
    answer = completions.with_raw_response.create(model=MODEL, prompt="Hi", extra_body=extra)
    assert answer.headers[HEADER] == "repeat_penalty, provider"
    assert answer.parse().choices[0].text
