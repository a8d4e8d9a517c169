"""The room that request bodies have together: taken before they are read, given back after."""

import json
import sys
import threading
import time

import pytest
from clients import chat_body, completion_body, request_bytes
from fakes import FakeEngine, say_then_hang

from marlin.errors import OverloadedError
from marlin.server.http.budget import BodyBudget, Share

CHAT = "/v1/chat/completions"
LARGE = chat_body(messages=[{"role": "user", "content": "a" * 30_000}])

FIELDS = b"Host: a\r\nContent-Type: application/json\r\n"


def send_all_but_the_end(client, body=LARGE):
    client.send(request_bytes("POST", CHAT, body)[:-1])


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def used_bytes(server):
    return server.http_server.body_budget.used_bytes


def test_a_body_without_room_is_503_with_retry_after_and_costs_its_connection(start_server):
    server = start_server(bodies_bytes=50_000, body_bytes=50_000, bodies_wait_s=0.05)
    with server.connect() as slow, server.connect() as other:
        send_all_but_the_end(slow)
        wait_until(lambda: used_bytes(server) > 30_000)
        answer = other.ask("POST", CHAT, LARGE)
        assert answer.status == 503 and answer.headers["retry-after"] == "1"
        assert "50000 bytes" in answer.json()["error"]["message"]
        assert answer.headers["connection"] == "close"


def test_chunks_take_room_as_they_come(start_server):
    server = start_server(bodies_bytes=50_000, body_bytes=50_000, bodies_wait_s=0.05)
    head = b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (CHAT.encode(), FIELDS)
    with server.connect() as slow, server.connect() as other:
        send_all_but_the_end(slow)
        wait_until(lambda: used_bytes(server) > 30_000)
        chunk = b"2000\r\n" + b" " * 8192 + b"\r\n"
        assert other.send(head + chunk * 4).read().status == 503


def test_a_small_body_needs_no_room(start_server):
    server = start_server(bodies_bytes=40_000, body_bytes=40_000, bodies_wait_s=0.05)
    with server.connect() as slow, server.connect() as other:
        send_all_but_the_end(slow)
        wait_until(lambda: used_bytes(server) > 30_000)
        assert other.ask("POST", CHAT, chat_body()).status == 200


def test_a_body_that_waits_is_read_as_soon_as_there_is_room(start_server):
    server = start_server(bodies_bytes=50_000, body_bytes=50_000, bodies_wait_s=10)
    with server.connect() as other:
        with server.connect() as slow:
            send_all_but_the_end(slow)
            wait_until(lambda: used_bytes(server) > 30_000)
            other.send(request_bytes("POST", CHAT, LARGE))
        assert other.read().status == 200
    wait_until(lambda: used_bytes(server) == 0)


def test_a_slow_client_gives_its_room_back_when_its_body_is_too_late(start_server):
    server = start_server(bodies_bytes=50_000, body_bytes=50_000, body_s=0.2)
    with server.connect() as slow, server.connect() as other:
        send_all_but_the_end(slow)
        wait_until(lambda: used_bytes(server) > 30_000)
        assert other.ask("POST", CHAT, LARGE).status == 200
        assert slow.read().status == 408


def test_what_is_left_of_a_body_holds_room_until_its_request_is_over(start_server):
    server = start_server(FakeEngine(say_then_hang()), poll_s=0.02)
    ids = [number % 256 for number in range(10_000)]
    body = completion_body(prompt=ids)
    with server.connect() as client:
        client.send(request_bytes("POST", "/v1/completions", body))
        assert server.engine.submitted.acquire(timeout=10)
        assert used_bytes(server) > 8 * len(ids)  # a list's place for each, and the ids
    wait_until(lambda: used_bytes(server) == 0)


