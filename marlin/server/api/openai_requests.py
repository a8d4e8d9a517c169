"""The OpenAI API's requests: JSON to dataclasses (api/openai_answers.py is the way back).

No I/O, no clock, no model. Every field of the API is in exactly one of three groups: honoured,
harmless here and accepted, or refused by name. A name in none of them is refused too, so that a
misspelt parameter never passes for one that was honoured.
"""

import re
from dataclasses import dataclass, replace

from marlin.engine.sampling import PARAMETERS, SamplingParams, parse_sampling
from marlin.files.fields import shown, type_name
from marlin.server.api import logprobs
from marlin.server.api.fields import checked_text, plain, refuse, request_fields, required

# "developer" is OpenAI's newer word for system; chat templates know only the older one.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# Harmless: their effect, if any, is on OpenAI's side. Name to JSON type.
_ACCEPTED = {
    "user": str,
    "metadata": dict,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "service_tier": str,
    "parallel_tool_calls": bool,
}

# Understood, but only this much of it is honoured. Name to the values that ask for nothing more.
_NOT_SUPPORTED = {
    "store": (False,),
}
_NOT_SUPPORTED_IN_CHAT = {
    **_NOT_SUPPORTED,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
_NOT_SUPPORTED_IN_COMPLETIONS = {
    **_NOT_SUPPORTED,
    "suffix": ("",),
}
_COMMON = (
    *("model", "stream", "stream_options", "stop", "n", "best_of", "logprobs", "logit_bias"),
    *(row.name for row in PARAMETERS),
)
_CHAT_FIELDS = frozenset(("messages", "max_completion_tokens", "top_logprobs", *_COMMON))
_COMPLETION_FIELDS = frozenset(("prompt", "echo", *_COMMON))
# What a message of an earlier answer carries when SDK users send it back whole.
_EMPTY_MESSAGE_FIELDS = ("refusal", "audio", "annotations", "function_call", "tool_calls")
_MESSAGE_TEXT_FIELDS = ("name", "reasoning_content")

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
        echo: a choice's text begins with its prompt.
    """

    sampling: SamplingParams
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    num_choices: int
    echo: bool = False


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
    messages = _parse_messages(required(body, "messages"))
    _refuse_unsupported(body, _NOT_SUPPORTED_IN_CHAT, _CHAT_FIELDS)
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
    _refuse_unsupported(body, _NOT_SUPPORTED_IN_COMPLETIONS, _COMPLETION_FIELDS)
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
    return CompletionRequest(model, prompts, replace(options, echo=echo))


def _parse_messages(value):
    if type(value) is not list:
        refuse("messages", f"must be an array, got {type_name(value)}")
    if not value:
        refuse("messages", "must not be empty")
    return [_parse_message(item, f"messages[{index}]") for index, item in enumerate(value)]


def _parse_message(value, param):
    if type(value) is not dict:
        refuse(param, f"must be an object, got {type_name(value)}")
    role = value.get("role")
    if type(role) is not str or role not in _ROLES:
        known = ", ".join(_ROLES)
        refuse(f"{param}.role", f"must be one of {known}; got {shown(role)}")
    message = {"role": _ROLES[role], "content": _parse_content(value, f"{param}.content")}
    for name, given in value.items():
        if name in ("role", "content") or given is None:
            continue
        if name in _MESSAGE_TEXT_FIELDS:
            message[name] = checked_text(given, f"{param}.{name}")
        elif name in _EMPTY_MESSAGE_FIELDS:
            if given != []:
                refuse(f"{param}.{name}", "is not supported by this server")
        else:
            refuse(f"{param}.{plain(name)}", "is not a known field of a message")
    return message


def _parse_content(message, param):
    content = message.get("content")
    if type(content) is not list:
        if "content" not in message:
            refuse(param, "is required")
        return checked_text(content, param)
    if not content:
        refuse(param, "must not be empty")
    texts = []
    for index, part in enumerate(content):
        where = f"{param}[{index}]"
        if type(part) is not dict:
            refuse(where, f"must be an object, got {type_name(part)}")
        if part.get("type") != "text":
            refuse(f"{where}.type", f'must be "text", got {shown(part.get("type"))}')
        texts.append(checked_text(part.get("text"), f"{where}.text"))
    return "\n".join(texts)


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
        logit_bias=_parse_logit_bias(body, limits),
        num_logprobs=num_logprobs,
    )
    return GenerationOptions(
        sampling=sampling,
        stop=parse_stop(body, limits),
        stream=stream,
        include_usage=_parse_stream_options(body, stream),
        num_choices=num_choices,
    )


def _parse_logit_bias(body, limits):
    given = request_fields(body).section("logit_bias")
    if given is None:
        return ()
    if len(given.values) > limits.num_logit_biases:
        refuse("logit_bias", f"may hold {limits.num_logit_biases} tokens, got {len(given.values)}")
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
    if not value:
        refuse("stop", "must not be empty; leave it out for no stop strings")
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


def _parse_stream_options(body, stream):
    options = request_fields(body).section("stream_options")
    if options is None:
        return False
    if not stream:
        refuse("stream_options", "is for streamed requests only; stream is not true")
    for name in options.values:
        if name not in ("include_usage", "include_obfuscation"):
            refuse(f"stream_options.{plain(name)}", "is not a known stream option")
    if options.flag("include_obfuscation", False):
        refuse("stream_options.include_obfuscation", "is not supported by this server, got true")
    return options.flag("include_usage", False)


def _refuse_unsupported(body, not_supported, honoured):
    for name, value in body.items():
        if name in honoured:
            continue
        if name in _ACCEPTED:
            request_fields(body).of_type(_ACCEPTED[name], name, None)
        elif name in not_supported:
            if value is not None and not any(
                type(value) is type(taken) and value == taken for taken in not_supported[name]
            ):
                refuse(name, f"is not supported by this server, got {shown(value)}")
        else:
            refuse(plain(name), "is not a known parameter of this endpoint")
