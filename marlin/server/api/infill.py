"""llama-server's /infill, by which editors complete code: a gap between two texts is filled.

Owns the fields and answers of that API. No I/O and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from marlin.engine.sampling import PARAMETERS, parse_sampling
from marlin.engine.served_model import ServedModel
from marlin.engine.stream import ShownToken
from marlin.files.fields import type_name
from marlin.server.api.dialect import WHOLE_CONTEXT, Answer, Call, Choice, GapPrompt, Usage
from marlin.server.api.encoding import event
from marlin.server.api.fields import checked_text, refuse, request_fields
from marlin.server.api.names import PARAMETER, Names
from marlin.server.api.openai_answers import error_body, error_events, error_status
from marlin.server.api.openai_requests import parse_stop
from marlin.server.http.limits import Limits
from marlin.text.gaps import Gap

# Files of one request; editors send some ten pieces of a few dozen lines.
MAX_FILES = 256
# What bounds a request's time, chooses among samplers or fields of the answer, or looks at blanks:
# an editor's settings, without which its request is answered all the same.
_SKIPPED = ("t_max_prompt_ms", "t_max_predict_ms", "samplers", "response_fields", "n_indent")
_FILE = Names("field of a file", ("filename", "text"), {"time": int})
_NAMES = Names(
    PARAMETER,
    (
        *("model", "input_prefix", "input_suffix", "input_extra", "prompt", "n_predict"),
        *("stop", "stream", *(row.name for row in PARAMETERS if row.name != "max_tokens")),
    ),
    {
        **{"cache_prompt": bool, "id_slot": int, "return_progress": bool},
        # What came of it is in every answer.
        **{"timings_per_token": bool},
    },
    {"repeat_penalty": (1, 1.0, 0, 0.0), "n_probs": (0,), "grammar": ("",), "n_keep": (0, -1)},
    {"input_extra": _FILE},
)
_RANDOM_SEEDS = (-1, 2**32 - 1)


class InfillAnswer(Answer):
    """Bodies and events; a stream has no mark at its end, and its last event says `stop`."""

    def __init__(self, key: str, name: str):
        self.id = f"infill-{key}"
        self._name = name
        self._last: dict[str, Any] = {}

    def body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        choice = choices[0]
        ended = _ending(choice.finish_reason, choice.stop_string)
        return {"content": choice.text, **self._counts(usage), **ended}

    def opening(self, index: int, usage: Usage) -> bytes:
        return b""

    def text(self, index: int, text: str, tokens: Sequence[ShownToken]) -> bytes:
        return event({"index": 0, "content": text, "stop": False})

    def ending(self, index: int, finish_reason: str, stop_string: str | None) -> bytes:
        self._last = _ending(finish_reason, stop_string)
        return b""

    def closing(self, usage: Usage) -> bytes:
        return event({"content": "", **self._counts(usage), **self._last})

    def _counts(self, usage):
        return {
            "index": 0,
            "id_slot": 0,
            "model": self._name,
            "tokens_predicted": usage.num_output_tokens,
            "tokens_evaluated": usage.num_prompt_tokens,
            "tokens_cached": usage.num_cached_tokens,
            "truncated": False,
        }


def _ending(finish_reason, stop_string):
    kind = "limit" if finish_reason == "length" else "word" if stop_string else "eos"
    return {"stop": True, "stop_type": kind, "stopping_word": stop_string or ""}


@dataclass(frozen=True, slots=True)
class InfillCall(Call):
    """A request to /infill; its one prompt is a GapPrompt."""

    def answer(self, model: ServedModel, name: str, key: str, created: int) -> InfillAnswer:
        return InfillAnswer(key, name)


class Infill:
    """A Dialect; its errors are the OpenAI API's, as llama-server's are."""

    error_status = staticmethod(error_status)
    error_body = staticmethod(error_body)
    error_events = staticmethod(error_events)

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> InfillCall:
        """Dialect.parse."""
        skipped = tuple(name for name in _SKIPPED if body.get(name) is not None)
        body = {name: value for name, value in body.items() if name not in _SKIPPED}
        _NAMES.check(body, ignored)
        if body.get("seed") in _RANDOM_SEEDS:
            del body["seed"]
        fields = request_fields(body)
        model = body.get("model")
        if model is not None:  # clients of this API give no name
            checked_text(model, "model")
        texts = (
            fields.text("input_prefix"),
            fields.text("input_suffix"),
            fields.text("prompt", ""),
        )
        for name, text in zip(("input_prefix", "input_suffix", "prompt"), texts, strict=True):
            checked_text(text, name)
        gap = Gap(texts[0] + texts[2], texts[1], _files(fields))
        return InfillCall(
            model,
            [GapPrompt(gap, "input_prefix")],
            _sampling(fields, limits, max_tokens),
            stop=parse_stop(body, limits),
            stream=fields.flag("stream", False),
            num_choices=1,
            skipped=skipped,
        )


def _sampling(fields, limits, max_tokens):
    """n_predict: -1 is until the context, or what the server allows, is full; 0 computes the prompt
    alone, by which editors have it cached."""
    asked = fields.raw("n_predict")
    if asked == -1:
        max_tokens = limits.num_output_tokens or WHOLE_CONTEXT
    else:
        most = limits.num_output_tokens
        max_tokens = fields.count("n_predict", max_tokens, minimum=0, maximum=most)
    return parse_sampling(fields, max_tokens=max_tokens)


def _files(fields):
    files = fields.of_type(list, "input_extra", [])
    if len(files) > MAX_FILES:
        refuse("input_extra", f"may hold {MAX_FILES} files, got {len(files)}")
    return [_file(file, f"input_extra[{index}]") for index, file in enumerate(files)]


def _file(file, param):
    if type(file) is not dict:
        refuse(param, f"must be an object, got {type_name(file)}")
    given = request_fields(file, f"{param}.")
    name, text = given.text("filename", "tmp"), given.text("text")
    return checked_text(name, f"{param}.filename"), checked_text(text, f"{param}.text")


INFILL = Infill()
