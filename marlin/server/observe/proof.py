"""Proof that the engine of this process computes: a request of two tokens, at somebody's wish.

What /health knows without asking the engine for anything is health.py's affair.
"""

import math
import queue
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from marlin.engine.request import FinishEvent
from marlin.engine.sampling import SamplingParams
from marlin.engine.served_model import ServedModel
from marlin.errors import MarlinError, RateLimitError

_CLIENT = "health"
# The prompt, and then the one token that its step yields, which the decode step computes.
_PROMPT = (0,)
_PARAMS = SamplingParams(temperature=0.0, seed=0, max_tokens=2, ignore_eos=True)


class StepProof:
    """Args:
    model: None where there is none.
    step_s: work that waits for a step for so long is stuck.
    pause_s: from the end of one proof until another may begin: each takes the time of a step.
    """

    def __init__(
        self,
        model: ServedModel | None,
        step_s: float,
        pause_s: float,
        poll_s: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._model = model
        self._step_s, self._pause_s, self._poll_s = step_s, pause_s, poll_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = -math.inf  # inf while one is on its way

    def now(self, check_wanted: Callable[[], None]) -> tuple[dict[str, Any], int]:
        """Prove a step.

        Args:
            check_wanted: raises where nobody waits for it any more.

        Returns:
            What came of it, for JSON, and the status of that.

        Raises:
            RateLimitError: somebody has just asked.
        """
        with self._lock:
            left_s = min(self._free_at - self._clock(), self._pause_s)
            if left_s > 0:
                raise RateLimitError("a step has just been proved", math.ceil(left_s))
            self._free_at = math.inf
        try:
            return self._prove(check_wanted)
        finally:
            with self._lock:
                self._free_at = self._clock() + self._pause_s

    def _prove(self, check_wanted):
        if self._model is None:
            return {"status": "ok", "model_loaded": False, "proof": "no model"}, 200
        began = self._clock()
        try:
            is_done = self._step(self._model, check_wanted)
        except MarlinError as error:
            return self._failed(error.message)
        if is_done is None:
            return self._failed(f"no step was completed for {self._step_s:g} s")
        proof = "its own step" if is_done else "steps of others"
        ms = round((self._clock() - began) * 1000, 3)
        return {"status": "ok", "model_loaded": True, "proof": proof, "ms": ms}, 200

    def _failed(self, why):
        return {"status": "error", "model_loaded": True, "reason": why}, 503

    def _step(self, model, check_wanted):
        """Whether its own request was computed; False: those before it are, so that its turn has
        not come; None: nothing is. Raises what the engine refuses or fails with."""
        request, engine = _submitted(model), model.engine
        began = self._clock()
        try:
            while True:
                try:
                    event = request.events.get(timeout=self._poll_s)
                except queue.Empty:
                    check_wanted()
                    if engine.stats().seconds_since_step >= self._step_s or not engine.alive:
                        return None
                    if self._clock() - began >= self._step_s:
                        return False if not request.has_begun else None
                    continue
                if isinstance(event, FinishEvent):
                    if event.error is not None:
                        raise event.error
                    return True if event.reason != "abort" else None
        finally:
            request.abort()


def _submitted(model):
    key = f"health-{secrets.token_hex(8)}"
    if model.generates:
        return model.engine.submit(_PROMPT, _PARAMS, key, _CLIENT)
    return model.engine.pool(_PROMPT, model.new_pooler(), key, _CLIENT)
