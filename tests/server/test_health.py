"""/health of an engine that has stopped completing steps, and of a process that lacked memory."""

import time
from dataclasses import replace

import pytest
from clients import chat_body
from failing_engine import NO_MEMORY, failing_engine
from fakes import ByteTokenizer, FakeEngine

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
    server = start_server(failing_engine(), tokenizer(), scarce_s=1.0)
    body = chat_body(messages=[{"role": "user", "content": NO_MEMORY}])
    with server.connect() as client:
        assert client.ask("GET", "/health").status == 200
        assert client.ask("POST", "/v1/chat/completions", body).status == 500
        answer = client.ask("GET", "/health")
        assert answer.status == 503
        assert answer.json() == {"status": "degraded", "model_loaded": True, "part": "memory"}
        assert client.ask("POST", "/v1/chat/completions", chat_body()).status == 200
        time.sleep(1.0)
        assert client.ask("GET", "/health").json() == {"status": "ok", "model_loaded": True}
