"""One step on the device: replays the program over a batch, hands back sampled tokens.

Owns the KV cache, the activations and the recorded programs. Knows no queues and no policy: which
tokens of which requests are in a step is decided above, and batch.py writes them down.
"""

from dataclasses import fields
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from marlin.device import ops
from marlin.device.device import Device
from marlin.device.program import Program, Recorder, View
from marlin.engine.batch import Batch
from marlin.engine.draft import accept
from marlin.engine.kv_cache import KvCache
from marlin.engine.logprobs import Distribution
from marlin.models.layers import StepInputs, StepSizes
from marlin.models.model import SCORED_ROWS

# What the sampling kernel gives instead of a token for logits of which none is a number.
NO_TOKEN = -1
NOT_NUMBERS = "the model's logits are not numbers: its weights may be damaged"


class _Step(NamedTuple):
    """A recorded step; its first num_forward dispatches end with the logits."""

    program: Program
    num_forward: int


class Runner:
    """Device state for steps of one model.

    Args:
        device, model: an opened Device and its loaded Model.
        paging: Paging of the cache to create.
        max_step_tokens: tokens a step may compute.
        max_sequences: sequences a step may hold.
        max_draft_tokens: guesses a step may compute, among its tokens; 0 is no speculation.

    Attributes:
        generates: requests may go on, and not only be pooled.
        gpu_memory_bytes: what weights, cache and activations hold on a GPU; 0 on a CPU.
        num_beyond: of each chunk of the last step, the tokens whose keys or values were beyond
            what the cache holds.
        logprobs: of the last step's samples: for each list of tokens that it gave a list of their
            TokenLogprobs, empty where not asked for, none for NO_TOKEN.
    """

    generates = True

    def __init__(self, device, model, paging, max_step_tokens, max_sequences, max_draft_tokens=0):
        self.device = device
        self.model = model
        self.paging = paging
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences
        self.max_draft_tokens = max_draft_tokens
        max_samples = max_sequences + max_draft_tokens
        config = model.config
        self._batch = Batch(
            *(device, paging, config.vocab_size, max_step_tokens, max_sequences, max_samples),
            SCORED_ROWS,
        )
        self._cache = KvCache(device, model.spec, paging, *self._batch.where)
        sampled = device.create(max_samples * np.dtype(np.int32).itemsize)
        self._sampled_view = View.of(sampled)
        self._sampled = sampled.array(np.int32, (max_samples,))
        self._acts = model.allocate(
            device, StepSizes(max_step_tokens, max_samples, paging.max_splits)
        )
        logits = self._acts["logits"].buffer
        self.logits = logits.array(np.float32, (max_samples, config.vocab_size))
        hidden = self._acts["normed"].buffer
        self._hidden = hidden.array(np.float32, (max_step_tokens, config.hidden_dim))
        self.logprobs, self.num_beyond = [], []
        self.gpu_memory_bytes = held_bytes(device)
        self._prefill = self._record(prefill=True)
        self._decode = self._record(prefill=False)
        self._scores = self._acts["scores"].buffer.array(
            np.float32, (SCORED_ROWS, config.vocab_size)
        )
        self._scoring = self._record_scoring()

    def _record(self, prefill):
        vocab_size, views = self.model.config.vocab_size, self._batch.views
        names = (row.name for row in fields(StepInputs) if row.name in views)
        inputs = StepInputs(**{name: views[name] for name in names}, caches=self._cache.layers)
        recorder = Recorder(self.device)
        self.model.record(recorder, inputs, self._acts, prefill)
        num_forward = len(recorder)
        logits, rows = self._acts["logits"], views["sample_rows"]
        ops.mask_logits(recorder, logits, views["masks"], views["mask_rows"], vocab_size)
        ops.penalize(recorder, logits, views["entries"], views["entry_starts"], rows, vocab_size)
        ops.sample(recorder, logits, rows, self._sampled_view, vocab_size)
        return _Step(recorder.finish(), num_forward)

    def _record_scoring(self):
        recorder = Recorder(self.device)
        self.model.record_scores(recorder, self._batch.views["score_rows"], self._acts)
        return recorder.finish()

    def step(self, chunks):
        """Compute the chunks' tokens and sample where asked.

        Args:
            chunks: list of Chunk, at most max_sequences, together at most max_step_tokens tokens.

        Returns:
            list of list of int: for each chunk that wants logits, in order, its draft tokens that
            were right and one token more, NO_TOKEN when its logits are not numbers.

        Raises:
            DeviceError: the replay failed.
        """
        sizes = self._batch.fill(chunks)
        self.model.look_up(self._batch.token_ids[: sizes.num_tokens], self._acts)
        # Guesses are rows like a decode's: the program that is right for one is right for them.
        is_decode = sizes.num_tokens - sizes.num_drafts == len(chunks)
        step = self._decode if is_decode else self._prefill
        sampled = self._replay(step, sizes.vars, [chunk for chunk in chunks if chunk.wants_logits])
        lists = iter(sampled)
        accepted = [len(next(lists)) - 1 if chunk.wants_logits else 0 for chunk in chunks]
        self.num_beyond = self._batch.count_beyond(chunks, accepted)
        self._pool(chunks)
        self._score(chunks)
        return sampled

    def _pool(self, chunks):
        """Give the chunks' last hidden states to whoever takes them."""
        at = 0
        for chunk in chunks:
            count = chunk.num_tokens + len(chunk.draft_token_ids)
            if (pooler := chunk.request.pooler) is not None:
                pooler.add(chunk.start, self._hidden[at : at + count])
            at += count

    def _score(self, chunks):
        """Add to the prompt_logprobs of requests that ask for them; up to the first that is not a
        number."""
        wanted, first_row = [], 0
        for chunk in chunks:
            if chunk.request.params.score_prompt:
                wanted += _to_score(chunk, first_row)
            first_row += chunk.num_tokens + len(chunk.draft_token_ids)
        for start in range(0, len(wanted), SCORED_ROWS):
            group = wanted[start : start + SCORED_ROWS]
            self._batch.fill_scores([row for row, _, _ in group])
            self._scoring.run(
                *(len(group) if var == ops.VAR_LOGITS else 0 for var in range(ops.NUM_VARS))
            )
            for logits, (_, request, token_id) in zip(self._scores, group, strict=False):
                if not request.is_score_broken:
                    scored = Distribution(logits, request.params.num_logprobs).of(token_id)
                    request.prompt_logprobs.append(scored)

    def _replay(self, step, sizes, chunks):
        """Run a step and sample each chunk's tokens."""
        starts = [0, *accumulate(1 + len(chunk.draft_token_ids) for chunk in chunks)]
        wanted = [chunk.request.params.num_logprobs for chunk in chunks]
        logits = {}
        if self._batch.lacks_masks or any(num_top is not None for num_top in wanted):
            step.program.submit(*sizes, count=step.num_forward)
            self._batch.find_masks()
            step.program.wait()
            logits = {
                row: self.logits[row].copy()
                for first, end, num_top in zip(starts, starts[1:], wanted, strict=False)
                if num_top is not None
                for row in range(first, end)
            }
            step.program.run(*sizes, first=step.num_forward)
        else:
            step.program.run(*sizes)
        for first, chunk in zip(starts, chunks, strict=False):
            if chunk.request.pooler is not None:
                chunk.request.pooler.take_logits(self.logits[first])
        sampled = self._sampled[: starts[-1]].tolist()
        accepted = [
            accept(chunk.draft_token_ids, sampled[first:end])
            for chunk, first, end in zip(chunks, starts, starts[1:], strict=False)
        ]
        self.logprobs = [
            [
                Distribution(logits[first + i], num_top).of(token_id)
                for i, token_id in enumerate(token_ids)
                if num_top is not None and token_id != NO_TOKEN
            ]
            for first, num_top, token_ids in zip(starts, wanted, accepted, strict=False)
        ]
        return accepted

    @property
    def kv_bytes(self):
        """Bytes of the KV cache."""
        return self._cache.num_bytes

    @property
    def programs(self):
        """The recorded Programs of a prefill step and of a decode step."""
        return self._prefill.program, self._decode.program

    def close(self):
        """Destroy the programs."""
        self._prefill.program.close()
        self._decode.program.close()
        self._scoring.close()


def _to_score(chunk, first_row):
    """(row of the step, request, token that follows it) for each token of a prompt that a chunk's
    tokens predict, and that has no score yet."""
    request = chunk.request
    prompt = request.prompt_token_ids
    begin = max(chunk.start, len(request.prompt_logprobs))
    end = min(chunk.start + chunk.num_tokens, len(prompt) - 1)
    return [(first_row + at - chunk.start, request, prompt[at + 1]) for at in range(begin, end)]


def held_bytes(device: Device) -> int:
    """What weights, cache and activations hold on a GPU; 0 on a CPU."""
    info = device.info()
    return 0 if device.kind == "cpu" else info["allocated_bytes"] + info["mapped_bytes"]
