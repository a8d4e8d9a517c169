"""The API key: every route but / and /health asks for it."""

import select
import threading
import time
from contextlib import ExitStack

import pytest
from clients import CLIENT_TIMEOUT_S, chat_body, request_bytes

from marlin.server.api.keys import Guesses

KEY = "s3cret-\u00fc"


@pytest.fixture
def locked(start_server):
    return start_server(environ={"METAL_MARLIN_API_KEY": KEY})


def ask(server, path, authorization=None, method="GET", body=None):
    lines = request_bytes(method, path, body)
    if authorization is not None:
        field = f"Authorization: {authorization}\r\n".encode()
        lines = lines.replace(b"Host: test\r\n", b"Host: test\r\n" + field)
    with server.connect() as client:
        return client.send(lines).read()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/metrics", "/nowhere"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", "Basic " + KEY, KEY, "Bearer \u00e9\u4e2d"],
)
def test_a_missing_or_wrong_key_is_401(locked, path, authorization):
    answer = ask(locked, path, authorization)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"s3cret" not in answer.body


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_key_opens(locked, scheme):
    assert ask(locked, "/v1/models", f"{scheme} {KEY}").status == 200


@pytest.mark.parametrize("other", [b"", b"Authorization: Bearer unused\r\n"])
def test_the_right_key_opens_as_x_api_key_too(locked, other):
    for key, status in ((KEY.encode("utf-8"), 200), (b"wrong", 401), (b"", 401)):
        with locked.connect() as client:
            fields = b"Host: test\r\nX-Api-Key: " + key + b"\r\n" + other
            answer = client.send(b"GET /v1/models HTTP/1.1\r\n" + fields + b"\r\n").read()
        assert answer.status == status


@pytest.mark.parametrize("key", ["cl\u00e9-voil\u00e0", "na\u00efve\u2026\u0445"])
def test_a_key_may_end_in_a_byte_that_unicode_takes_for_a_blank(start_server, key):
    assert key.encode("utf-8")[-1:] in (b"\xa0", b"\x85")
    locked = start_server(environ={"METAL_MARLIN_API_KEY": key})
    assert ask(locked, "/v1/models", f"Bearer {key}").status == 200
    assert ask(locked, "/v1/models", f"Bearer  {key} \t").status == 200
    assert ask(locked, "/v1/models", f"Bearer {key[:-1]}\u00c3").status == 401


@pytest.mark.parametrize("byte", [b"\xa0", b"\x85", b"\xc2\xa0"])
def test_the_right_key_with_another_byte_beside_it_is_401(locked, byte):
    key = KEY.encode("utf-8")
    for presented in (key + byte, byte + key):
        with locked.connect() as client:
            fields = b"Host: test\r\nAuthorization: Bearer " + presented
            answer = client.send(b"GET /v1/models HTTP/1.1\r\n" + fields + b"\r\n\r\n").read()
        assert answer.status == 401


def test_health_needs_no_key(locked):
    assert ask(locked, "/health").status == 200


def test_an_unread_body_after_401_does_not_become_a_request(locked):
    with locked.connect() as client:
        client.send(request_bytes("POST", "/v1/chat/completions", request_bytes("GET", "/health")))
        assert client.read().status == 401
        client.send(request_bytes("GET", "/nowhere"))
        assert client.read().status == 401


def test_a_wrong_key_reaches_no_engine(locked):
    answer = ask(locked, "/v1/chat/completions", "Bearer x", "POST", chat_body())
    assert answer.status == 401
    assert locked.engine.requests == []


def test_without_a_configured_key_any_or_none_will_do(server):
    assert ask(server, "/v1/models").status == 200
    assert ask(server, "/v1/models", "Bearer whatever").status == 200


def guess(client, key="Bearer wrong"):
    client.send(request_bytes("GET", "/v1/models", headers=[f"Authorization: {key}"]))


def test_a_wrong_key_costs_its_client_time_and_a_missing_or_right_one_none(start_server):
    server = start_server(environ={"METAL_MARLIN_API_KEY": "plugh"}, wrong_key_s=0.5)
    with server.connect() as client:
        for key, costs in (("Bearer wrong", True), ("", False), ("Bearer plugh", False)):
            began = time.monotonic()
            guess(client, key)
            client.read()
            assert (time.monotonic() - began > 0.5) is costs, key


def test_guessers_hold_few_places_and_delay_nobody_with_a_key(start_server):
    server = start_server(
        environ={"METAL_MARLIN_API_KEY": "plugh"}, num_connections=24, wrong_key_s=5.0
    )
    with ExitStack() as stack:
        sources = [f"127.0.0.{n}" for n in range(1, 11)] * 2
        guessers = [stack.enter_context(server.connect(source)) for source in sources]
        for client in guessers:
            guess(client)
        least, told = 20 - 24 // 4, []
        end = time.monotonic() + CLIENT_TIMEOUT_S
        while len(told) < least and time.monotonic() < end:
            told = select.select([client.sock for client in guessers], [], [], 0.1)[0]
        told = [client for client in guessers if client.sock in told]
        assert {client.read().status for client in told} == {401}
        assert len(told) == least
        assert all(client.at_end() for client in told)
        began = time.monotonic()
        with server.connect("127.0.0.1") as client:
            guess(client, "Bearer plugh")
            assert client.read().status == 200
        assert time.monotonic() - began < 3


def test_one_client_takes_a_quarter_of_the_waits_for_wrong_keys_and_gives_them_back():
    over, begun = threading.Event(), threading.Semaphore(0)

    def wait(seconds):
        assert seconds == 1.0
        begun.release()
        over.wait(10)

    guesses = Guesses(1.0, 8, wait)
    threads = [threading.Thread(target=guesses.cost, args=("one",)) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=10)
    assert not guesses.cost("one")
    others = [threading.Thread(target=guesses.cost, args=(f"other {n}",)) for n in range(6)]
    for thread in others:
        thread.start()
        assert begun.acquire(timeout=10)
    assert not guesses.cost("another")
    over.set()
    for thread in threads + others:
        thread.join(10)
    assert guesses.cost("one") and guesses.cost("another")
