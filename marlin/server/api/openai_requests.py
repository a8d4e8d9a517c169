"""The OpenAI API's requests: JSON to dataclasses (api/openai_answers.py is the way back).

No I/O, no clock, no model. Which names a request may hold is names.py's.
"""

import re
from dataclasses import dataclass, replace

from marlin.engine.request import check_num_biases
from marlin.engine.sampling import SamplingParams, parse_sampling
from marlin.files.fields import shown, type_name
from marlin.server.api import logprobs, names
from marlin.server.api.fields import checked_text, plain, refuse, request_fields, required
from marlin.server.api.openai_messages import parse_messages

# One spelling for each id, so that no id can come twice; far more digits than any vocabulary.
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """What both endpoints share.

    Attributes:
        sampling: validated engine.sampling.SamplingParams.
        stop: strings that end the text, not part of it.
        stream: answer by server-sent events.
        include_usage: end the stream with a chunk of token counts.
        num_choices: for each prompt.
        echo: the prompts that their choices' texts begin with, as they were given; () for none.
    """

    sampling: SamplingParams
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    num_choices: int
    echo: tuple[str | list[int], ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """messages: dicts of role, content (str) and, where given, name and reasoning_content."""

    model: str
    messages: list[dict]
    options: GenerationOptions


@dataclass(frozen=True, slots=True)
class Prompt:
    """content: str, or a non-empty list of token ids (not yet checked against a vocabulary);
    param: what errors call it, `prompt` or `prompt[i]`."""

    content: str | list[int]
    param: str


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """prompts: at least one Prompt."""

    model: str
    prompts: list[Prompt]
    options: GenerationOptions


def parse_chat(body, limits, default_max_tokens):
    """Validate a /v1/chat/completions body.

    Args:
        body: dict from api/fields.py's parse_json.
        limits: http.limits.Limits.
        default_max_tokens: for a request that names none.

    Raises:
        RequestError: with `param` naming the field, e.g. `messages[2].content`.
    """
    model = checked_text(required(body, "model"), "model")
    messages = parse_messages(required(body, "messages"))
    names.CHAT.check(body)
    given = request_fields(body)
    max_tokens, newer = (
        given.count(name, None) for name in ("max_tokens", "max_completion_tokens")
    )
    if None not in (max_tokens, newer) and max_tokens != newer:
        refuse("max_completion_tokens", f"is {newer} but max_tokens is {max_tokens}")
    max_tokens = newer or max_tokens or default_max_tokens
    options = _parse_options(body, limits, max_tokens, logprobs.parse_chat(body))
    return ChatRequest(model, messages, options)


def parse_completion(body, limits, default_max_tokens):
    """Validate a /v1/completions body; arguments and errors as parse_chat's."""
    model = checked_text(required(body, "model"), "model")
    prompts = _parse_prompts(required(body, "prompt"))
    names.COMPLETION.check(body)
    given = request_fields(body)
    max_tokens = given.count("max_tokens", default_max_tokens)
    num_logprobs = logprobs.parse_completion(body)
    options = _parse_options(body, limits, max_tokens, num_logprobs)
    num_choices = len(prompts) * options.num_choices
    if num_choices > limits.num_call_choices:
        most = limits.num_call_choices
        refuse("prompt", f"and n ask for {num_choices} choices; a call may have {most}")
    echo = given.flag("echo", False)
    if echo and num_logprobs is not None:
        refuse("echo", "is not supported together with logprobs")
    if echo:
        options = replace(options, echo=tuple(prompt.content for prompt in prompts))
    return CompletionRequest(model, prompts, options)


def _parse_prompts(value):
    if type(value) is list:
        if not value:
            refuse("prompt", "must not be empty")
        if type(value[0]) in (str, list):
            params = (f"prompt[{index}]" for index in range(len(value)))
            return [_parse_prompt(*pair) for pair in zip(value, params, strict=False)]
    return [_parse_prompt(value, "prompt")]


def _parse_prompt(value, param):
    if type(value) is list:
        return Prompt(_parse_token_ids(value, param), param)
    if type(value) is not str:
        got = type_name(value)
        refuse(param, f"must be a string or an array of token ids, got {got}")
    return Prompt(checked_text(value, param), param)


def _parse_token_ids(value, param):
    if not value:
        refuse(param, "must not be empty")
    for index, token_id in enumerate(value):
        if type(token_id) is not int or token_id < 0:
            refuse(f"{param}[{index}]", f"must be a token id, got {shown(token_id)}")
    return value


def _parse_options(body, limits, max_tokens, num_logprobs):
    given = request_fields(body)
    stream = given.flag("stream", False)
    num_choices = given.count("n", 1, maximum=limits.num_choices)
    if given.count("best_of", num_choices) != num_choices:
        refuse("best_of", f"must equal n, which is {num_choices}, got {body['best_of']}")
    sampling = parse_sampling(
        given,
        max_tokens=max_tokens,
        logit_bias=_parse_logit_bias(body),
        num_logprobs=num_logprobs,
    )
    return GenerationOptions(
        sampling=sampling,
        stop=parse_stop(body, limits),
        stream=stream,
        include_usage=_parse_stream_options(body),
        num_choices=num_choices,
    )


def _parse_logit_bias(body):
    given = request_fields(body).section("logit_bias")
    if given is None:
        return ()
    check_num_biases(len(given.values))
    for name in given.values:
        if not _TOKEN_ID.fullmatch(name):
            refuse(f"logit_bias.{plain(name)}", "must be named by a token id in decimal digits")
    return tuple(
        (int(name), given.number(name, minimum=-100, maximum=100)) for name in given.values
    )


def parse_stop(body, limits):
    """The stop strings of a mapping with the API's names, as a tuple; RequestError as above."""
    value = body.get("stop")
    if value is None:
        return ()
    if type(value) is str:
        return (_parse_stop_string(value, "stop", limits),)
    if type(value) is not list:
        refuse("stop", f"must be a string or an array of strings, got {type_name(value)}")
    if len(value) > limits.num_stop_strings:
        refuse("stop", f"may hold {limits.num_stop_strings} strings, got {len(value)}")
    return tuple(
        _parse_stop_string(item, f"stop[{index}]", limits) for index, item in enumerate(value)
    )


def _parse_stop_string(value, param, limits):
    text = checked_text(value, param)
    if not text:
        refuse(param, "must not be an empty string")
    if len(text) > limits.stop_characters:
        refuse(param, f"may have {limits.stop_characters} characters, got {len(text)}")
    return text


def _parse_stream_options(body):
    options = request_fields(body).section("stream_options")
    if options is None:
        return False
    names.STREAM_OPTIONS.check(options.values, "stream_options.")
    return options.flag("include_usage", False)
