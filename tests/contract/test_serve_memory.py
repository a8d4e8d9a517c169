"""What a whole server process holds of memory for requests that mean it harm, by /proc.

Limits with their reasons are in marlin/server/http/limits.py; a context of 131,072 tokens takes
bodies of 4 MiB and 64 KiB.
"""

import os
import resource
import threading
import time
from contextlib import ExitStack

import pytest
from contract import CHAT, MODEL, chat
from served import PATIENCE_S, serve_mock

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc"
    ),
]
SIZE = 4 * 1024 * 1024
WORST = {
    "floats": b"1.5,",
    "arrays": b"[],",
    "objects": b'{"":{}},',
    "nested arrays": b"[" * 100 + b"]" * 100 + b",",
    "token ids": b"99999,",
    "wide text": '"\U0001f600'.encode() + b"a" * 100_000 + b'",',
}


@pytest.fixture(scope="module")
def served():
    with serve_mock("--max-context", "131072", model=f"models/{MODEL}") as served:
        served.post(CHAT, chat())
        yield served


def resident_mib(served):
    with open(f"/proc/{served.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def wait_until(condition, what):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)  # a gentle poll, not a synchronisation


class Peak:
    """The most memory that a server held within a `with` block, in MiB."""

    def __init__(self, served):
        self._served = served
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.mib = 0.0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(0.01):
            self.mib = max(self.mib, resident_mib(self._served))


def body(field, piece):
    start = b'{"model":"mock","messages":[{"role":"user","content":"a"}],"%b":[' % field
    pieces = piece * ((SIZE - len(start) - 8) // len(piece))
    return start + pieces.removesuffix(b",") + b"]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORST)
def test_sixteen_of_the_worst_bodies_take_256_mib_and_all_of_it_comes_back(served, kind):
    content = body(b"prompt" if kind == "token ids" else b"metadata", WORST[kind])
    path = "/v1/completions" if kind == "token ids" else CHAT
    idle = resident_mib(served)
    statuses = []

    def ask():
        statuses.append(served.ask("POST", path, content)[0])

    with Peak(served) as peak:
        clients = [threading.Thread(target=ask) for _ in range(16)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert len(statuses) == 16 and {400, 422} & set(statuses) and set(statuses) <= {400, 422, 503}
    print(f"{kind}: {peak.mib - idle:.0f} MiB more, then {resident_mib(served) - idle:.0f}")
    assert peak.mib - idle < 256
    wait_until(lambda: resident_mib(served) - idle <= 16, "memory was kept")


@pytest.mark.slow
@pytest.mark.parametrize("size", [4 * 1024 * 1024, 16 * 1024, 15 * 1024])
def test_two_thousand_bodies_without_their_last_byte_take_200_mib(served, size, descriptors):
    content = b" " * (size - 1)
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" % CHAT.encode()
    head += b"Content-Length: %d\r\n\r\n" % size
    idle = resident_mib(served)
    with ExitStack() as stack, Peak(served) as peak:
        for _ in range(2048 - 8):
            client = stack.enter_context(served.open_socket())
            client.sendall(head)
            client.setblocking(False)
            try:
                client.send(content)  # what the kernel takes
            except BlockingIOError:
                pass
        time.sleep(1)  # the server has read what it will
        assert served.ask("GET", "/health")[0] == 200
    print(f"{size}: {peak.mib - idle:.0f} MiB more")
    assert peak.mib - idle < 200


@pytest.fixture
def descriptors():
    """Room for 2,048 sockets in this process; skipped where the system has none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may have {hard} descriptors, the test needs {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_health_answers_a_new_client_while_one_peer_holds_more_connections_than_there_are(
    served, descriptors
):
    with ExitStack() as stack:
        for _ in range(2060):
            client = stack.enter_context(served.open_socket())
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        for _ in range(5):
            assert served.ask("GET", "/health")[0] == 200
        assert served.ask("POST", CHAT, chat())[0] == 200


@pytest.mark.parametrize("limit, number", [(1024, 880), (200, 56)])
def test_connections_are_capped_by_descriptors_and_the_cap_is_said(limit, number):
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with serve_mock("--max-context", "64", before_start=few) as served, ExitStack() as stack:
        said = f"up to {number} connections at once"
        wait_until(lambda: said in served.log(), said)
        for _ in range(limit):
            client = stack.enter_context(served.open_socket())
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        assert served.ask("GET", "/metrics")[0] == 200


def test_a_start_with_too_few_descriptors_is_refused():
    def none():
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    with pytest.raises(
        AssertionError, match="100 file descriptors leave no room for any connection: 45 too few"
    ):
        serve_mock(before_start=none)
