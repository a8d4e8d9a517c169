"""Abuse of a whole server process: it serves others on, and gives back what it held.

The framing and the deadlines, one by one, are tests/server's business.
"""

import json
import os
import random
import resource
import socket
import threading
import time

import pytest
from contract import CHAT, MODEL, chat, content_of
from served import PATIENCE_S, serve_mock

# A few minutes by default; longer for those who can wait.
SOAK_S = float(os.environ.get("METAL_MARLIN_SOAK_S", "180"))
ENDLESS = chat(stream=True, max_tokens=100_000, ignore_eos=True)


@pytest.fixture(scope="module")
def served():
    with serve_mock("--max-context", "200000", model=f"models/{MODEL}") as served:
        yield served


@pytest.fixture
def thousand_descriptors():
    """Room for a thousand sockets in this process; skipped where the system has none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may have {hard} descriptors, the test needs {wanted}")
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        wanted = soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


JSON = b"Content-Type: application/json\r\n"


def request_bytes(body, length=None):
    content = json.dumps(body).encode()
    length = len(content) if length is None else length
    head = b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n"
    return head % (CHAT.encode(), JSON, length) + content


def leave_in_mid_stream(served):
    with served.open_socket() as client:
        client.sendall(request_bytes(ENDLESS))
        assert client.recv(64).startswith(b"HTTP/1.1 200 ")


def num_descriptors(served):
    return len(os.listdir(f"/proc/{served.process.pid}/fd"))


def num_threads(served):
    return len(os.listdir(f"/proc/{served.process.pid}/task"))


def resident_mb(served):
    with open(f"/proc/{served.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def wait_until(condition, what):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)  # a gentle poll, not a synchronisation


def test_a_thousand_idle_connections_do_not_keep_another_client_waiting(
    served, thousand_descriptors
):
    begun = [b"", b"GET /health HTTP/1.1\r\nHost: a\r\n", request_bytes(chat())[:-1]]
    idle = []
    try:
        for index in range(1000):
            idle.append(served.open_socket())
            idle[-1].sendall(begun[index % 3])
        started = time.monotonic()
        for seed in range(5):
            assert content_of(served.post(CHAT, chat(seed=seed)))
        assert time.monotonic() - started < PATIENCE_S / 2
        served.wait_for_active(0)  # half a body holds no slot
    finally:
        for client in idle:
            client.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_clients_that_leave_in_mid_stream_leave_nothing_behind(served):
    served.wait_for_active(0)
    wait_until(lambda: num_threads(served) < 20, "threads of the test before stayed")
    before = num_descriptors(served)
    for _ in range(30):
        leave_in_mid_stream(served)
    served.wait_for_active(0)
    wait_until(lambda: num_descriptors(served) <= before, "descriptors stayed open")


def test_a_length_shorter_than_the_body_never_makes_the_rest_a_valid_request(served):
    body = chat(messages=[{"role": "user", "content": "GET /v1/models HTTP/1.1"}])
    with served.open_socket() as client:
        client.sendall(request_bytes(body, length=20) + b"\r\n\r\n")
        answer = client.makefile("rb").read()
    # 20 bytes of JSON are no JSON; what follows is no request line, and ends the connection.
    assert answer.count(b"HTTP/1.1 400 ") == 2 and b" 200 " not in answer


def test_a_length_longer_than_the_body_is_given_up_with_the_client(served):
    with served.open_socket() as client:
        client.sendall(request_bytes(chat(), length=100_000))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert content_of(served.post(CHAT, chat()))


@pytest.mark.parametrize(
    ("flood", "status"),
    [
        (b"".join(b"X-%d: a\r\n" % index for index in range(5000)), b"431"),
        (b"X: " + b"a" * 1_000_000, b"431"),
        (b"a\n" * 5000, b"400"),
    ],
    ids=["many fields", "one long field", "no fields at all"],
)
def test_a_flood_of_headers_is_answered_and_ended(served, flood, status):
    with served.open_socket() as client:
        try:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n" + flood)
        except ConnectionError:
            pass  # it has heard enough; its answer is still to be read
        assert client.recv(12) == b"HTTP/1.1 " + status
    assert served.ask("GET", "/health")[0] == 200


class Abuser(threading.Thread):
    """Does what no client should, at random, until told to stop.

    Attributes:
        error: what a well-behaved request met, or None.
        num_good: well-behaved requests that were answered.
    """

    def __init__(self, served, seed, ended):
        super().__init__(daemon=True)
        self._served = served
        self._chooser = random.Random(seed)
        self._ended = ended
        self.error = None
        self.num_good = 0

    def run(self):
        acts = (self._ask, self._leave, self._babble, self._stall, self._flood, self._stream)
        try:
            while not self._ended.is_set():
                self._chooser.choice(acts)()
        except Exception as error:
            self.error = error
            self._ended.set()

    def _ask(self):
        assert content_of(self._served.post(CHAT, chat(seed=self._chooser.randint(0, 99))))
        self.num_good += 1

    def _stream(self):
        assert self._served.events(CHAT, chat())[-1] == "[DONE]"
        self.num_good += 1

    def _leave(self):
        leave_in_mid_stream(self._served)

    def _babble(self):
        self._send(self._chooser.randbytes(self._chooser.randint(1, 5000)))

    def _stall(self):
        whole = request_bytes(chat())
        self._send(whole[: self._chooser.randint(1, len(whole) - 1)])

    def _flood(self):
        self._send(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * self._chooser.randint(100, 20_000))

    def _send(self, data):
        with self._served.open_socket() as client:
            try:
                client.sendall(data)
            except ConnectionError:
                pass


@pytest.mark.slow
@pytest.mark.soak
def test_minutes_of_abuse_leave_a_server_as_it_was(served):
    for seed in range(50):  # what a first request allocates for good
        served.post(CHAT, chat(seed=seed))
    served.wait_for_active(0)
    before = num_descriptors(served), num_threads(served), resident_mb(served)
    ended = threading.Event()
    abusers = [Abuser(served, seed, ended) for seed in range(4)]  # fewer than the server's slots
    for abuser in abusers:
        abuser.start()
    ended.wait(SOAK_S)
    ended.set()
    for abuser in abusers:
        abuser.join(PATIENCE_S)
        assert abuser.error is None and abuser.num_good > 0
    served.wait_for_active(0)
    wait_until(lambda: num_threads(served) <= before[1] + 2, "threads stayed")
    assert num_descriptors(served) <= before[0] + 2
    assert resident_mb(served) < before[2] + 64
