"""/health of an engine that has stopped completing steps, and of a process that lacked memory; and
the proof of a step that /health?deep=1 is."""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest
from clients import chat_body, completion_body, request_bytes
from failing_engine import DEVICE_HANGS, NO_MEMORY, failing_engine
from fakes import ByteTokenizer, FakeEngine, say_then_hang, wait_for_abort
from worker_processes import Workers, until

from marlin.server.api import keys
from marlin.server.http.limits import Limits


class WaitingEngine(FakeEngine):
    """Says that its work has waited so long for a step."""

    def __init__(self, waited_s):
        super().__init__()
        self.waited_s = waited_s

    def stats(self):
        return replace(super().stats(), seconds_since_step=self.waited_s)


@pytest.mark.parametrize(
    ("waited_s", "status", "word"),
    [(0.0, 200, "ok"), (Limits().stuck_s - 1, 200, "ok"), (Limits().stuck_s, 503, "error")],
)
def test_health_turns_503_when_work_waits_too_long_for_a_step(start_server, waited_s, status, word):
    with start_server(WaitingEngine(waited_s)).connect() as client:
        answer = client.ask("GET", "/health")
    assert answer.status == status
    assert answer.json() == {"status": word, "model_loaded": True}


def test_health_is_well_again_after_the_next_step(start_server):
    engine = WaitingEngine(1000.0)
    with start_server(engine).connect() as client:
        assert client.ask("GET", "/health").status == 503
        engine.waited_s = 0.0
        assert client.ask("GET", "/health").status == 200


class ForgetfulTokenizer(ByteTokenizer):
    """Has no memory for such a text."""

    def encode_parts(self, text, num_characters, **kinds):
        if NO_MEMORY in text:
            raise MemoryError
        return super().encode_parts(text, num_characters, **kinds)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer, ForgetfulTokenizer])
def test_a_request_without_memory_degrades_health_for_a_while(start_server, tokenizer):
    server = start_server(failing_engine(), tokenizer(), scarce_s=2.0)
    body = chat_body(messages=[{"role": "user", "content": NO_MEMORY}])
    with server.connect() as client:
        assert client.ask("GET", "/health").status == 200
        assert client.ask("POST", "/v1/chat/completions", body).status == 500
        answer = client.ask("GET", "/health")
        assert answer.status == 503
        assert answer.json() == {"status": "degraded", "model_loaded": True, "part": "memory"}
        assert client.ask("POST", "/v1/chat/completions", chat_body()).status == 200
        until(lambda: client.ask("GET", "/health").status == 200, "it is well again")
        assert client.ask("GET", "/health").json() == {"status": "ok", "model_loaded": True}


DEEP = "/health?deep=1"


def deep(server, *fields, path=DEEP):
    with server.connect() as client:
        return client.ask("GET", path, headers=fields)


def test_a_step_is_proved_and_not_twice_in_a_moment(start_server):
    server = start_server(failing_engine(), proof_pause_s=1.0)
    answer = deep(server)
    body = answer.json()
    assert (answer.status, body["status"], body["proof"]) == (200, "ok", "its own step")
    assert body["ms"] > 0
    again = deep(server)
    assert (again.status, again.headers["retry-after"]) == (429, "1")
    assert deep(server, path="/health?deep=0").json() == {"status": "ok", "model_loaded": True}
    until(lambda: deep(server, path="/health/?deep=1").status == 200, "it is proved again")


def test_an_engine_that_hangs_is_503_before_health_says_so(start_server):
    engine = WaitingEngine(0.5)
    engine.script = say_then_hang()
    server = start_server(engine, proof_s=0.4)
    answer = deep(server)
    assert (answer.status, answer.json()["reason"]) == (503, "no step was completed for 0.4 s")
    assert deep(server, path="/health").status == 200


def test_an_engine_whose_steps_are_others_is_well(start_server):
    class Crowded(FakeEngine):
        """Begins one request alone, and completes steps of it for ever."""

        def stats(self):
            return replace(super().stats(), seconds_since_step=0.01)

    def wait_for_its_turn(request):
        request.num_computed_tokens = 0
        wait_for_abort(request)
        yield from ()

    server = start_server(Crowded(wait_for_its_turn), proof_s=0.3)
    answer = deep(server)
    assert (answer.status, answer.json()["proof"]) == (200, "steps of others")


def test_without_a_model_and_with_an_engine_that_has_ended_it_says_so(start_server):
    assert deep(start_server(model=False)).json()["proof"] == "no model"
    server = start_server()
    server.engine.close()
    answer = deep(server)
    assert (answer.status, answer.json()["reason"]) == (503, "the engine has stopped")


def test_with_keys_an_admin_alone_may_ask(start_server, tmp_path):
    path, data = tmp_path / "keys.json", {"keys": []}
    for name, scopes in (("ann", ["generate", "metrics"]), ("root", ["admin"])):
        data = keys.with_new_key(data, name, f"mm-{name}-" + "0123456789abcdef" * 2, scopes=scopes)
    path.write_bytes(keys.encode(data))
    path.chmod(0o600)
    server = start_server(options={"key_file": str(path)})
    asked = [
        deep(server, f"Authorization: Bearer mm-{name}-" + "0123456789abcdef" * 2).status
        for name in ("ann", "root", "nobody")
    ]
    assert asked == [403, 200, 401] and deep(server).status == 401
    assert deep(server, path="/health").status == 200


def test_of_workers_each_proves_its_own_engine(tmp_path):
    server = Workers(tmp_path / "gate", "failing", "--workers", "2", PROOF_S="0.5")
    try:
        server.wait_for_workers(2)
        with ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(12)]
            assert {client.ask("GET", "/health").status for client in clients} == {200}
            hang = completion_body(model="failing", prompt=DEVICE_HANGS)
            clients.pop().send(request_bytes("POST", "/v1/completions", hang))
            answers = []

            def both():
                for client in clients:
                    answers.append(client.ask("GET", DEEP))
                    if {200, 503} <= {answer.status for answer in answers}:
                        return True
                return False

            until(both, "a worker that hangs and one that does not")
        assert {answer.status for answer in answers} <= {200, 429, 503}
        said = [json.loads(answer.body) for answer in answers if answer.status == 503]
        assert {body["reason"] for body in said} == {"no step was completed for 0.5 s"}
    finally:
        server.close()
