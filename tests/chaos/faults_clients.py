"""Clients that are slow, half-closed, gone in mid-stream or never reading; more of them than there
is room for; and half an hour of all kinds of requests."""

import json
import os
import random
import socket
import struct
import threading
import time
from contextlib import suppress
from operator import sub

import judge
from arena import NUMBERS, fault
from faults_signals import ALL
from victim import PATIENCE_S, until

# With -m chaos; half an hour is 1800.
ENDURANCE_S = float(os.environ.get("CHAOS_ENDURANCE_S", "60"))
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing throws away what is under way


def _head_and_body(**changes):
    path, body = judge.request(1)  # a chat
    content = json.dumps({**body, **changes}).encode()
    kind = "Content-Type: application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head, content


def _sent(port, data):
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    client.sendall(data)
    return client


def _request(**changes):
    head, content = _head_and_body(**changes)
    return head.encode() + content


def half_closed(port, over):
    with _sent(port, _request(stream=True)) as client:
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass


def reset_in_mid_stream(port, over):
    with _sent(port, _request(stream=True, max_tokens=400, ignore_eos=True)) as client:
        client.recv(256)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def gone_before_the_answer(port, over):
    _sent(port, _request(max_tokens=400, ignore_eos=True)).close()


def never_reading(port, over):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    with client:
        client.connect(("127.0.0.1", port))
        client.sendall(_request(stream=True, n=4, logprobs=True, top_logprobs=20, max_tokens=100))
        over.wait(5)


def dripping_a_head(port, over):
    with _sent(port, b"P") as client:
        for byte in b"OST /v1/chat/completions HTTP/1.1\r\nHost: a":
            client.sendall(bytes([byte]))
            if over.wait(0.05):
                return


def holding_back_the_last_byte(port, over):
    head, content = _head_and_body(user="x" * 10_000)
    with _sent(port, head.encode() + content[:-1]):
        over.wait(3)


def connecting_only(port, over):
    with socket.create_connection(("127.0.0.1", port)):
        over.wait(1)


def babbling(port, over):
    chosen = random.Random(over.number)
    words = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chosen.randbytes(500),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + _request(),
        b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000,
        chosen.randbytes(3000),
    )
    with _sent(port, chosen.choice(words)) as client:
        while client.recv(4096):
            pass


def sending_ahead(port, over):
    with _sent(port, _request(max_tokens=3) * 8) as client:
        while client.recv(4096):
            if over.wait(0.1):
                return


HOSTILE = (
    half_closed,
    reset_in_mid_stream,
    gone_before_the_answer,
    never_reading,
    dripping_a_head,
    holding_back_the_last_byte,
    connecting_only,
    babbling,
    sending_ahead,
)


class _Over(threading.Event):
    """The end of the hostilities; `number` differs from act to act."""

    number = 0


def _hostile(port, act, over, num_done):
    while not over.is_set():
        over.number += 1
        with suppress(OSError):
            act(port, over)
        num_done.append(act.__name__)


def what_it_holds(victim):
    counts = [
        (len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))
        for pid in victim.pids()
    ]
    return [sum(column) for column in zip(*counts, strict=True)]


@fault("clients", modes=ALL)
def hostile_ones_beside_others(arena):
    """Two of each kind; afterwards the server holds what it held before them."""
    victim = arena.start("--max-concurrent-requests", "32")
    arena.serves(victim)
    before = what_it_holds(victim)
    over, done = _Over(), []
    threads = [
        threading.Thread(target=_hostile, args=(victim.port, act, over, done), daemon=True)
        for act in HOSTILE * 2
    ]
    with arena.load(victim, num_clients=3):
        for thread in threads:
            thread.start()
        time.sleep(float(os.environ.get("CHAOS_HOSTILE_S", "4")))
        over.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a hostile client was held"
    arena.injected(len(done))
    arena.serves(victim)
    until(lambda: victim.metrics()["requests_active"] == 0, "no request stays active")
    most = [count + 4 for count in before]
    until(lambda: max(map(sub, what_it_holds(victim), most)) <= 0, f"again about {before} held")


@fault("clients", modes=("one", "workers"))
def more_connections_than_places(arena):
    """Idle ones go for new ones, and each of the others gets its answer."""
    victim = arena.start(shell="ulimit -n 200")
    idle = []
    for _ in range(400):
        idle.append(socket.create_connection(("127.0.0.1", victim.port)))
        arena.injected()
    with arena.load(victim):
        time.sleep(2)
    arena.serves(victim)
    for client in idle:
        client.close()
    arena.serves(victim)


