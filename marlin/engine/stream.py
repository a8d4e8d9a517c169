"""A request's token events as text: detokenized, cut at stop strings, bounded by a deadline.

Runs in the thread that reads the answer. Knows nothing of HTTP or JSON; the reader's own liveness
is a callable passed in.
"""

import queue
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from marlin.engine.request import TokenEvent, TokenLogprobs
from marlin.text.answer import AnswerReader
from marlin.text.detokenizer import Detokenizer
from marlin.text.stop import StopMatcher
from marlin.text.tool_calls.scanner import Part

# Events taken into one delta. A reader that fell behind must not chase a fast engine for ever.
_MAX_EVENTS = 64


class ShownToken(NamedTuple):
    """A token behind a delta's text, for a request that asked for log-probabilities.

    Attributes:
        text_offset: where its text begins, in characters from the start of the answer.
        logprobs: engine.request.TokenLogprobs; None of the first token, which nothing predicts.
    """

    token_id: int
    text_offset: int
    logprobs: TokenLogprobs | None


class TextDelta(NamedTuple):
    """Newly final text.

    Attributes:
        text: may be empty only in the last delta.
        num_tokens: output tokens behind it, since the delta before.
        finish_reason: None until the last delta; then "stop" (a stop string or end of sequence),
            "tool_calls" (the same, and there were some), "length", "abort" (the engine gave the
            request up) or "timeout" (the deadline passed).
        tokens: ShownTokens whose first character is in this text, or that come before such a
            character and have no text. Empty unless log-probabilities were asked for. Tokens that
            lie wholly in or after a stop string are in no delta.
        parts: what the reader made of the text; None without a reader.
        num_reasoning_tokens: of num_tokens, those of a thought.
        stop_string: that ended the text, in the last delta.
    """

    text: str
    num_tokens: int
    finish_reason: str | None = None
    tokens: tuple[ShownToken, ...] = ()
    parts: Sequence[Part] | None = None
    num_reasoning_tokens: int = 0
    stop_string: str | None = None


