"""Streams that have to wait: their clients hear so, and a mistake still has its status."""

import select
import threading

import pytest
from clients import CLIENT_TIMEOUT_S, MODEL, chat_body, completion_body, request_bytes
from fakes import ByteTokenizer, EngineDown, FakeEngine, say_then_hang

COMMENT = b": waiting\n\n"
PATHS = ["/v1/chat/completions", "/v1/completions"]
SHORT = {"keep_alive_s": 0.05, "poll_s": 0.01}


class Held:
    """A script that says nothing before release(), as in a long prefill."""

    def __init__(self, after=(b"Hi", b" there")):
        self._released = threading.Event()
        self._after = after

    def __call__(self, _request):
        assert self._released.wait(CLIENT_TIMEOUT_S)
        yield from self._after

    def release(self):
        self._released.set()


def body_for(path, **changes):
    return (chat_body if "chat" in path else completion_body)(**changes)


def begin(server, path, **changes):
    """Send a request and leave its answer for later."""
    client = server.connect()
    client.send(request_bytes("POST", path, body_for(path, **changes)))
    return client


def is_silent(client, seconds):
    return select.select([client.sock], [], [], seconds)[0] == []


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_in_prefill_sends_its_head_and_comments_until_there_is_text(start_server, path):
    script = Held()
    server = start_server(FakeEngine(script), **SHORT)
    with begin(server, path, stream=True) as client:
        assert client.read_stream_head().startswith(b"HTTP/1.1 200 ")
        chunks = client.chunks()
        assert [next(chunks), next(chunks)] == [COMMENT, COMMENT]
        script.release()
        rest = b"".join(chunks)
    events = [block for block in rest.split(b"\n\n") if block and not block.startswith(b":")]
    assert events[-1] == b"data: [DONE]"
    assert all(event.startswith(b"data: ") for event in events)


def one_slot(start_server, engine, tokenizer=None, **limits):
    """A server with a single slot, which a request that says one word and hangs has taken."""
    options = {"max_concurrent_requests": "1"}
    server = start_server(engine, tokenizer, options=options, **{**SHORT, **limits})
    holder = begin(server, PATHS[1], stream=True)
    assert engine.submitted.acquire(timeout=CLIENT_TIMEOUT_S)
    return server, holder


def test_a_queued_stream_hears_that_it_waits_and_then_gets_its_answer(start_server):
    server, holder = one_slot(start_server, FakeEngine(say_then_hang(b"first")))
    server.engine.script = Held()
    with begin(server, PATHS[0], stream=True) as client:
        client.read_stream_head()
        chunks = client.chunks()
        assert next(chunks) == COMMENT
        assert len(server.engine.requests) == 1
        holder.close()
        server.engine.script.release()
        assert b"data: [DONE]" in b"".join(chunks)


class PickyTokenizer(ByteTokenizer):
    chat_template = "{{ raise_exception('no chat today') }}"


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        (PATHS[0], {}, 400),
        (PATHS[1], {"prompt": "x" * 100}, 400),
        (PATHS[1], {"prompt": [999]}, 422),
        (PATHS[1], {"logit_bias": {"999": 1}}, 422),
        (PATHS[1], {"model": "none"}, 404),
    ],
)
def test_a_mistake_is_told_by_its_status_though_the_queue_is_long(
    start_server, path, changes, status
):
    engine = FakeEngine(say_then_hang(b"first"), max_context_tokens=50)
    server, holder = one_slot(start_server, engine, PickyTokenizer(), keep_alive_s=CLIENT_TIMEOUT_S)
    with holder, begin(server, path, stream=True, **changes) as client:
        assert client.read().status == status


def test_an_answer_in_one_piece_is_waited_for_in_silence(start_server):
    script = Held()
    server = start_server(FakeEngine(script), **SHORT)
    with begin(server, PATHS[0]) as client:
        assert is_silent(client, 0.5)
        script.release()
        assert client.read().json()["choices"][0]["message"]["content"] == "Hi there"


def test_a_short_wait_leaves_an_early_failure_its_status(start_server):
    def fail(_request):
        raise EngineDown
        yield

    server = start_server(FakeEngine(fail))
    with begin(server, PATHS[0], stream=True) as client:
        assert client.read().status == 500


def test_a_failure_after_a_comment_is_an_error_event(start_server):
    script = Held(())

    def failing(request):
        yield from script(request)
        raise EngineDown

    server = start_server(FakeEngine(failing), **SHORT)
    with begin(server, PATHS[0], stream=True) as client:
        client.read_stream_head()
        chunks = client.chunks()
        assert next(chunks) == COMMENT
        script.release()
        rest = b"".join(chunks)
    assert b'"code":"internal_error"' in rest and rest.endswith(b"data: [DONE]\n\n")


def test_text_that_flows_has_no_comments_between(start_server):
    server = start_server(FakeEngine())
    with begin(server, PATHS[0], stream=True) as client:
        assert COMMENT not in client.read().body


def test_the_official_client_reads_past_comments(start_server, sdk):
    script = Held()
    server = start_server(FakeEngine(script), **SHORT)
    threading.Timer(0.3, script.release).start()
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    chunks = list(sdk(server).chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hi there"
