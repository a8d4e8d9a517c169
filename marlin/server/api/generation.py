"""One API call that generates: its choices through the engine, their text out as one answer.

The app has parsed the call; this owns the call's requests to the engine and ends all of them
together. Knows no routes and no dialect.
"""

import time
from contextlib import closing
from dataclasses import dataclass, replace

from marlin.engine.bounds import check_biases
from marlin.engine.sampling import SamplingParams
from marlin.engine.served_model import ServedModel
from marlin.engine.stream import TextStream, merged
from marlin.errors import StoppingError, TimedOutError
from marlin.server.api.dialect import Answer, Call, Choice, Usage
from marlin.server.api.encoding import JSON_TYPE, encode
from marlin.server.api.event_stream import EventStream
from marlin.server.http.handler import Handler
from marlin.server.observe.metrics import RequestRecord

_FINISHED = ("stop", "length")  # a choice that is whole, as far as it was asked for


class Deadline:
    """When a call must have been answered, counted from now.

    Attributes:
        at: monotonic seconds.
    """

    def __init__(self, timeout_s: float):
        self.at = time.monotonic() + timeout_s
        self._timeout_s = timeout_s

    def check(self) -> None:
        """Raise error() once it has passed."""
        if time.monotonic() >= self.at:
            raise self.error()

    def error(self) -> TimedOutError:
        """What a call is answered that was not in time."""
        return TimedOutError(f"the answer was not complete within {self._timeout_s:g} s")


@dataclass(frozen=True, slots=True)
class Generation:
    """A call and what answers it.

    Attributes:
        handler: to answer on.
        events: on handler, of a call that streams.
        record: counts its tokens.
        poll_s: how often a wait looks whether the client is still there.
    """

    handler: Handler
    events: EventStream
    record: RequestRecord
    model: ServedModel
    call: Call
    answer: Answer
    deadline: Deadline
    poll_s: float

    def check_wanted(self) -> None:
        """Raise PeerGone or TimedOutError when nobody waits for the answer any more."""
        self.handler.check_peer()
        self.deadline.check()

    def keep_waiting(self) -> None:
        """As check_wanted(), and a stream's client hears that it is not forgotten."""
        self.check_wanted()
        self._beat()

    def _beat(self):
        self.handler.check_peer()
        if self.call.stream:
            self.events.keep_alive()

    def encode(self) -> list[list[int]]:
        """Token ids of the call's prompts, after which nothing is left for a status to tell.

        Raises:
            RequestError: the model refuses a prompt or a bias.
            TemplateError: its template does.
            TimedOutError, PeerGone: as check_wanted().
        """
        prompts = [prompt.encode(self.model, self.check_wanted) for prompt in self.call.prompts]
        check_biases(self.call.sampling.logit_bias, self.model.engine)
        return prompts

    def run(self, prompts: list[list[int]]) -> None:
        """Answer with call.num_choices choices for each of encode()'s prompts.

        Choice i of prompt p has index p * num_choices + i, and draws with the call's seed + i, so
        that a prompt's choices do not depend on the prompts beside it.

        Raises:
            TimedOutError: the deadline passed.
            StoppingError: the engine gave a request up.
            PeerGone: the client left.
        """
        streams = self._start(prompts)
        requests = [stream.request for stream in streams]
        prefixes = [
            prefix
            for prefix in self.call.prefixes(self.model.tokenizer)
            for _ in range(self.call.num_choices)
        ]
        send = self._send_stream if self.call.stream else self._send_whole
        with closing(self.record.watch(streams, merged(streams))) as deltas:
            send(deltas, prefixes, requests)

    def _start(self, prompts):
        engine, sampling = self.model.engine, self.call.sampling
        # No output can be longer than the context; a larger wish means "until it is full".
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, engine.max_context_tokens))
        client, streams = self.handler.client, []
        try:
            for prompt, token_ids in zip(self.call.prompts, prompts, strict=True):
                for offset in range(self.call.num_choices):
                    params = _seeded(sampling, offset)
                    request_id = f"{self.answer.id}-{len(streams)}"
                    request = engine.submit(token_ids, params, request_id, client)
                    streams.append(self._stream(request, prompt.continues))
        except BaseException:
            for stream in streams:
                stream.request.abort()
            raise
        return streams

    def _stream(self, request, continues):
        return TextStream(
            request,
            self.model.tokenizer,
            self.call.stop,
            self.deadline.at,
            continues=continues,
            heartbeat=self._beat,
            poll_s=self.poll_s,
        )

    def _send_whole(self, deltas, prefixes, requests):
        texts = [[prefix] for prefix in prefixes]
        tokens = [[] for _ in prefixes]
        reasons = [None] * len(prefixes)
        num_output_tokens = 0
        for index, delta in deltas:
            self._check_finish(delta.finish_reason)
            texts[index].append(delta.text)
            tokens[index].extend(delta.tokens)
            reasons[index] = delta.finish_reason
            num_output_tokens += delta.num_tokens
        choices = [
            Choice(index, "".join(parts), reason, shown)
            for index, (parts, reason, shown) in enumerate(zip(texts, reasons, tokens, strict=True))
        ]
        body = self.answer.body(choices, self._usage(requests, num_output_tokens))
        self.handler.reply(200, encode(body), JSON_TYPE)

    def _send_stream(self, deltas, prefixes, requests):
        """One write for each delta; the head comes with the first, or with a keep-alive."""
        answer = self.answer
        unopened, unfinished = set(range(len(prefixes))), set(range(len(prefixes)))
        num_output_tokens = 0
        for index, delta in deltas:
            num_output_tokens += delta.num_tokens
            text, events = delta.text, []
            if index in unopened:
                unopened.remove(index)
                events.append(answer.opening(index, self._usage(requests, 0)))
                text = prefixes[index] + text
            if text or delta.tokens:
                events.append(answer.text(index, text, delta.tokens))
            reason = delta.finish_reason
            ending = reason if reason in _FINISHED else None
            if ending is not None:
                unfinished.remove(index)
                events.append(answer.ending(index, ending))
                if not unfinished:
                    events.append(answer.closing(self._usage(requests, num_output_tokens)))
            if delta.text or ending:
                self.events.send(b"".join(events), last=not unfinished)
            self._check_finish(reason)

    def _usage(self, requests, num_output_tokens):
        """A prompt counts once, however many choices it has."""
        firsts = requests[:: self.call.num_choices]
        return Usage(
            sum(len(request.prompt_token_ids) for request in firsts),
            num_output_tokens,
            sum(request.num_cached_tokens for request in firsts),
        )

    def _check_finish(self, reason):
        if reason is None or reason in _FINISHED:
            return
        if reason == "timeout":
            raise self.deadline.error()
        raise StoppingError("the server is stopping")


def _seeded(sampling: SamplingParams, offset: int) -> SamplingParams:
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + offset) % 2**64)
