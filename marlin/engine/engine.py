"""The engine thread: takes requests, steps the model, publishes tokens.

Owns the thread and the events; which tokens go into a step is the scheduler's, what a step computes
the runner's.
"""

import queue
import threading
import time

from marlin.engine.block_pool import BlockPool, StatePool, WindowPool
from marlin.engine.draft import Drafter
from marlin.engine.interface import EngineStats
from marlin.engine.request import (
    FinishEvent,
    TokenEvent,
    VectorEvent,
    new_pooled_request,
    new_request,
)
from marlin.engine.runner import NO_TOKEN, NOT_NUMBERS
from marlin.engine.scheduler import Scheduler
from marlin.engine.thought_budget import ThoughtGuide
from marlin.errors import (
    DeviceError,
    KvRangeError,
    ModelFileError,
    NoMemoryError,
    NotServedError,
    RequestError,
    StoppingError,
)

# Between two looks at the files of the model: a few microseconds each.
FILE_CHECK_S = 1.0
# A failed step may be one request's misfortune. So many in a row are the device's own state, which
# on a GPU can last as long as the process: macOS revokes the access of one that caused hangs.
MAX_FAILED_STEPS = 3

# macOS 26 takes a GPU's memory from it about a second after its last use (llama.cpp's issue 17766);
# the next step then took 0.3 s instead of 0.06 on an M4 Pro (its #10119). After three minutes, its
# choice too, the memory is left to others.
RESIDENCY_INTERVAL_S = 0.5
KEEP_RESIDENT_S = 180


