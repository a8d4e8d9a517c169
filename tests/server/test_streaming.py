"""Server-sent events: their order, their framing and what becomes of errors in the middle."""

import json

from clients import MODEL, chat_body, completion_body, request_bytes
from fakes import EngineDown, FakeEngine, StoppedByEngine, say, say_then_hang

SHARED_FIELDS = ("id", "object", "created", "model", "system_fingerprint")


def stream(server, path, body):
    with server.connect() as client:
        return client.ask("POST", path, body)


def chat_events(server, **changes):
    answer = stream(server, "/v1/chat/completions", chat_body(stream=True, **changes))
    assert answer.status == 200
    return answer.events()


def text_of(events):
    return "".join(
        choice["delta"].get("content", "")
        for event in events
        if event != "[DONE]"
        for choice in event["choices"]
    )


def test_a_chat_stream_has_role_text_reason_and_done_in_this_order(server):
    *chunks, done = chat_events(server)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(chunks) == "Hello there!"
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert {chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]} == {None}


def test_every_chunk_repeats_id_object_created_and_model(server):
    chunks = chat_events(server)[:-1]
    first = {name: chunks[0][name] for name in SHARED_FIELDS}
    assert first["object"] == "chat.completion.chunk" and first["model"] == MODEL
    for chunk in chunks:
        assert {name: chunk[name] for name in first} == first
        assert "usage" not in chunk


def test_a_completion_stream_has_the_bodys_shape(server):
    answer = stream(server, "/v1/completions", completion_body(stream=True))
    *chunks, done = answer.events()
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello there!"
    assert chunks[0]["object"] == "text_completion"
    assert chunks[-1]["choices"] == [{"index": 0, "text": "", "finish_reason": "stop"}]


def test_include_usage_adds_a_last_chunk_without_choices(server):
    *chunks, usage, _done = chat_events(server, stream_options={"include_usage": True})
    assert usage["choices"] == []
    assert usage["usage"].items() >= {"prompt_tokens": 19, "completion_tokens": 12}.items()
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_stream_is_chunked_uncached_and_unbuffered_by_proxies(server):
    answer = stream(server, "/v1/chat/completions", chat_body(stream=True))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"


def test_text_arrives_while_the_engine_is_still_working(start_server):
    server = start_server(FakeEngine(say_then_hang(b"early")))
    with server.connect() as client:
        client.send(request_bytes("POST", "/v1/chat/completions", chat_body(stream=True)))
        assert b"200 OK" in client.read_stream_head()
        text = ""
        for data in client.chunks():
            text += "".join(
                json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                for line in data.decode().split("\n\n")
                if line
            )
            if text == "early":
                break


def test_the_connection_serves_on_after_a_stream(server):
    with server.connect() as client:
        for _ in range(3):
            body = chat_body(stream=True)
            assert client.ask("POST", "/v1/chat/completions", body).events()[-1] == "[DONE]"
        assert client.ask("GET", "/health").status == 200


def test_an_http_1_0_client_gets_a_stream_without_chunks_and_a_closed_connection(server):
    body = json.dumps(chat_body(stream=True)).encode()
    with server.connect() as client:
        client.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nConnection: keep-alive\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        answer = client.read()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.events()[-1] == "[DONE]"


def test_half_a_character_is_never_sent(start_server):
    server = start_server(FakeEngine(say("\U0001f600\u00e9".encode(), b"\xe2\x82")))
    events = chat_events(server)
    assert text_of(events) == "\U0001f600\u00e9\ufffd"


def test_no_part_of_a_stop_string_is_streamed(server):
    events = chat_events(server, stop="there")
    assert text_of(events) == "Hello "
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


def test_text_held_back_for_a_stop_string_is_sent_when_the_answer_ends_otherwise(server):
    events = chat_events(server, stop="e!?")
    assert text_of(events) == "Hello there!"


def test_an_invalid_streamed_request_gets_a_status_and_no_stream(server):
    answer = stream(server, "/v1/chat/completions", chat_body(stream=True, temperature=3))
    assert (answer.status, answer.error["param"]) == (422, "temperature")


def test_an_engine_failure_before_the_first_text_is_a_status(start_server):
    def script(_request):
        raise EngineDown
        yield

    server = start_server(FakeEngine(script))
    assert stream(server, "/v1/chat/completions", chat_body(stream=True)).status == 500


def test_an_engine_failure_in_mid_stream_is_a_final_error_event(start_server):
    def script(request):
        yield b"Hel"
        # The text must be on its way before the failure, or the two make one answer.
        sent.wait(10)
        raise EngineDown

    import threading

    sent = threading.Event()
    server = start_server(FakeEngine(script))
    with server.connect() as client:
        client.send(request_bytes("POST", "/v1/chat/completions", chat_body(stream=True)))
        client.read_stream_head()
        chunks = client.chunks()
        data = next(chunks)
        sent.set()
        data += b"".join(chunks)
        events = data.decode().split("\n\n")
        assert json.loads(events[-3][6:])["error"]["type"] == "server_error"
        assert events[-2:] == ["data: [DONE]", ""]
        assert client.ask("GET", "/health").status == 200


def test_a_request_that_the_engine_gives_up_is_503(start_server):
    def script(_request):
        raise StoppedByEngine
        yield

    server = start_server(FakeEngine(script))
    assert stream(server, "/v1/chat/completions", chat_body(stream=True)).status == 503
    assert stream(server, "/v1/chat/completions", chat_body()).status == 503


def test_an_empty_answer_still_has_role_and_reason(start_server):
    server = start_server(FakeEngine(say(b"")))
    events = chat_events(server)
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[1]["choices"][0]["finish_reason"] == "stop"
    assert events[2:] == ["[DONE]"]