def test_a_large_body_is_parsed_only_while_all_of_them_are_within_their_room(start_server):
    server = start_server(bodies_bytes=60_000, body_bytes=60_000, bodies_wait_s=0.3)
    share = Share(server.http_server.body_budget)
    with server.connect() as client:
        send_all_but_the_end(client)
        wait_until(lambda: used_bytes(server) > 30_000)
        share.set(60_000)  # such as JSON that took more than its text
        assert client.send(b"}").read().status == 503
        share.set(0)
        assert client.ask("POST", CHAT, LARGE).status == 200


def test_room_that_was_waited_for_in_vain_is_not_taken():
    budget = BodyBudget(100, wait_s=0.01)
    first, second = Share(budget), Share(budget)
    first.grow(60)
    with pytest.raises(OverloadedError, match="60 of the 100 bytes"):
        second.grow(50)
    second.set(0)
    assert budget.used_bytes == 60
    second.grow(40)
    first.set(0)
    assert budget.used_bytes == 40


def test_a_share_may_come_to_more_than_all_and_keeps_others_out_until_it_is_over():
    budget = BodyBudget(100, wait_s=10)
    large, other = Share(budget), Share(budget)
    large.set(500)
    waited = threading.Thread(target=other.wait_for_room)
    waited.start()
    waited.join(0.05)
    assert waited.is_alive()
    large.set(0)
    waited.join(10)
    assert not waited.is_alive()


@pytest.mark.parametrize("text", ["[" * 300, '\\"[' * 300, "\\\\" * 7 + "[{" * 300])
def test_brackets_within_strings_are_no_objects(start_server, text):
    server = start_server(num_values=200)
    with server.connect() as client:
        content = b'{"model":"tiny","messages":[{"role":"user","content":"%b"}]}' % text.encode()
        answer = client.ask("POST", CHAT, json.loads(content))
        assert answer.status == 200
        assert client.send(request_bytes("POST", CHAT, chat_body())).read().status == 200


def test_a_body_of_more_objects_than_it_may_have_is_refused_unparsed(start_server):
    server = start_server(num_values=200)
    with server.connect() as client:
        answer = client.ask("POST", CHAT, {"a": [[] for _ in range(198)]})
        assert answer.status == 422  # with the two around them 200
        answer = client.ask("POST", CHAT, {"a": [[] for _ in range(199)]})
        assert answer.status == 400
        assert "200 objects and arrays" in answer.json()["error"]["message"]


def test_an_integer_of_absurd_length_is_refused_and_not_computed(server):
    digits = b"9" * 400_000
    with server.connect() as client:
        request = b'{"model":"m","messages":[],"seed":%b}' % digits
        head = b"POST %b HTTP/1.1\r\n" + FIELDS + b"Content-Length: %d\r\n\r\n"
        client.send(head % (CHAT.encode(), len(request)) + request)
        answer = client.read()
        assert answer.status == 400
        assert "an integer of 400000 digits" in answer.json()["error"]["message"]


def begin(server, source=None, num_bytes=30_000):
    """A client that sends all of a body but the end."""
    client = server.connect(source)
    content = b'{"model":"tiny","messages":[{"role":"user","content":"%b"}]}' % (b"a" * num_bytes)
    client.send(b"POST %b HTTP/1.1\r\nHost: a\r\n" % CHAT.encode())
    client.send(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content))
    client.send(content[:-1])
    return client


linux = pytest.mark.skipif(sys.platform != "linux", reason="this system answers on 127.0.0.1 alone")


@linux
def test_slow_bodies_of_one_client_give_their_room_to_another_client(start_server):
    limits = {"bodies_bytes": 125_000, "body_bytes": 40_000, "bodies_wait_s": 10}
    server = start_server(**limits, body_grace_s=0.3, body_s=60)
    slow = []
    for source in (None, None, "127.0.0.3"):
        slow.append(begin(server, source))
        wait_until(lambda: used_bytes(server) > 30_000 * len(slow))
    began = time.monotonic()
    with server.connect("127.0.0.2") as other:
        body = chat_body(messages=[{"role": "user", "content": "a" * 38_000}])
        assert other.ask("POST", CHAT, body).status == 200
    assert time.monotonic() - began < 5
    # The longest of who held most went, and is told to come back; no more went than had to.
    answer = slow[0].read()
    assert answer.status == 503 and answer.headers["retry-after"] == "1"
    assert "which came slowly" in answer.json()["error"]["message"]
    for client in slow[1:]:
        assert client.send(b"}").read().status == 200
    for client in slow:
        client.close()
    wait_until(lambda: used_bytes(server) == 0)


