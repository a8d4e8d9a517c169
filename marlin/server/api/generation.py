"""One API call that generates: its choices through the engine, their text out as one answer.

The app has parsed the call and holds its slot; this owns the call's requests to the engine and
ends all of them together. Knows no routes, and JSON only through api/openai_answers.py.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from marlin.engine.served_model import ServedModel
from marlin.engine.stream import TextStream, merged
from marlin.errors import StoppingError, TimedOutError
from marlin.server.api import openai_answers
from marlin.server.api.openai_requests import GenerationOptions
from marlin.server.http.handler import Handler
from marlin.server.http.limits import Limits
from marlin.server.observe.metrics import RequestRecord
from marlin.text.detokenizer import Detokenizer

_FINISHED = ("stop", "length")  # a choice that is whole, as far as it was asked for


@dataclass(frozen=True, slots=True)
class Generation:
    """A call and what answers it.

    Attributes:
        handler: http.handler.Handler to answer on.
        record: observe.metrics.RequestRecord that counts its tokens.
        answer: openai_answers.ChatAnswer or CompletionAnswer.
        deadline: monotonic seconds; timeout_s is what it was set to, for messages.
    """

    handler: Handler
    record: RequestRecord
    service: ServedModel
    answer: Any
    options: GenerationOptions
    limits: Limits
    deadline: float
    timeout_s: float

    def run(self, prompts):
        """Answer with options.num_choices choices for each prompt.

        Args:
            prompts: lists of token ids. Choice i of prompt p has index p * num_choices + i, and
                draws with the call's seed + i, so that a prompt's choices do not depend on the
                prompts beside it.

        Raises:
            RequestError: the engine refuses a prompt.
            TimedOutError: the deadline passed.
            StoppingError: the engine gave a request up.
            PeerGone: the client left.
        """
        streams = self._start(prompts)
        requests = [stream.request for stream in streams]
        prefixes = [""] * len(streams)
        if self.options.echo:
            texts = [self._text_of(prompt) for prompt in self.options.echo]
            prefixes = [text for text in texts for _ in range(self.options.num_choices)]
        send = self._send_stream if self.options.stream else self._send_whole
        with closing(self.record.watch(streams, merged(streams))) as deltas:
            send(deltas, prefixes, requests)

    def _start(self, prompts):
        engine, sampling = self.service.engine, self.options.sampling
        # No output can be longer than the context; a larger wish means "until it is full".
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, engine.max_context_tokens))
        streams = []
        try:
            for prompt in prompts:
                for offset in range(self.options.num_choices):
                    params = _seeded(sampling, offset)
                    request_id = f"{self.answer.id}-{len(streams)}"
                    streams.append(self._stream(engine.submit(prompt, params, request_id)))
        except BaseException:
            for stream in streams:
                stream.request.abort()
            raise
        return streams

    def _stream(self, request):
        return TextStream(
            request,
            self.service.tokenizer,
            self.options.stop,
            self.deadline,
            continues=self.answer.continues_prompt,
            heartbeat=self.handler.check_peer,
            poll_s=self.limits.poll_s,
        )

    def _text_of(self, prompt):
        """A prompt as its client gave it; token ids do not tell a text, so that is not decoded."""
        if isinstance(prompt, str):
            return prompt
        detokenizer = Detokenizer(
            self.service.tokenizer, continues=False, skip_special_tokens=False
        )
        return "".join([*map(detokenizer.push, prompt), detokenizer.flush()])

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
            openai_answers.Choice(index, "".join(parts), reason, shown)
            for index, (parts, reason, shown) in enumerate(zip(texts, reasons, tokens, strict=True))
        ]
        body = self.answer.body(choices, self._usage(requests, num_output_tokens))
        self.handler.reply(200, openai_answers.encode(body), openai_answers.JSON_TYPE)

    def _send_stream(self, deltas, prefixes, requests):
        """One write for each delta; the head waits for the first, so that an early failure has
        its status."""
        answer = self.answer
        unopened, unfinished = set(range(len(prefixes))), set(range(len(prefixes)))
        num_output_tokens = 0
        for index, delta in deltas:
            num_output_tokens += delta.num_tokens
            text, events = delta.text, []
            if index in unopened:
                unopened.remove(index)
                events += map(openai_answers.event, answer.opening_chunks(index))
                text = prefixes[index] + text
            if text or delta.tokens:
                events.append(answer.text_event(index, text, delta.tokens))
            finished = delta.finish_reason in _FINISHED
            if finished:
                unfinished.remove(index)
                events.append(openai_answers.event(answer.final_chunk(index, delta.finish_reason)))
                if self.options.include_usage and not unfinished:
                    usage = self._usage(requests, num_output_tokens)
                    events.append(openai_answers.event(answer.usage_chunk(usage)))
            if delta.text or finished:
                self._send_events(events, last=not unfinished)
            self._check_finish(delta.finish_reason)

    def _send_events(self, events, last):
        if last:
            events.append(openai_answers.DONE_EVENT)
        self.handler.stream(openai_answers.SSE_TYPE, b"".join(events), last)

    def _usage(self, requests, num_output_tokens):
        """A prompt counts once, however many choices it has."""
        firsts = requests[:: self.options.num_choices]
        return openai_answers.Usage(
            sum(len(request.prompt_token_ids) for request in firsts),
            num_output_tokens,
            sum(request.num_cached_tokens for request in firsts),
        )

    def _check_finish(self, reason):
        if reason is None or reason in _FINISHED:
            return
        if reason == "timeout":
            raise timed_out(self.timeout_s)
        raise StoppingError("the server is stopping")


def timed_out(timeout_s):
    """The error of a call that was not answered in time."""
    return TimedOutError(f"the answer was not complete within {timeout_s:g} s")


def _seeded(sampling, offset):
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + offset) % 2**64)
