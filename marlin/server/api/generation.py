"""One API call that generates: its choices through the engine, their text out as one answer.

The app has parsed the call; this owns the call's requests to the engine and ends all of them
together. Knows no routes and no dialect.
"""

import time
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from marlin.engine.bounds import check_biases
from marlin.engine.served_model import ModelPrompt, ServedModel
from marlin.engine.shared_reader import Turn
from marlin.engine.stream import TextStream, merged
from marlin.engine.thought_budget import limited
from marlin.errors import StoppingError, TimedOutError
from marlin.server.api.dialect import Answer, Call, Choice, Echo, ToolCall, Usage
from marlin.server.api.encoding import JSON_TYPE, encode
from marlin.server.api.event_stream import EventStream
from marlin.server.http.handler import Handler
from marlin.server.observe.metrics import RequestRecord

_NO_ECHO = Echo()
_FINISHED = ("stop", "tool_calls", "length")  # a choice that is whole, as far as it was asked for


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


class Generation(NamedTuple):
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
        self.events.flush()

    def _beat(self):
        self.handler.check_peer()
        if self.call.stream:
            self.events.keep_alive()

    def encode(self) -> list[ModelPrompt]:
        """The call's prompts, after which nothing is left for a status to tell.

        Raises:
            RequestError: the model refuses a prompt or a bias.
            TemplateError: its template does.
            TimedOutError, PeerGone: as check_wanted().
        """
        whose = self.check_wanted, self.handler.client
        prompts = [prompt.encode(self.model, *whose) for prompt in self.call.prompts]
        check_biases(self.call.sampling.logit_bias, self.model.engine)
        for prompt in prompts:  # now, while an error still has a status
            self.model.engine.guide_of(self._constrained(prompt))
        return prompts

    def _constrained(self, prompt):
        """The call's SamplingParams for one prompt: a thought may come before what is asked for."""
        sampling = self.call.sampling
        if (sampling.constraint, sampling.thought_tokens, prompt.tool_grammar) == (None,) * 3:
            return sampling
        reader = prompt.new_reader and prompt.new_reader()
        sampling = limited(sampling, reader)
        constraint = sampling.constraint
        if prompt.tool_grammar is not None:
            constraint = prompt.tool_grammar.constraint(constraint)
        elif constraint is not None and reader:
            constraint = replace(constraint, part=reader.content(constraint.part))
        if constraint is None:
            return sampling
        before = reader and reader.may_begin_with()
        grammar = self.model.grammar(constraint, before)
        return replace(sampling, constraint=constraint, grammar=grammar)

    def run(self, prompts: list[ModelPrompt]) -> None:
        """Answer with call.num_choices choices for each of encode()'s prompts.

        Choice i of prompt p has index p * num_choices + i, and draws with the call's seed + i, so
        that a prompt's choices do not depend on the prompts beside it.

        Raises:
            TimedOutError: the deadline passed.
            StoppingError: the engine gave a request up.
            PeerGone: the client left.
        """
        streams = self.start(prompts)
        send = self._send_stream if self.call.stream else self._send_whole
        with closing(self.record.watch(streams, merged(streams, waits=False))) as deltas:
            self.model.reader.run(send(deltas, streams), [stream.request for stream in streams])

    def _echo(self, index, streams):
        """The Echo of a choice, whose first event has come."""
        prompt = self.call.prompts[index // self.call.num_choices]
        return self.call.beginning(prompt, streams[index].request, self.model.tokenizer)

    def start(self, prompts: list[ModelPrompt]) -> list[TextStream]:
        """The TextStreams of all choices, whose requests are in the engine; run() without what is
        sent."""
        engine = self.model.engine
        client, streams = self.handler.client, []
        try:
            for asked, prompt in zip(self.call.prompts, prompts, strict=True):
                sampling = self._constrained(prompt)
                # No output can be longer than the context; more means "until it is full".
                if sampling.max_tokens > engine.max_context_tokens:
                    sampling = replace(sampling, max_tokens=engine.max_context_tokens)
                for offset in range(self.call.num_choices):
                    params = sampling
                    if sampling.seed is not None:
                        params = replace(sampling, seed=(sampling.seed + offset) % 2**64)
                    request_id = f"{self.answer.id}-{len(streams)}"
                    request = engine.submit(prompt.token_ids, params, request_id, client)
                    reader = prompt.new_reader and prompt.new_reader()
                    stream = TextStream(
                        *(request, self.model.tokenizer, self.call.stop, self.deadline.at),
                        continues=asked.continues,
                        heartbeat=self._beat,
                        poll_s=self.poll_s,
                        reader=reader,
                        marker_ids=frozenset() if reader is None else self.model.marker_ids,
                    )
                    streams.append(stream)
        except BaseException:
            for stream in streams:
                stream.request.abort()
            raise
        return streams

    def _send_whole(self, deltas, streams):
        choices = [Gathered() for _ in streams]
        for index, delta in deltas:
            if delta is None:
                yield Turn.WAIT
                continue
            self._check_finish(delta.finish_reason)
            choices[index].add(delta)
        yield Turn.ALONE
        indices = range(len(streams))
        whole = [choices[index].whole(index, self._echo(index, streams)) for index in indices]
        body = self.answer.body(whole, self._usage(streams))
        self.handler.reply(200, encode(body), JSON_TYPE)

    def _send_stream(self, deltas, streams):
        """One write for each delta; the head comes with the first, or with a keep-alive."""
        answer = self.answer
        unopened, unfinished = set(range(len(streams))), set(range(len(streams)))
        echoed: dict[int, int] = {}  # characters, by choice
        for index, delta in deltas:
            yield from self.events.rest()
            if delta is None:
                yield Turn.WAIT
                continue
            events, echo = [], _NO_ECHO
            if index in unopened:
                unopened.remove(index)
                before = self._usage(streams)._replace(num_output_tokens=0, num_reasoning_tokens=0)
                events.append(answer.opening(index, before))
                if self.call.sampling.score_prompt:  # much to make JSON of
                    yield Turn.ALONE
                echo = self._echo(index, streams)
                echoed[index] = len(echo.text)
            tokens = *echo.tokens, *_moved(delta.tokens, echoed[index])
            events += self._events(index, echo.text, delta, tokens)
            is_whole = delta.finish_reason in _FINISHED
            if is_whole:
                unfinished.remove(index)
                events.append(answer.ending(index, delta.finish_reason, delta.stop_string))
                if not unfinished:
                    events.append(answer.closing(self._usage(streams)))
            if events and (delta.text or is_whole):
                self.events.send(b"".join(events), last=not unfinished)
            self._check_finish(delta.finish_reason)
        yield from self.events.rest()

    def _events(self, index, prefix, delta, tokens):
        """The events of a delta's text and tokens."""
        if delta.parts is None:
            text = prefix + delta.text
            return [self.answer.text(index, text, tokens)] if text or tokens else []
        events = [self.answer.text(index, "", tokens)] if tokens else []
        for part in delta.parts:
            if part.kind == "content":
                events.append(self.answer.text(index, part.text, ()))
            else:
                events.append(self.answer.part(index, part))
        return events

    def _usage(self, streams):
        """A prompt counts once, however many choices it has."""
        firsts = [stream.request for stream in streams[:: self.call.num_choices]]
        return Usage(
            sum(len(request.prompt_token_ids) for request in firsts),
            sum(stream.num_tokens for stream in streams),
            sum(request.num_cached_tokens for request in firsts),
            sum(stream.num_reasoning_tokens for stream in streams),
        )

    def _check_finish(self, reason):
        if reason == "timeout":
            raise self.deadline.error()
        if reason is not None and reason not in _FINISHED:
            raise StoppingError("the server is stopping")


class Gathered:
    """A choice while its deltas come: add() each, and whole() at the end."""

    def __init__(self):
        self._texts = {"content": [], "reasoning": []}
        self._tokens, self._calls = [], []
        self._reason = self._stop_string = None

    def add(self, delta):
        self._tokens.extend(delta.tokens)
        self._reason, self._stop_string = delta.finish_reason, delta.stop_string
        if delta.parts is None:
            self._texts["content"].append(delta.text)
        for part in delta.parts or ():
            if part.kind in self._texts:
                self._texts[part.kind].append(part.text)
            elif part.kind == "call":
                self._calls.append(ToolCall(part.text, part.id))
            elif part.kind == "arguments":
                self._calls[part.call].arguments += part.text
            else:
                self._calls[part.call].is_whole = True

    def whole(self, index: int, echo: Echo = _NO_ECHO) -> Choice:
        """A call that the end of its tokens cut is none."""
        calls = [call for call in self._calls if call.is_whole or self._reason != "length"]
        content, reasoning = map("".join, self._texts.values())
        tokens = [*echo.tokens, *_moved(self._tokens, len(echo.text))]
        ended = self._reason, tokens, reasoning, calls, self._stop_string
        return Choice(index, echo.text + content, *ended)


def _moved(tokens, num_characters):
    """ShownTokens of an answer that begins so much later."""
    if not num_characters:
        return tokens
    return [token._replace(text_offset=token.text_offset + num_characters) for token in tokens]
