"""/health of an engine that has stopped completing steps."""

from dataclasses import replace

import pytest
from fakes import FakeEngine

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