class TextStream:
    """Iterate once for TextDeltas; the last one has a finish reason.

    Leaving the iteration early, by close() or an exception, aborts the request. Events that are
    already queued become one delta. merged() reads several streams at once.

    Args:
        request: a submitted engine.request.Request; also an attribute.
        tokenizer: what Detokenizer takes.
        stops: stop strings; the text ends before the first of them to appear.
        deadline: clock time, or None for no limit.
        continues: the text goes on from the prompt (a completion) rather than standing alone (a
            chat answer); see Detokenizer.
        heartbeat: called about every poll_s while the stream is being read; what it raises ends the
            stream.
        poll_s: seconds.
        clock: monotonic seconds.
        reader: of the answer's parts; the deltas then have them.
        marker_ids: special tokens whose text it must see.

    Attributes:
        request: the one given.
        finished: the last delta has been taken.
        num_tokens, num_reasoning_tokens: of the deltas that were taken, together.
    """

    def __init__(
        self,
        request,
        tokenizer,
        stops=(),
        deadline=None,
        *,
        continues=True,
        heartbeat=None,
        poll_s=0.1,
        clock=time.monotonic,
        reader: AnswerReader | None = None,
        marker_ids=frozenset(),
    ):
        self.request = request
        self.finished = False
        self.num_tokens = self.num_reasoning_tokens = 0
        self._detokenizer = Detokenizer(tokenizer, continues, shown_ids=marker_ids)
        self._reader = reader
        self._parts: list[Part] = []  # since the delta before
        self._num_reasoning_tokens = 0  # the same
        self._stop_matcher = StopMatcher(stops)
        self._deadline = deadline
        self._heartbeat = heartbeat
        self._poll_s = poll_s
        self._clock = clock
        self._next_beat = clock() + poll_s
        self._num_tokens = 0  # since the delta before
        self._num_produced = 0  # characters out of the detokenizer
        self._num_shown = 0  # characters in deltas
        self._waiting_tokens = deque()  # ShownTokens for a later delta

    def __iter__(self):
        """Raises: whatever ended the request in the engine, or what the heartbeat raises."""
        with closing(merged([self])) as deltas:
            for _, delta in deltas:
                yield delta

    def next_delta(self, wait):
        """Take what has arrived.

        Args:
            wait: wait about poll_s for something to arrive.

        Returns:
            TextDelta, or None while there is no new text. After the last delta the request is
            aborted, whoever ended it.

        Raises:
            As iterating.
        """
        events = self._ready_events(wait)
        if events is None:
            text, reason = self._flush()[0], "timeout"
        else:
            text, reason = self._consume(events)
        if self._reader is not None and reason is not None:
            reason = self._read_end(self._reader, reason)
        if not text and reason is None:
            return None
        self._num_shown += len(text)
        shown = self._shown_tokens(reason)
        read = None if self._reader is None else self._parts
        counted, stop_string = self._num_reasoning_tokens, self._stop_matcher.matched
        delta = TextDelta(text, self._num_tokens, reason, shown, read, counted, stop_string)
        self.num_tokens += self._num_tokens
        self.num_reasoning_tokens += counted
        self._num_tokens, self._num_reasoning_tokens, self._parts = 0, 0, []
        if reason is not None:
            self.finished = True
            self.request.abort()
        return delta

    def _ready_events(self, wait):
        """Events that are queued, at most _MAX_EVENTS; None once the deadline passed."""
        now = self._clock()
        wait_s = self._poll_s if wait else 0
        if self._deadline is not None:
            if now >= self._deadline:
                return None
            wait_s = min(wait_s, self._deadline - now)
        if self._heartbeat is not None and now >= self._next_beat:
            self._heartbeat()
            self._next_beat = now + self._poll_s
        events, ready = self.request.events, []
        try:
            ready.append(events.get(timeout=wait_s) if wait else events.get_nowait())
        except queue.Empty:
            return ready
        # Only this thread takes from the queue: what is in it now stays.
        while len(ready) < _MAX_EVENTS and not events.empty():
            ready.append(events.get_nowait())
        return ready

    def _consume(self, events):
        """Returns (text, finish reason or None)."""
        texts = []
        for event in events:
            if isinstance(event, TokenEvent):
                for index, token_id in enumerate(event.token_ids):
                    logprobs = event.logprobs[index] if event.logprobs else None
                    text, is_over = self._push(token_id, logprobs)
                    texts.append(text)
                    if is_over:
                        return "".join(texts), "stop"
            elif event.reason == "error":
                raise event.error
            else:
                text, matched = self._flush()
                texts.append(text)
                return "".join(texts), "stop" if matched else event.reason
        return "".join(texts), None

    def _push(self, token_id, logprobs):
        """Returns (text that is safe to show, whether the answer is over with it)."""
        self._num_tokens += 1
        if logprobs is not None:
            self._waiting_tokens.append(ShownToken(token_id, self._num_produced, logprobs))
        text = self._detokenizer.push(token_id)
        self._num_produced += len(text)
        text, matched = self._stop_matcher.push(text)
        reader = self._reader
        if reader is None:
            return text, matched
        self._num_reasoning_tokens += reader.thinking
        self._parts += reader.push(text)
        return text, matched or reader.is_full

    def _read_end(self, reader, reason):
        """At an end, what the reader still holds; the reason of an answer with calls."""
        self._parts += reader.finish(is_cut=reason != "stop")
        return "tool_calls" if reason == "stop" and reader.has_called else reason

    def _shown_tokens(self, reason):
        """Tokens that the text shown so far accounts for; at an end that cut nothing, all."""
        cut = reason is None or self._stop_matcher.matched is not None
        waiting, shown = self._waiting_tokens, []
        while waiting and (not cut or waiting[0].text_offset < self._num_shown):
            shown.append(waiting.popleft())
        return tuple(shown)

    def _flush(self):
        """What detokenizer and stop matcher still hold; a stop string may complete in it."""
        text, matched = self._stop_matcher.push(self._detokenizer.flush())
        text = text if matched else text + self._stop_matcher.flush()
        if self._reader is not None:
            self._parts += self._reader.push(text)
        return text, matched


def merged(streams, waits=True):
    """(index, TextDelta) of several TextStreams as they come; each has its last delta.

    Waits on the first unfinished stream and looks at the others after it: the engine runs requests
    in the order of submission, or side by side in the same steps. Leaving early, and an error of
    one stream, aborts all requests.

    Args:
        waits: False yields (0, None) where it would wait.
    """
    try:
        unfinished = dict(enumerate(streams))
        while unfinished:
            for place, (index, stream) in enumerate(list(unfinished.items())):
                delta = stream.next_delta(wait=waits and place == 0)
                if delta is None:
                    continue
                if delta.finish_reason is not None:
                    del unfinished[index]
                yield index, delta
            if (
                not waits
                and unfinished
                and all(s.request.events.empty() for s in unfinished.values())
            ):
                yield 0, None
    finally:
        # Needed after a stop string, a timeout, an early leave; harmless after the engine's end.
        for stream in streams:
            stream.request.abort()