@linux
def test_one_client_leaves_room_for_the_body_of_another(start_server):
    server = start_server(bodies_bytes=120_000, body_bytes=40_000, bodies_wait_s=0.2)
    slow = [begin(server) for _ in range(2)]
    wait_until(lambda: used_bytes(server) > 60_000)
    with server.connect() as third, server.connect("127.0.0.2") as other:
        assert third.ask("POST", CHAT, LARGE).status == 503
        assert other.ask("POST", CHAT, LARGE).status == 200
    for client in slow:
        client.close()


def test_a_body_that_nobody_waits_for_may_be_slow(start_server):
    server = start_server(bodies_bytes=50_000, body_bytes=50_000, body_grace_s=0)
    with begin(server) as slow:
        wait_until(lambda: used_bytes(server) > 30_000)
        time.sleep(0.6)
        assert slow.send(b"}").read().status == 200


def share_of(budget, client, num_bytes=0, stop=lambda: None):
    share = Share(budget, stop)
    if num_bytes:
        share.grow(num_bytes, client)
    return share


def take_in_turn(budget, wanted, order):
    """Threads that ask for (client, bytes), one after another, and note in which order they had."""

    def take(client, num_bytes):
        share_of(budget, client, num_bytes)
        order.append(client)

    threads = []
    for client, num_bytes in wanted:
        threads.append(threading.Thread(target=take, args=(client, num_bytes)))
        threads[-1].start()
        wait_until(lambda: len(budget._waiting) + len(order) == len(threads))
    return threads


def test_room_is_given_by_turns_and_to_who_has_least():
    budget, order = BodyBudget(100, wait_s=10), []
    held = share_of(budget, "hog", 50), share_of(budget, "hog", 50)
    wanted = [("hog", 50), ("hog", 20), ("b", 50), ("c", 50), ("b", 50)]
    threads = take_in_turn(budget, wanted, order)
    held[0].set(0)
    wait_until(lambda: order == ["b"])
    held[1].set(0)
    wait_until(lambda: order == ["b", "c"])
    budget.change("b", -50)
    wait_until(lambda: len(order) == 3)
    assert order[2] == "hog"  # whose last turn was before b's
    budget.change("c", -50)
    wait_until(lambda: len(order) == 4)
    assert order[3] == "b"
    budget.change("b", -50)
    for thread in threads:
        thread.join(10)
    assert order == ["b", "c", "hog", "b", "hog"]


def test_what_is_enough_for_a_small_body_goes_to_one_whose_client_has_no_more():
    budget, order = BodyBudget(100, wait_s=10), []
    held = share_of(budget, "a", 80)
    threads = take_in_turn(budget, [("large", 50), ("a", 10), ("small", 10)], order)
    wait_until(lambda: order)
    assert order == ["small"]
    held.set(0)
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize(
    ("client", "goes"), [("honest", ["hog"]), ("hog", ["hog"]), ("even", ["hog"]), ("more", [])]
)
def test_who_has_less_or_holds_it_itself_has_a_slow_body_go(client, goes):
    budget, gone = BodyBudget(100, wait_s=0.2, grace_s=0.05), []
    share_of(budget, "more", 50, lambda: gone.append("more"))
    share_of(budget, "hog", 30, lambda: gone.append("hog"))
    share_of(budget, "even", 20, lambda: gone.append("even"))
    budget._receiving = dict(list(budget._receiving.items())[1:])  # the first one is there
    time.sleep(0.1)
    with pytest.raises(OverloadedError):
        share_of(budget, client, 30)
    assert gone == goes
