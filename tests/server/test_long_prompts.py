"""Long texts: refused before tokenizing, a part at a time, and no longer than asked."""

import sys
import threading
import time

import pytest
from clients import CLIENT_TIMEOUT_S, chat_body, completion_body, request_bytes
from fakes import ByteTokenizer, FakeEngine

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SHORT, LONG = "x", "x" * 11  # with long_text_characters=10


class BlockedTokenizer(ByteTokenizer):
    """Encodes a text only after release(); notes who is encoding."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.most_at_once = 0
        self._inside = 0
        self._lock = threading.Lock()
        self._released = threading.Event()

    def release(self):
        self._released.set()

    def encode(self, text, *, add_special_tokens=True):
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        self.entered.release()
        assert self._released.wait(CLIENT_TIMEOUT_S)
        with self._lock:
            self._inside -= 1
        return super().encode(text)


@pytest.fixture
def tokenizer():
    blocked = BlockedTokenizer()
    yield blocked
    blocked.release()


class BoundedTokenizer(ByteTokenizer):
    """Knows the least number of tokens, and counts the texts that it is given all the same."""

    def __init__(self):
        self.num_encoded = 0

    def min_tokens(self, text):
        return len(text) // 4

    def encode(self, text, *, add_special_tokens=True):
        self.num_encoded += 1
        return super().encode(text)


class PartsTokenizer(ByteTokenizer):
    """Notes each part of a text, which has two tokens, and goes on only when told to."""

    def __init__(self):
        self.parts = []
        self.entered, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def encode_parts(self, text, num_characters, *, add_special_tokens=True):
        for start in range(0, len(text), num_characters):
            self.parts.append(text[start])
            self.entered.release()
            assert self.go_on.acquire(timeout=CLIENT_TIMEOUT_S)
            time.sleep(0.02)
            yield [1, 2]


@pytest.fixture
def parts_tokenizer():
    tokenizer = PartsTokenizer()
    yield tokenizer
    tokenizer.go_on.release(1000)


def ask(server, prompt, source=None):
    client = server.connect(source)
    client.send(request_bytes("POST", COMPLETIONS, completion_body(prompt=prompt)))
    return client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, completion_body(prompt="x" * 4000)),
        (CHAT, chat_body(messages=[{"role": "user", "content": "x" * 4000}])),
    ],
)
def test_a_prompt_that_cannot_fit_is_refused_without_being_tokenized(start_server, path, body):
    tokenizer = BoundedTokenizer()
    server = start_server(FakeEngine(max_context_tokens=500), tokenizer)
    with server.connect() as client:
        answer = client.ask("POST", path, body)
        assert tokenizer.num_encoded == 0
        usual = client.ask("POST", COMPLETIONS, completion_body(prompt="x" * 600))
    assert tokenizer.num_encoded == 1
    assert answer.status == usual.status == 400
    message, usual_message = answer.error.pop("message"), usual.error["message"]
    least = "1000" if path == COMPLETIONS else "1004"
    assert message == usual_message.replace("has 600", f"has at least {least}")
    assert answer.error["code"] == usual.error["code"] == "context_length_exceeded"
    assert set(answer.json()["error"]) == set(usual.json()["error"])


def test_a_list_of_prompts_is_tokenized_up_to_the_first_that_does_not_fit(start_server):
    tokenizer = BoundedTokenizer()
    server = start_server(FakeEngine(max_context_tokens=10), tokenizer)
    with server.connect() as client:
        answer = client.ask("POST", COMPLETIONS, completion_body(prompt=["x", "x" * 12, "x"]))
    assert answer.error["code"] == "context_length_exceeded"
    assert tokenizer.num_encoded == 2
    assert server.engine.requests == []


def test_long_texts_are_tokenized_one_at_a_time_and_short_ones_beside_them(start_server, tokenizer):
    server = start_server(tokenizer=tokenizer, long_text_characters=10, poll_s=0.01)
    clients = [ask(server, LONG) for _ in range(3)]
    assert tokenizer.entered.acquire(timeout=CLIENT_TIMEOUT_S)
    assert not tokenizer.entered.acquire(timeout=0.2)
    clients.append(ask(server, SHORT))
    assert tokenizer.entered.acquire(timeout=CLIENT_TIMEOUT_S)
    tokenizer.release()
    for client in clients:
        with client:
            assert client.read().status == 200
    assert tokenizer.most_at_once == 2


def test_a_long_text_waits_for_its_turn_no_longer_than_the_timeout(start_server, tokenizer):
    server = start_server(
        tokenizer=tokenizer, options={"timeout_s": "0.3"}, long_text_characters=10, poll_s=0.01
    )
    with ask(server, LONG) as first:
        assert tokenizer.entered.acquire(timeout=CLIENT_TIMEOUT_S)
        with ask(server, LONG) as second:
            answer = second.read()
            assert (answer.status, answer.error["code"]) == (504, "timeout")
        tokenizer.release()
        assert first.read().status == 504
    assert server.engine.requests == []


def test_a_client_that_leaves_gives_up_its_turn(start_server, tokenizer):
    server = start_server(tokenizer=tokenizer, long_text_characters=10, poll_s=0.01)
    with ask(server, LONG) as first:
        assert tokenizer.entered.acquire(timeout=CLIENT_TIMEOUT_S)
        ask(server, LONG).close()
        end = time.monotonic() + CLIENT_TIMEOUT_S
        while server.metrics()["requests_total"] < 2 or server.metrics()["requests_active"] > 1:
            assert time.monotonic() < end, "it waits on"
        tokenizer.release()
        assert first.read().status == 200
    assert len(server.engine.requests) == 1


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_a_tokenizer_that_takes_longer_than_the_timeout_ends_in_504(start_server, text):
    encoded = []

    class SlowTokenizer(ByteTokenizer):
        def encode(self, text, *, add_special_tokens=True):
            encoded.append(text)
            time.sleep(0.7)
            return super().encode(text)

    server = start_server(
        tokenizer=SlowTokenizer(), options={"timeout_s": "0.6"}, long_text_characters=10
    )
    with ask(server, [text, text, text]) as client:
        answer = client.read()
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    assert len(encoded) == 1 and server.engine.requests == []


def test_a_client_that_left_while_its_text_was_tokenized_reaches_no_engine(start_server, tokenizer):
    server = start_server(tokenizer=tokenizer)
    client = ask(server, LONG)
    assert tokenizer.entered.acquire(timeout=CLIENT_TIMEOUT_S)
    client.close()
    tokenizer.release()
    server.wait_until_idle()
    assert server.engine.requests == []


def test_a_text_is_given_up_between_two_parts_when_its_time_is_over(start_server, parts_tokenizer):
    server = start_server(
        tokenizer=parts_tokenizer, options={"timeout_s": "0.6"}, long_text_characters=10
    )
    with ask(server, "x" * 50) as client:
        assert parts_tokenizer.entered.acquire(timeout=CLIENT_TIMEOUT_S)
        time.sleep(0.7)
        parts_tokenizer.go_on.release()
        answer = client.read()
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    assert parts_tokenizer.parts == ["x"] and server.engine.requests == []


def test_a_text_is_refused_as_soon_as_its_parts_do_not_fit(start_server, parts_tokenizer):
    engine = FakeEngine(max_context_tokens=5)
    server = start_server(engine, parts_tokenizer, long_text_characters=10)
    parts_tokenizer.go_on.release(1000)
    with ask(server, "x" * 990) as client:
        answer = client.read()
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert "has at least 6 tokens" in answer.error["message"]
    assert len(parts_tokenizer.parts) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="this system answers on 127.0.0.1 alone")
def test_long_texts_of_two_clients_are_tokenized_by_turns(start_server, parts_tokenizer):
    server = start_server(tokenizer=parts_tokenizer, long_text_characters=10, poll_s=0.01)
    hogs = [ask(server, "a" * 30) for _ in range(3)]
    assert parts_tokenizer.entered.acquire(timeout=CLIENT_TIMEOUT_S)
    gate = server.app._endpoints._model._long_parts
    with ask(server, "b" * 30, "127.0.0.2") as other:
        end = time.monotonic() + CLIENT_TIMEOUT_S
        while gate.num_waiting < 3:
            assert time.monotonic() < end, "they do not come for their turns"
        parts_tokenizer.go_on.release(1000)
        assert other.read().status == 200
    for hog in hogs:
        with hog:
            assert hog.read().status == 200
    order = "".join(parts_tokenizer.parts)
    assert sorted(order) == [*"aaaaaaaaabbb"]
    assert order.index("b") == 1 and order.rindex("b") <= 6, order


def test_health_tells_of_a_text_that_no_tokenizer_comes_to_an_end_with(start_server, tokenizer):
    server = start_server(tokenizer=tokenizer, stuck_s=1.0)
    with server.connect() as probe, ask(server, SHORT) as client:
        assert tokenizer.entered.acquire(timeout=CLIENT_TIMEOUT_S)
        assert probe.ask("GET", "/health").status == 200
        time.sleep(1.1)
        server.app.heartbeat()  # it does not wait for the tokenizer
        assert probe.ask("GET", "/health").status == 503
        tokenizer.release()
        assert client.read().status == 200
        server.app.heartbeat()
        assert probe.ask("GET", "/health").status == 200


class Hostile(ByteTokenizer):
    """Takes for ever with some texts."""

    def __init__(self):
        self.over = threading.Event()

    def encode(self, text, **kinds):
        if "hangs" in text:
            self.over.wait(CLIENT_TIMEOUT_S)
        return super().encode(text, **kinds)


def test_a_text_that_a_tokenizer_may_never_end_is_504_in_time_and_holds_up_no_other(start_server):
    tokenizer = Hostile()
    server = start_server(
        tokenizer=tokenizer, options={"timeout_s": "2"}, num_helpers=2, poll_s=0.05, stuck_s=60
    )

    def status(text):
        body = chat_body(messages=[{"role": "user", "content": text}])
        with server.connect() as client:
            began = time.monotonic()
            answer = client.ask("POST", "/v1/chat/completions", body)
        assert time.monotonic() - began < CLIENT_TIMEOUT_S
        return answer.status

    try:
        assert (status("it hangs"), status("Hi")) == (504, 200)
        assert (status("it hangs"), status("Hi")) == (504, 504)  # no helper is left
    finally:
        tokenizer.over.set()
    assert status("Hi") == 200