class Engine:
    """Owns the runner and the thread that steps it. Its methods may be called by any thread.

    Args:
        runner: a Runner. Its paging decides the mode: one block as long as the context is
            sequential mode; many blocks are shared by up to runner.max_sequences requests. Requests
            speculate if it takes draft tokens.
        eos_token_ids: tokens that end a generation.
        max_context_tokens: prompt and output together; None is all that the cache holds.
        vocab_size: token ids below it may be in prompts and biases; None is the model's own.
        check_files: called about once a second of work, and before a request that comes after a
            pause; raises ModelFileError where the model's files are no longer what was loaded,
            which ends the engine.
        grammars: engine.constraint.Grammars, or None where answers cannot be constrained.
        draft_model: engine.draft_model.DraftModel that guesses, closed with the engine; None where
            sequences guess by themselves.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        runner,
        eos_token_ids,
        max_context_tokens=None,
        vocab_size=None,
        check_files=None,
        grammars=None,
        draft_model=None,
        clock=time.monotonic,
    ):
        self._runner = runner
        self._grammars = grammars
        self._eos_token_ids = frozenset(eos_token_ids)
        paging = runner.paging
        capacity = paging.block_size * min(paging.num_blocks, paging.table_stride)
        self.max_context_tokens = min(capacity, max_context_tokens or capacity)
        most = runner.model.config.vocab_size
        self.vocab_size = min(most, vocab_size or most)
        self._pool = BlockPool(paging.num_blocks, paging.block_size)
        self._windows = [WindowPool(w, count, paging.block_size) for w, count in paging.windows]
        limits = runner.max_sequences, runner.max_step_tokens, runner.max_draft_tokens
        states = StatePool(paging.num_states) if paging.num_states else None
        self._scheduler = Scheduler(self._pool, *limits, self._windows, states)
        self._draft_model = self._scheduler.draft_model = draft_model
        self._incoming = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._released = False
        self._check_files = check_files or (lambda: None)
        self._checked_at = clock()
        self._clock = clock
        self._stepped_at = clock()
        self._num_failed_steps = 0  # in a row
        self._failure = None
        self._num_submitted = 0
        self._num_finished = 0
        self._num_running = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, prompt_token_ids, params, request_id, client=""):
        """Queue a request.

        Args:
            client: whose it is; engine time is shared between clients.

        Returns:
            Request; read its events until the FinishEvent.

        Raises:
            RequestError: as new_request's; NotServedError of an encoder.
            StoppingError: the engine has stopped.
        """
        if not self._runner.generates:
            raise NotServedError("an encoder generates no text; it makes embeddings")
        request = new_request(prompt_token_ids, params, request_id, self, client)
        request.guide = self.guide_of(params)
        if self._runner.max_draft_tokens:
            request.drafter = self._drafter(request)
        return self._enqueue(request)

    def pool(self, token_ids, pooler, request_id, client=""):
        """Queue a request for a text's vector or score, with what shall make it: an
        engine.pooler.Pooler. The rest as submit()'s."""
        return self._enqueue(new_pooled_request(token_ids, pooler, request_id, self, client))

    def _enqueue(self, request):
        with self._lock:
            if not self.alive:
                raise StoppingError("the engine has stopped")
            if self._num_submitted == self._num_finished:  # until now there was nothing to step
                self._stepped_at = self._clock()
            self._num_submitted += 1
            self._incoming.put(request)
        return request

    def prepare(self):
        """Make what only some requests need, once everything else is there; for a thread."""
        if self._grammars is not None:
            self._grammars.prepare()

    @property
    def prefix_cache(self) -> str:
        """As Scheduler.prefix_cache; to be set before the first request."""
        return self._scheduler.prefix_cache

    @prefix_cache.setter
    def prefix_cache(self, mode: str) -> None:
        self._scheduler.prefix_cache = mode

    def guide_of(self, params):
        """The beginning of an answer to a request with a grammar or a bound on its thoughts, None
        without; RequestError or OverloadedError where it cannot be."""
        grammars, limit = self._grammars, params.thought
        if params.grammar is None and limit is None:
            return None
        place = params.constraint and params.constraint.place
        if grammars is None:
            raise RequestError("answers of this model cannot be constrained", param=place)
        guide = None if params.grammar is None else grammars.guide(params.grammar, place)
        if limit is None:
            return guide
        forced = grammars.token_ids(limit.forced)
        return ThoughtGuide(limit, forced, grammars.vocabulary.tokens, guide)

    def _drafter(self, request):
        longest = len(request.prompt_token_ids) + request.params.max_tokens
        longest = min(self.max_context_tokens, longest)
        ends = () if request.params.ignore_eos else self._eos_token_ids
        if self._draft_model is not None:
            return self._draft_model.drafter(request, ends, longest)
        return Drafter(longest, ends)

    @property
    def alive(self):
        """False once the engine has ended, by itself or by close()."""
        return self._thread.is_alive() and not self._closed

    def wait_for_end(self):
        """Wait until the engine thread has ended.

        Returns:
            The exception that ended it; None after close().
        """
        self._thread.join()
        return self._failure

    def stats(self) -> EngineStats:
        """What is in hand now."""
        with self._lock:
            unfinished = self._num_submitted - self._num_finished
            return EngineStats(
                num_running=self._num_running,
                num_waiting=unfinished - self._num_running,
                kv_bytes=self._runner.kv_bytes
                + (self._draft_model.kv_bytes if self._draft_model else 0),
                gpu_memory_bytes=self._runner.gpu_memory_bytes,
                num_kv_blocks=self._pool.num_blocks,
                num_free_kv_blocks=self._pool.num_free,
                num_window_blocks=sum(w.num_blocks for w in self._windows),
                num_free_window_blocks=sum(w.num_free for w in self._windows),
                seconds_since_step=self._clock() - self._stepped_at if unfinished else 0.0,
            )

    def abandon(self, error):
        """The engine hangs, and its process is about to end: tell whoever waits, take nothing more.

        Args:
            error: what ends the requests in hand.
        """
        with self._lock:
            self._closed = True
            requests = self._scheduler.requests()
            while not self._incoming.empty():
                requests.append(self._incoming.get())
        for request in filter(None, requests):
            request.events.put(FinishEvent("error", error))

    def close(self):
        """Abort what is in hand, end the thread and free the device. Idempotent."""
        with self._lock:
            self._closed = True
            self._incoming.put(None)
        self._thread.join()
        with self._lock:
            if self._released:
                return
            self._released = True
        if self._draft_model is not None:
            self._draft_model.close()
        self._runner.close()
        self._runner.device.close()

    def _run(self):
        try:
            while self._receive():
                self._look_at_files()
                self._drop_aborted()
                chunks = self._scheduler.schedule()
                with self._lock:
                    self._num_running = len(self._scheduler.running)
                if chunks:
                    self._step(chunks)
                else:
                    self._scheduler.check()
        except (DeviceError, ModelFileError) as error:
            self._failure = error
        except BaseException as error:
            self._failure = error
            raise  # a bug: the interpreter prints its traceback
        finally:
            self._fail_unfinished()

    def _receive(self):
        """Move what was submitted to the scheduler, waiting if it has nothing. False: closed."""
        idle = not self._scheduler.requests()
        while idle or not self._incoming.empty():
            request = self._wait_for_request() if idle else self._incoming.get()
            if request is None:
                return False
            self._scheduler.waiting.append(request)
            idle = False
        return True

    def _wait_for_request(self):
        """What is submitted next. For a while after work the device's memory is kept resident."""
        while self._num_finished and self._clock() - self._stepped_at < KEEP_RESIDENT_S:
            try:
                return self._incoming.get(timeout=RESIDENCY_INTERVAL_S)
            except queue.Empty:
                self._runner.device.keep_resident()
        return self._incoming.get()

    def _look_at_files(self):
        if self._clock() - self._checked_at >= FILE_CHECK_S:
            self._check_files()
            self._checked_at = self._clock()

    def _drop_aborted(self):
        for request in self._scheduler.requests():
            if request.aborted:
                self._finish(request, FinishEvent("abort"))

    def _step(self, chunks):
        started = self._clock()
        try:
            token_lists = self._runner.step(chunks)
        except (DeviceError, MemoryError) as failure:
            no_memory = isinstance(failure, MemoryError)
            error = NoMemoryError("there was no memory for a step") if no_memory else failure
            for chunk in chunks:
                self._finish(chunk.request, FinishEvent("error", error), keep=False)
            self._num_failed_steps += 1
            if self._num_failed_steps == MAX_FAILED_STEPS:
                raise error from None
            return
        self._num_failed_steps = 0
        with self._lock:
            self._stepped_at = self._clock()
        self._scheduler.shares.charge(chunks, self._stepped_at - started)
        if self._draft_model is not None:
            self._draft_model.note_step(chunks, token_lists, self._stepped_at - started)
        sampled = zip(token_lists, self._runner.logprobs, strict=True)
        for chunk, num_beyond in zip(chunks, self._runner.num_beyond, strict=True):
            tokens = next(sampled) if chunk.wants_logits else ((), ())
            if num_beyond:
                chunk.request.num_beyond_tokens += num_beyond
                self._finish(chunk.request, FinishEvent("error", KvRangeError()), keep=False)
            elif chunk.request.is_score_broken:
                error = DeviceError(NOT_NUMBERS)
                self._finish(chunk.request, FinishEvent("error", error), keep=False)
            elif chunk.is_last and chunk.request.pooler is not None:
                self._publish_vector(chunk)
            elif chunk.is_last:
                self._publish(chunk, *tokens)
            else:
                self._scheduler.advance(chunk)

    def _publish(self, chunk, token_ids, logprobs):
        """Append sampled tokens, or as many as there are before the request's end, and end it."""
        request = chunk.request
        numbers = [token_id for token_id in token_ids if token_id != NO_TOKEN]
        kept, finish = self._until_end(request, numbers)
        is_broken = finish is None and len(numbers) < len(token_ids)
        request.output_token_ids += kept
        # The KV of the last token sampled is not there; that of those before it is.
        num_accepted = min(len(kept), len(token_ids) - 1)
        if request.guide is not None:
            request.guide.advance(kept)
        if is_broken:
            reason = request.guide.error if request.guide else None
            finish = FinishEvent("error", reason or DeviceError(NOT_NUMBERS))
        else:
            self._scheduler.advance(chunk, num_accepted)
        if kept:
            request.events.put(TokenEvent(tuple(kept), tuple(logprobs[: len(kept)])))
        if finish is not None:
            self._finish(request, finish, keep=not is_broken)

    def _publish_vector(self, chunk):
        """End a request with its vector."""
        request = chunk.request
        self._scheduler.advance(chunk)
        vector = request.pooler.result()
        finish = FinishEvent("error", DeviceError(NOT_NUMBERS))
        if vector is not None:
            request.events.put(VectorEvent(vector))
            finish = FinishEvent("stop")
        self._finish(request, finish, keep=vector is not None)

    def _until_end(self, request, token_ids):
        """(the tokens to keep, the FinishEvent that follows them or None)."""
        room = min(
            self.max_context_tokens - request.num_tokens,
            request.params.max_tokens - len(request.output_token_ids),
        )
        if room == 0:  # only the prompt was asked for
            return [], FinishEvent("length")
        for index, token_id in enumerate(token_ids):
            if token_id in self._eos_token_ids and not request.params.ignore_eos:
                return token_ids[:index], FinishEvent("stop")
            if index + 1 == room:
                return token_ids[: index + 1], FinishEvent("length")
        return token_ids, None

    def _finish(self, request, event, keep=True):
        self._scheduler.remove(request, keep)
        with self._lock:
            self._num_finished += 1
            self._num_running = len(self._scheduler.running)
        request.events.put(event)

    def _fail_unfinished(self):
        """The thread ends: whoever still waits hears of it."""
        with self._lock:
            self._closed = True
            unfinished = self._scheduler.requests()
            while not self._incoming.empty():
                request = self._incoming.get()
                if request is not None:
                    unfinished.append(request)
            self._num_finished += len(unfinished)
            self._num_running = 0
        if self._failure is None:  # close() was called
            event = FinishEvent("abort")
        else:
            reason = f": {self._failure}" if isinstance(self._failure, DeviceError) else ""
            event = FinishEvent("error", DeviceError(f"the engine has stopped{reason}"))
        for request in unfinished:
            request.events.put(event)
