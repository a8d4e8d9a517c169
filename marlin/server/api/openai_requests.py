"""The OpenAI API's requests: JSON to Calls (api/openai_answers.py is the way back).

No I/O, no clock, no model. Which names a request may hold is names.py's.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from marlin.engine.bounds import check_num_biases
from marlin.engine.interface import ModelTokenizer
from marlin.engine.request import Request
from marlin.engine.sampling import parse_sampling
from marlin.engine.served_model import ServedModel
from marlin.files.fields import shown, type_name
from marlin.server.api import names, openai_logprobs
from marlin.server.api.dialect import (
    WHOLE_CONTEXT,
    Call,
    ChatPrompt,
    Dialect,
    Echo,
    GapPrompt,
    Prompt,
)
from marlin.server.api.fields import checked_text, plain, refuse, request_fields, required
from marlin.server.api.openai_answers import (
    ChatAnswer,
    CompletionAnswer,
    Envelope,
    OpenAiAnswer,
    error_body,
    error_events,
    error_status,
    fingerprint,
)
from marlin.server.api.openai_echo import echo_of
from marlin.server.api.openai_messages import parse_messages
from marlin.server.api.openai_tools import parse_tools
from marlin.server.api.output_format import parse_output
from marlin.server.api.template_options import parse_conversation, parse_thought_tokens
from marlin.server.http.limits import Limits
from marlin.text.gaps import Gap

# One spelling for each id, so that no id can come twice; far more digits than any vocabulary.
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class OpenAiCall(Call):
    """A Call of either endpoint.

    Attributes:
        include_usage: end a stream with a chunk of token counts.
    """

    kind: ClassVar[type[OpenAiAnswer]]
    include_usage: bool

    def answer(self, model: ServedModel, name: str, key: str, created: int) -> OpenAiAnswer:
        envelope = Envelope(self.kind.id_prefix + key, created, name, fingerprint(model))
        shows_logprobs = self.sampling.num_logprobs is not None
        return self.kind(envelope, self.include_usage, model.tokenizer if shows_logprobs else None)


class ChatCall(OpenAiCall):
    """A request to /v1/chat/completions; its one prompt is a ChatPrompt."""

    __slots__ = ()
    kind = ChatAnswer


@dataclass(frozen=True, slots=True)
class CompletionCall(OpenAiCall):
    """A request to /v1/completions.

    Attributes:
        echo: texts begin with their prompt, as it was given.
    """

    kind = CompletionAnswer
    prompts: Sequence[Prompt | GapPrompt]
    echo: bool = False

    def beginning(
        self, prompt: ChatPrompt | Prompt | GapPrompt, request: Request, tokenizer: ModelTokenizer
    ) -> Echo:
        if not self.echo or isinstance(prompt, ChatPrompt):
            return Echo()
        return echo_of(prompt.content, self.sampling.score_prompt, request, tokenizer)


@dataclass(frozen=True, slots=True)
class OpenAi:
    """A Dialect, the OpenAI API's; parse is one of the two functions below."""

    parse: Callable[..., OpenAiCall]
    error_status = staticmethod(error_status)
    error_body = staticmethod(error_body)
    error_events = staticmethod(error_events)


def parse_chat(
    body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None = None
) -> ChatCall:
    """Dialect.parse of /v1/chat/completions."""
    names.CHAT.check(body, ignored)
    model = checked_text(required(body, "model"), "model")
    messages = parse_messages(required(body, "messages"))
    tools = parse_tools(body)
    prompt = ChatPrompt(parse_conversation(body, messages, tools))
    given = request_fields(body)
    most = limits.num_output_tokens
    names_of_it = ("max_tokens", "max_completion_tokens")
    older, newer = (given.count(name, None, maximum=most) for name in names_of_it)
    if None not in (older, newer) and older != newer:
        refuse("max_completion_tokens", f"is {newer} but max_tokens is {older}")
    if tools.offered:  # half a call is of no use: the default is the rest of the context
        max_tokens = limits.num_output_tokens or WHOLE_CONTEXT
    options = _parse_options(
        given, limits, newer or older or max_tokens, openai_logprobs.parse_chat(body)
    )
    return ChatCall(model, [prompt], **options)


