"""A request's token events as text: detokenized, cut at stop strings, bounded by a deadline.

Runs in the thread that reads the answer. Knows nothing of HTTP or JSON; the reader's own liveness
is a callable passed in.
"""

import queue
import time
from dataclasses import dataclass

from marlin.engine.request import TokenEvent
from marlin.text.detokenizer import Detokenizer
from marlin.text.stop import StopMatcher

# Events taken into one delta. A reader that fell behind must not chase a fast engine for ever.
_MAX_EVENTS = 64


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Newly final text.

    Attributes:
        text: may be empty only in the last delta.
        num_tokens: output tokens behind it, since the delta before.
        finish_reason: None until the last delta; then "stop" (a stop string or end of sequence),
            "length", "abort" (the engine gave the request up) or "timeout" (the deadline passed).
    """

    text: str
    num_tokens: int
    finish_reason: str | None = None


class TextStream:
    """Iterate once for TextDeltas; the last one has a finish reason.

    Leaving the iteration early, by close() or an exception, aborts the request. Events that are
    already queued become one delta.

    Args:
        request: a submitted engine.request.Request.
        tokenizer: what Detokenizer takes.
        stops: stop strings; the text ends before the first of them to appear.
        deadline: clock time, or None for no limit.
        continues: the text goes on from the prompt (a completion) rather than standing alone (a
            chat answer); see Detokenizer.
        heartbeat: called about every poll_s while the stream is being read; what it raises ends the
            stream.
        poll_s: seconds.
        clock: monotonic seconds.
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
    ):
        self._request = request
        self._detokenizer = Detokenizer(tokenizer, continues)
        self._stop_matcher = StopMatcher(stops)
        self._deadline = deadline
        self._heartbeat = heartbeat
        self._poll_s = poll_s
        self._clock = clock
        self._next_beat = clock() + poll_s

    def __iter__(self):
        """Raises: whatever ended the request in the engine, or what the heartbeat raises."""
        reason = None
        num_tokens = 0
        try:
            while reason is None:
                text, num_new, reason = self._consume(self._next_events())
                num_tokens += num_new
                if text or reason is not None:
                    yield TextDelta(text, num_tokens, reason)
                    num_tokens = 0
        finally:
            # Harmless after the engine's own end; needed after a stop string, a timeout, an early
            # leave.
            self._request.abort()

    def _next_events(self):
        """Wait for an event; returns it and those queued behind it, or [] once the deadline
        passed."""
        events = self._request.events
        while True:
            now = self._clock()
            wait_s = self._poll_s
            if self._deadline is not None:
                wait_s = min(wait_s, self._deadline - now)
                if wait_s <= 0:
                    return []
            if self._heartbeat is not None and now >= self._next_beat:
                self._heartbeat()
                self._next_beat = now + self._poll_s
            ready = []
            try:
                ready.append(events.get(timeout=wait_s))
                while len(ready) < _MAX_EVENTS:
                    ready.append(events.get_nowait())
            except queue.Empty:
                pass
            if ready:
                return ready

    def _consume(self, events):
        """Returns (text, number of tokens, finish reason or None)."""
        if not events:
            return self._flush()[0], 0, "timeout"
        texts = []
        num_tokens = 0
        for event in events:
            if isinstance(event, TokenEvent):
                for token_id in event.token_ids:
                    num_tokens += 1
                    text, matched = self._stop_matcher.push(self._detokenizer.push(token_id))
                    texts.append(text)
                    if matched:
                        return "".join(texts), num_tokens, "stop"
            elif event.reason == "error":
                raise event.error
            else:
                text, matched = self._flush()
                texts.append(text)
                return "".join(texts), num_tokens, "stop" if matched else event.reason
        return "".join(texts), num_tokens, None

    def _flush(self):
        """What detokenizer and stop matcher still hold; a stop string may complete in it."""
        text, matched = self._stop_matcher.push(self._detokenizer.flush())
        return (text if matched else text + self._stop_matcher.flush()), matched
