"""Keys with several worker processes: what a key may have, it may have in total."""

import json
import os
import signal
from contextlib import ExitStack

import pytest
from clients import chat_body, completion_body, request_bytes
from worker_processes import Workers, until

from marlin.server.api import keys
from marlin.server.api.keys import with_new_key
from marlin.server.api.quotas import Quotas
from marlin.server.observe.metrics import NUM_CELLS, Metrics

SECRETS = {name: f"mm-{name}-" + "0123456789abcdef" * 2 for name in ("ann", "bob", "carl")}


def write(path, *names, **limits):
    data = {"keys": []}
    for name in names:
        data = with_new_key(data, name, SECRETS[name], **(limits if name == "ann" else {}))
    path.write_bytes(keys.encode(data))
    os.chmod(path, 0o600)


def of(name):
    return [f"Authorization: Bearer {SECRETS[name]}"]


@pytest.fixture
def start(tmp_path):
    with ExitStack() as stack:

        def begin(model, **limits):
            write(tmp_path / "keys", "ann", "bob", **limits)
            words = [model, "--workers", "2", "--key-file", str(tmp_path / "keys")]
            server = Workers(tmp_path / "gate", *words)
            stack.callback(server.close)
            server.wait_for_workers(2)
            return server

        yield begin


def test_a_key_has_its_requests_at_once_of_all_workers_together(start):
    server = start("gated", concurrent_requests=1)
    with server.connect() as first:
        body = chat_body(model="gated", stream=True)
        first.send(request_bytes("POST", "/v1/chat/completions", body, of("ann")))
        first.read_stream_head()
        for _ in range(8):  # who is idle is faster: most of them go to the other worker
            with server.connect() as client:
                answer = client.ask("POST", "/v1/chat/completions", body, of("ann"))
                assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        server.open_gate()
        b"".join(first.chunks())
    with server.connect() as client:

        def is_answered():
            return client.ask("POST", "/v1/chat/completions", body, of("ann")).status == 200

        until(is_answered, "the first is over")


def test_a_key_has_its_tokens_of_all_workers_together(start):
    server = start("dumb", tokens_per_minute=60)
    with ExitStack() as stack:
        of_pid = {}

        def both():
            client = stack.enter_context(server.connect())
            answer = client.ask("POST", "/v1/completions", completion_body(model="dumb"), of("bob"))
            of_pid[json.loads(answer.body)["choices"][0]["text"].split()[0]] = client
            return len(of_pid) == 2

        until(both, "a connection to each worker")
        one, other = of_pid.values()
        body = completion_body(model="dumb", prompt="x" * 90)
        assert one.ask("POST", "/v1/completions", body, of("ann")).status == 200

        def is_refused():
            return one.ask("POST", "/v1/completions", body, of("ann")).status == 429

        until(is_refused, "they are counted")
        answer = other.ask("POST", "/v1/completions", body, of("ann"))
        assert answer.status == 429 and "60 tokens" in answer.error["message"]
        assert other.ask("POST", "/v1/completions", body, of("bob")).status == 200


def test_sighup_has_every_worker_read_the_keys_again(start, tmp_path):
    server = start("dumb")
    says = rf"keys of {tmp_path / 'keys'}"
    before = len(server.logged(says))
    server.popen.send_signal(signal.SIGHUP)
    with server.connect() as client:
        assert client.ask("GET", "/health").status == 200  # and it serves on
    pids = server.pids()
    until(lambda: len(server.logged(says)) - before == 2, "two workers have read them")
    write(tmp_path / "keys", "carl")
    server.popen.send_signal(signal.SIGHUP)

    def only_carl():
        with ExitStack() as stack:  # at once, since each wrong key takes a second
            clients = [stack.enter_context(server.connect()) for _ in range(16)]
            for client, name in zip(clients, ("ann", "carl") * 8, strict=True):
                client.send(request_bytes("GET", "/v1/models", headers=of(name)))
            return [client.read().status for client in clients] == [401, 200] * 8

    until(only_carl, "no worker takes the old ones")
    assert server.pids() == pids


def test_a_worker_that_begins_goes_on_from_what_the_others_know():
    now = [1000.0]
    rows = [[0.0] * NUM_CELLS for _ in range(3)]
    ann = keys.Principal("ann", 7, b"", tokens_per_minute=60)

    def process(row):
        metrics = Metrics(rows[row], lambda: now[0])
        return metrics, Quotas(metrics, rows, lambda: now[0])

    first, quotas = process(0)
    quotas.look([ann])
    first.used_by_key(7, 90)
    now[0] += 10
    quotas.look([ann])
    now[0] += 10
    _, late = process(1)
    assert late._level(ann) == pytest.approx(80)
    assert quotas._level(ann) == pytest.approx(80)
    now[0] += 80
    assert late._level(ann) == quotas._level(ann) == 0
