"""An engine over a tiny model whose steps a test can hold, watch and break.

Owns the gate in front of the runner and how events are read; knows nothing of what is asserted.
"""

import queue
import threading
import time

from tiny_models import open_device

from marlin.engine.engine import Engine
from marlin.engine.kv_cache import Paging
from marlin.engine.request import FinishEvent
from marlin.engine.runner import Runner
from marlin.engine.sampling import SamplingParams
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model

# Far more than any step here takes; only a broken engine waits this long.
TIMEOUT_S = 20
CONTEXT_TOKENS = 96
STEP_TOKENS = 16


class GatedRunner:
    """A Runner whose steps can be held.

    Attributes:
        started: queue of each step's chunks, filled as the step begins.
        steps: list of the same.
        sampled_ids: of requests that tokens were asked for, one for each chunk that asked.
        faults: exceptions that the next steps raise instead of running.
        is_closed: close() was called.
    """

    def __init__(self, runner):
        self._runner = runner
        self._permits = threading.Semaphore(0)
        self._is_open = True
        self.started = queue.SimpleQueue()
        self.steps = []
        self.sampled_ids = []
        self.faults = []
        self.is_closed = False

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def hold(self):
        """From now on a step waits for release() or open()."""
        self._is_open = False

    def release(self):
        """Let one step run."""
        self._permits.release()

    def open(self):
        """Let all steps run, the held one too."""
        self._is_open = True
        self._permits.release()

    def step(self, chunks):
        self.steps.append(chunks)
        self.sampled_ids += [chunk.request.request_id for chunk in chunks if chunk.is_last]
        self.started.put(chunks)
        if not self._is_open:
            assert self._permits.acquire(timeout=TIMEOUT_S), "a test left a step held"
        if self.faults:
            raise self.faults.pop(0)
        return self._runner.step(chunks)

    def close(self):
        self.is_closed = True
        self._runner.close()

    def next_step(self):
        """Wait until a step begins; returns its chunks."""
        return self.started.get(timeout=TIMEOUT_S)


class TinyEngine:
    """An engine in sequential mode over a model folder; `engine` is the Engine."""

    def __init__(self, folder, eos_token_ids=(), context=CONTEXT_TOKENS):
        self._device = open_device(None)
        model = Model(open_checkpoint(folder, self._device))
        self.runner = GatedRunner(
            Runner(self._device, model, Paging.contiguous(context), STEP_TOKENS, max_sequences=1)
        )
        self.engine = Engine(self.runner, eos_token_ids)

    def submit(self, prompt, request_id="a", client="", **params):
        """Submit a prompt, greedily unless said otherwise."""
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8} | params)
        return self.engine.submit(prompt, params, request_id, client)

    def generate(self, prompt, **params):
        """The whole answer's token ids; it must end by itself."""
        token_ids, finish = read(self.submit(prompt, **params))
        assert finish.reason in ("stop", "length"), finish
        return token_ids

    def begin_closing(self):
        """Close the engine in a thread, which is returned once the engine takes no more requests.

        The thread ends when the held step does.
        """
        thread = threading.Thread(target=self.engine.close)
        thread.start()
        deadline = time.monotonic() + TIMEOUT_S
        while self.engine.alive:
            assert time.monotonic() < deadline, "close() was called and the engine is alive"
            thread.join(0.001)
        return thread

    def close(self):
        self.runner.open()
        self.engine.close()
        self.runner.close()
        self._device.close()


def read(request):
    """Read a request's events to the end; returns (token ids, FinishEvent)."""
    token_ids = []
    while not isinstance(event := request.events.get(timeout=TIMEOUT_S), FinishEvent):
        token_ids += event.token_ids
    assert request.events.empty(), "an event after the FinishEvent"
    return token_ids, event
