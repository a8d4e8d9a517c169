"""The engine thread: takes requests in order, steps the model, publishes tokens.

Sequential mode: one running sequence over one contiguous KV block. What the last request left in
    the cache is
kept, and the next one starts after the tokens that the two have in common.
"""

import logging
import queue
import secrets
import threading

import numpy as np

from marlin.engine.request import FinishEvent, Request, TokenEvent
from marlin.engine.runner import Chunk
from marlin.errors import ContextLengthError, DeviceError, OverloadedError

logger = logging.getLogger(__name__)


class Engine:
    """Owns the runner and the thread that steps it. submit() and stats() may be called by any
    thread.

    Args:
        runner: a Runner whose cache is one block as long as the context.
        eos_token_ids: tokens that end a generation.
    """

    def __init__(self, runner, eos_token_ids):
        self._runner = runner
        self._eos_token_ids = frozenset(eos_token_ids)
        self.max_context_tokens = runner.layout.block_size
        self._vocab_size = runner.model.config.vocab_size
        self._block_table = np.zeros(1, np.int32)
        self._cached_token_ids = []
        self._waiting = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = set()  # of requests' own ids: waiting and running
        self._running = None
        self._closed = False
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, prompt_token_ids, params, request_id):
        """Queue a request.

        Returns:
            Request; read its events until the FinishEvent.

        Raises:
            ContextLengthError: the prompt is empty of room for one more token.
            OverloadedError: the engine has stopped.
        """
        self._check_prompt(prompt_token_ids)
        seed = secrets.randbits(64) if params.seed is None else params.seed & (1 << 64) - 1
        request = Request(request_id, list(prompt_token_ids), params, seed)
        with self._lock:
            if not self.alive:
                raise OverloadedError("the engine has stopped")
            self._unfinished.add(id(request))
            self._waiting.put(request)
        return request

    def _check_prompt(self, prompt_token_ids):
        count = len(prompt_token_ids)
        if count == 0:
            raise ContextLengthError("the prompt has no tokens; at least 1 is needed")
        if count >= self.max_context_tokens:
            raise ContextLengthError(
                f"the prompt has {count} tokens; the context holds {self.max_context_tokens}, and "
                "at least 1 of them must be left for the answer"
            )
        if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < self._vocab_size:
            raise ContextLengthError(
                f"the prompt has a token id outside the vocabulary of {self._vocab_size}"
            )

    @property
    def alive(self):
        """False once the engine thread has ended or close() was called."""
        return self._thread.is_alive() and not self._closed

    def stats(self):
        """Counts since the start, and what is in hand now."""
        with self._lock:
            running = self._running is not None
            return {
                "num_running": int(running),
                "num_waiting": len(self._unfinished) - int(running),
                "num_prompt_tokens": self._num_prompt_tokens,
                "num_generated_tokens": self._num_generated_tokens,
                "kv_bytes": self._runner.kv_bytes,
                "num_cached_tokens": len(self._cached_token_ids),
            }

    def close(self):
        """Abort what is in hand, end the thread and free the device. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        self._thread.join()
        self._runner.close()
        self._runner.device.close()

    def _run(self):
        try:
            while (request := self._waiting.get()) is not None:
                with self._lock:
                    self._running = request
                try:
                    finish = self._generate(request)
                except DeviceError as error:
                    # The cache is in an unknown state; the next request recomputes everything.
                    self._cached_token_ids = []
                    finish = FinishEvent("error", error)
                self._finish(request, finish)
        finally:
            self._fail_unfinished()

    def _finish(self, request, event):
        with self._lock:
            self._unfinished.discard(id(request))
            self._running = None
        request.events.put(event)

    def _fail_unfinished(self):
        """The thread ends: whoever still waits hears of it."""
        error = DeviceError("the engine has stopped")
        with self._lock:
            self._closed = True
            if self._running is not None:
                self._running.events.put(FinishEvent("error", error))
            while not self._waiting.empty():
                request = self._waiting.get()
                if request is not None:
                    request.events.put(FinishEvent("error", error))
            self._unfinished.clear()
            self._running = None

    def _generate(self, request):
        """Run one request to its end and return its FinishEvent."""
        self._reuse_prefix(request)
        with self._lock:
            self._num_prompt_tokens += len(request.prompt_token_ids)
        while True:
            if request.aborted or self._closed:
                return FinishEvent("abort")
            token_id = self._step(request)
            if token_id is None:
                continue
            if token_id in self._eos_token_ids and not request.params.ignore_eos:
                return FinishEvent("stop")
            request.output_token_ids.append(token_id)
            request.events.put(TokenEvent((token_id,)))
            self._num_generated_tokens += 1
            full = request.num_tokens >= self.max_context_tokens
            if full or len(request.output_token_ids) >= request.params.max_tokens:
                return FinishEvent("length")

    def _reuse_prefix(self, request):
        """Keep the cached tokens that begin the prompt; at least one token is left to compute."""
        limit = min(len(self._cached_token_ids), len(request.prompt_token_ids) - 1)
        common = 0
        while common < limit and self._cached_token_ids[common] == request.prompt_token_ids[common]:
            common += 1
        request.num_cached_tokens = request.num_computed_tokens = common
        del self._cached_token_ids[common:]

    def _step(self, request):
        """Compute up to a step's budget of the request's tokens; its next token id once all are
        done."""
        start = request.num_computed_tokens
        end = min(request.num_tokens, start + self._runner.max_step_tokens)
        num_prompt = len(request.prompt_token_ids)
        if start >= num_prompt:
            token_ids = request.output_token_ids[start - num_prompt : end - num_prompt]
        else:
            token_ids = request.prompt_token_ids[start:end]
        is_last = end == request.num_tokens
        chunk = Chunk(token_ids, start, self._block_table, request if is_last else None)
        sampled = self._runner.step([chunk])
        request.num_computed_tokens = end
        self._cached_token_ids += token_ids
        return sampled[0] if is_last else None
