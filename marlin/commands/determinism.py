"""`metal-marlin selftest --determinism MODEL`: the same seeds give the same answers, whatever goes
on beside them.

The same requests are run one at a time, again from what is cached, in company, over so few blocks
that some are put back and computed anew, and with guesses; tokens and log-probabilities must be
equal to the last bit, and each of these must have happened. Knows no kernel and no HTTP.
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from marlin.engine.load import Batching, load_model
from marlin.engine.request import Request, TokenEvent
from marlin.engine.sampling import SamplingParams
from marlin.engine.served_model import ServedModel
from marlin.errors import ConfigError

# Prompts that repeat themselves, so that there is something to guess, and share no first block.
_TEXT = "{0} fish swim in the sea, and {0} fish swim in the lake. {0} fish swim in the"
_COUNTS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")
OUTPUT_TOKENS, BLOCK_SIZE = 40, 16
# Every other request takes the likeliest token: guesses are right more often.
_PARAMS = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True, num_logprobs=2)
_PATIENCE_S = 600.0  # for one token


@dataclass(frozen=True, slots=True)
class Row:
    """One way of running them.

    Attributes:
        name: what the table calls it.
        same: answers equal to those computed alone, of `requests`.
        seen: how often what it is named after has happened; None where nothing has to.
    """

    name: str
    same: int
    requests: int
    seen: int | None

    @property
    def passed(self) -> bool:
        return self.same == self.requests and self.seen != 0


def check(path: str, device: str | None, load: Callable[..., ServedModel] = load_model) -> list:
    """The Rows for a model.

    Raises:
        NotServedError: it generates nothing.
        ConfigError: its context is too short.
        MarlinError: what loading, or a request, raises.
    """
    many = Batching(64 * len(_COUNTS), BLOCK_SIZE, len(_COUNTS))
    rows, alone = [], None
    for batching, guesses, kinds in (
        (None, None, (("alone", None, 1), ("cached", "num_cached_tokens", 1))),
        (None, "ngram", (("speculated", "num_draft_tokens", 1),)),
        (many, None, (("batched", None, 0), ("batched, cached", "num_cached_tokens", 0))),
        ("few", None, (("preempted", "num_preemptions", 0),)),
        ("few", "ngram", (("preempted, speculated", "num_preemptions", 0),)),
    ):
        with closing(_loaded(load, path, device, batching, guesses, alone)) as model:
            prompts = _prompts(model)
            for name, what, at_once in kinds:
                done = _run(model, prompts, at_once or len(prompts), repeat=what)
                answers = [answer for _, answer in done]
                alone = alone or answers
                same = sum(map(list.__eq__, answers, alone))
                seen = None if what is None else sum(getattr(r, what) for r, _ in done)
                rows.append(Row(name, same, len(answers), seen))
    return rows


def _loaded(load, path, device, batching, guesses, alone):
    if batching == "few":
        # Each alone has room; all together have half of what they need.
        longest = max(len(answer[0]) for answer in alone) + OUTPUT_TOKENS
        blocks = -(-longest // BLOCK_SIZE)
        batching = Batching(blocks * len(_COUNTS) // 2 + 1, BLOCK_SIZE, len(_COUNTS))
    return load(path, device_kind=device, batching=batching, speculative=guesses)


def _prompts(model):
    model.check_generates()
    prompts = [model.tokenizer.encode(_TEXT.format(count)) for count in _COUNTS]
    longest = max(map(len, prompts)) + OUTPUT_TOKENS
    if model.engine.max_context_tokens < longest:
        raise ConfigError(
            f"--determinism needs a context of {longest} tokens, and the model has "
            f"{model.engine.max_context_tokens}"
        )
    return prompts


def _run(model, prompts, num_at_once, repeat) -> list[tuple[Request, list]]:
    """Finished requests and their answers; each twice in a row where it is to be found again."""
    done: list[tuple[Request, list]] = []
    for begin in range(0, len(prompts), num_at_once):
        for _ in range(2 if repeat == "num_cached_tokens" else 1):
            requests = [
                _submit(model, prompts, index)
                for index in range(begin, min(begin + num_at_once, len(prompts)))
            ]
            answers = [_answer(request) for request in requests]
        done += zip(requests, answers, strict=True)
    return done


def _submit(model, prompts, index):
    params = replace(_PARAMS, seed=index, temperature=0.0 if index % 2 else 0.8)
    return model.engine.submit(prompts[index], params, f"determinism-{index}")


def _answer(request):
    """What has to be equal: its prompt, its tokens and what the model held of them."""
    logprobs: list = []
    while isinstance(event := request.events.get(timeout=_PATIENCE_S), TokenEvent):
        logprobs += event.logprobs
    if event.error is not None:
        raise event.error
    return [request.prompt_token_ids, request.output_token_ids, logprobs]


def report(rows: list[Row], as_json: bool) -> str:
    """The table."""
    if as_json:
        kept: list[dict[str, Any]] = [
            {"run": row.name, "same": row.same, "requests": row.requests}
            | {"seen": row.seen, "passed": row.passed}
            for row in rows
        ]
        return json.dumps({"runs": kept, "passed": all(row.passed for row in rows)}, indent=1)
    lines = [f"{'run':24}{'equal':>8}{'seen':>8}"]
    for row in rows:
        seen = "" if row.seen is None else row.seen
        word = "ok" if row.passed else "FAILED" if row.same < row.requests else "NOT SHOWN"
        lines.append(f"{row.name:24}{row.same:>4} / {row.requests}{seen:>8}  {word}")
    return "\n".join(lines)