def parse_completion(
    body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None = None
) -> CompletionCall:
    """Dialect.parse of /v1/completions."""
    names.COMPLETION.check(body, ignored)
    model = checked_text(required(body, "model"), "model")
    given = request_fields(body)
    prompts: Sequence[Prompt | GapPrompt] = _parse_prompts(required(body, "prompt"))
    suffix = checked_text(given.text("suffix", ""), "suffix")
    if suffix:
        prompts = [_gap(prompt, suffix) for prompt in prompts]
    echo = given.flag("echo", False)
    least, most = 0 if echo else 1, limits.num_output_tokens
    max_tokens = given.count("max_tokens", max_tokens, minimum=least, maximum=most)
    num_logprobs = openai_logprobs.parse_completion(body)
    scores = echo and num_logprobs is not None
    if scores and suffix:
        refuse("suffix", "is not supported together with echo and logprobs")
    options = _parse_options(given, limits, max_tokens, num_logprobs, scores)
    num_choices = len(prompts) * options["num_choices"]
    if num_choices > limits.num_call_choices:
        most = limits.num_call_choices
        refuse("prompt", f"and n ask for {num_choices} choices; a call may have {most}")
    return CompletionCall(model, prompts, **options, echo=echo)


def _parse_prompts(value):
    if type(value) is list:
        if not value:
            refuse("prompt", "must not be empty")
        if type(value[0]) in (str, list):
            params = (f"prompt[{index}]" for index in range(len(value)))
            return [_parse_prompt(*pair) for pair in zip(value, params, strict=False)]
    return [_parse_prompt(value, "prompt")]


def _gap(prompt, suffix):
    if not isinstance(prompt.content, str):
        refuse("suffix", f"needs text before it, and {prompt.param} has token ids")
    return GapPrompt(Gap(prompt.content, suffix), "suffix")


def _parse_prompt(value, param):
    if type(value) is list:
        if not value:
            refuse(param, "must not be empty")
        return Prompt(parse_token_ids(value, param), param)
    if type(value) is not str:
        got = type_name(value)
        refuse(param, f"must be a string or an array of token ids, got {got}")
    return Prompt(checked_text(value, param), param)


def parse_token_ids(value: list[Any], param: str) -> list[int]:
    """An array that may hold token ids alone, whatever the vocabulary."""
    for index, token_id in enumerate(value):
        if type(token_id) is not int or token_id < 0:
            refuse(f"{param}[{index}]", f"must be a token id, got {shown(token_id)}")
    return value


def _parse_options(given, limits, max_tokens, num_logprobs, score_prompt=False):
    """What both endpoints share, as arguments of an OpenAiCall."""
    stream = given.flag("stream", False)
    num_choices = given.count("n", 1, maximum=limits.num_choices)
    if given.count("best_of", num_choices) != num_choices:
        refuse("best_of", f"must equal n, which is {num_choices}, got {given.raw('best_of')}")
    sampling = parse_sampling(
        given,
        max_tokens=max_tokens,
        logit_bias=_parse_logit_bias(given.section("logit_bias")),
        num_logprobs=num_logprobs,
        score_prompt=score_prompt,
        constraint=parse_output(given.values),
        thought_tokens=parse_thought_tokens(given),
    )
    return {
        "sampling": sampling,
        "stop": parse_stop(given.values, limits),
        "stream": stream,
        "num_choices": num_choices,
        "skipped": (),
        "include_usage": _parse_stream_options(given.section("stream_options")),
    }


def _parse_logit_bias(given):
    if given is None:
        return ()
    check_num_biases(len(given.values))
    for name in given.values:
        if not _TOKEN_ID.fullmatch(name):
            refuse(f"logit_bias.{plain(name)}", "must be named by a token id in decimal digits")
    return tuple(
        (int(name), given.number(name, minimum=-100, maximum=100)) for name in given.values
    )


def parse_stop(body, limits, name="stop"):
    """The stop strings of a mapping that calls them so, as a tuple; RequestError as above."""
    value = body.get(name)
    if value is None:
        return ()
    if type(value) is str:
        return (_parse_stop_string(value, name, limits),)
    if type(value) is not list:
        refuse(name, f"must be a string or an array of strings, got {type_name(value)}")
    if len(value) > limits.num_stop_strings:
        refuse(name, f"may hold {limits.num_stop_strings} strings, got {len(value)}")
    return tuple(
        _parse_stop_string(item, f"{name}[{index}]", limits) for index, item in enumerate(value)
    )


def _parse_stop_string(value, param, limits):
    text = checked_text(value, param)
    if not text:
        refuse(param, "must not be an empty string")
    if len(text) > limits.stop_characters:
        refuse(param, f"may have {limits.stop_characters} characters, got {len(text)}")
    return text


def _parse_stream_options(options):
    return options is not None and options.flag("include_usage", False)


CHAT: Dialect = OpenAi(parse_chat)
COMPLETIONS: Dialect = OpenAi(parse_completion)