class _Patient(threading.Thread):
    """A client that wants one answer, and asks again when it is told to.

    Attributes:
        outcome: the judge.Outcome in the end, or None of one that left.
        seconds: from its first attempt to the answer.
    """

    def __init__(self, arena, victim, number, leaves_after_s):
        super().__init__(daemon=True)
        self._arena, self._victim, self._number = arena, victim, number
        self._leaves_after_s = leaves_after_s
        self.outcome, self.seconds, self.num_refusals = None, 0.0, 0

    def run(self):
        began = time.monotonic()
        if self._leaves_after_s is not None:
            with suppress(OSError), _sent(self._victim.port, _request(stream=True)):
                time.sleep(self._leaves_after_s)
            return
        while True:
            outcome = judge.ask(self._victim.port, self._number, self._arena.reference)
            if outcome.kind != judge.REFUSED or time.monotonic() - began > 300:
                break
            self.num_refusals += 1
            time.sleep(outcome.retry_after)
        self.outcome, self.seconds = outcome, time.monotonic() - began


def _overload(arena, num_clients, share_that_leaves, *options):
    victim = arena.start(*options)
    arena.reference.prepare(NUMBERS)
    began = time.monotonic()
    arena.serves(victim)
    work_s = (time.monotonic() - began) / 4 * num_clients  # what all take, one after the other
    chosen = random.Random(1)
    clients = []
    for index in range(num_clients):
        leaves = chosen.random() < share_that_leaves
        leaves_after_s = chosen.uniform(0.01, 2) if leaves else None
        number = NUMBERS[index % len(NUMBERS)]
        clients.append(_Patient(arena, victim, number, leaves_after_s))
    for client in clients:
        client.start()
        arena.injected()
    for client in clients:
        client.join(400)
    staying = [client for client in clients if client.outcome is not None]
    arena.tally.count([client.outcome for client in staying])
    waits_s = sorted(client.seconds for client in staying)
    arena.tally.notes[
        f"answered after {waits_s[len(waits_s) // 2]:.1f} s (half), {waits_s[-1]:.1f} s (last), "
        f"refused up to {max(client.num_refusals for client in staying)} times"
    ] += 1
    assert [client.outcome for client in staying if client.outcome.kind != judge.RIGHT] == []
    assert waits_s[-1] < 3 * work_s + 30, f"somebody waited {waits_s[-1]} s for {work_s} s of work"
    until(lambda: victim.metrics()["requests_active"] == 0, "no request stays active")
    arena.serves(victim)


@fault("overload", modes=ALL)
def two_hundred_clients_at_ten_slots(arena):
    """All get an answer in bounded time, by coming back when they are told to."""
    _overload(arena, 200, 0.0)


@fault("overload", modes=ALL)
def two_hundred_clients_of_which_half_leave(arena):
    blocks = ("--num-kv-blocks", "64") if "batching" in arena.mode else ()
    _overload(arena, 200, 0.5, "--max-concurrent-requests", "40", *blocks)


@fault("endurance", modes=("workers, batching", "batching"))
def all_kinds_of_requests_for_a_long_time(arena):
    """Every answer is right, no counter forgets one, and nothing grows."""
    victim = arena.start("--num-kv-blocks", "128")
    numbers = range(100)
    arena.reference.prepare(numbers)
    total = victim.metrics()["requests_total"]
    grown = []
    with arena.load(victim, num_clients=6, numbers=numbers) as load:
        end = time.monotonic() + ENDURANCE_S
        while time.monotonic() < end:
            time.sleep(min(10.0, ENDURANCE_S / 4))
            assert victim.health() == 200
            grown.append([*what_it_holds(victim), resident_mb(victim)])
            arena.injected()
    assert victim.metrics()["requests_total"] - total == len(load.outcomes)
    arena.serves(victim)
    first, last = grown[len(grown) // 4], grown[-1]
    arena.tally.notes[f"descriptors, threads, MB: {first} after a quarter, {last} at the end"] += 1
    assert last[0] <= first[0] + 8 and last[1] <= first[1] + 8 and last[2] <= first[2] + 64


def resident_mb(victim):
    pages = 0
    for pid in victim.pids():
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            resident, shared = statm.read().split()[1:3]
        pages += int(resident) - int(shared)
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
