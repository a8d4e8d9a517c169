"""One step on the device: fills the step's inputs, replays the program, hands back sampled tokens.

Owns the KV cache, the activations and the recorded programs. Knows no queues and no policy: which
tokens of which requests are in a step is decided above.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from marlin.device import abi, ops
from marlin.device.program import Program, Recorder, View
from marlin.engine import sampler
from marlin.engine.draft import accept
from marlin.engine.logprobs import Distribution
from marlin.engine.request import MAX_LOGIT_BIASES
from marlin.models.llama import StepInputs

# What the sampling kernel gives instead of a token for logits of which none is a number.
NO_TOKEN = -1
NOT_NUMBERS = "the model's logits are not numbers: its weights may be damaged"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's part of a step.

    Attributes:
        token_ids: the tokens to compute, at positions start, start + 1, ...
        start: tokens of this sequence that the KV cache already holds.
        block_table: int32 [any], KV block ids in logical order.
        request: whose next token to sample after the chunk's last token, or None to sample none.
        draft_token_ids: guesses of what comes after token_ids, to compute as well; the request's
            tokens are sampled as far as they are right, and one after that.
    """

    token_ids: list[int]
    start: int
    block_table: np.ndarray
    request: object = None
    draft_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Step:
    """A recorded step; its first num_forward dispatches end with the logits."""

    program: Program
    num_forward: int


class Runner:
    """Device state for steps of one model.

    Args:
        device, model: an opened Device and its loaded LlamaModel.
        layout: ops.KvLayout of the cache to create.
        max_step_tokens: tokens a step may compute.
        max_sequences: sequences a step may hold.
        max_draft_tokens: guesses a step may compute, among its tokens; 0 is no speculation.

    Attributes:
        gpu_memory_bytes: what weights, cache and activations hold on a GPU; 0 on a CPU.
        logprobs: of the last step's samples: for each list of tokens that it gave a list of their
            TokenLogprobs, empty where not asked for, none for NO_TOKEN.
    """

    def __init__(self, device, model, layout, max_step_tokens, max_sequences, max_draft_tokens=0):
        self.device = device
        self.model = model
        self.layout = layout
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences
        self.max_draft_tokens = max_draft_tokens
        max_samples = max_sequences + max_draft_tokens
        config = model.config
        self._caches = [device.create(layout.layer_bytes) for _ in range(2 * config.num_layers)]
        max_tiles = max_step_tokens // abi.QUERY_TILE + max_sequences
        self._views = {}
        self._token_ids = self._input("token_ids", np.int32, (max_step_tokens,))
        self._positions = self._input("positions", np.int32, (max_step_tokens,))
        self._slots = self._input("slots", np.int32, (max_step_tokens,))
        self._tables = self._input("tables", np.int32, (max_sequences, layout.table_stride))
        self._tiles = self._input("tiles", np.int32, (max_tiles, 4))
        self._logit_rows = self._input("logit_rows", np.int32, (max_samples,))
        self._sample_rows = self._input("sample_rows", sampler.SAMPLE_ROW, (max_samples,))
        self._entry_starts = self._input("entry_starts", np.int32, (max_samples + 1,))
        # Every token of every context and every bias, so that none is ever dropped; pages are
        # touched when used.
        max_entries = max_samples * min(
            config.vocab_size, layout.table_stride * layout.block_size + MAX_LOGIT_BIASES
        )
        self._entries = self._input("entries", sampler.PENALTY_ENTRY, (max_entries,))
        self._sampled = self._input("sampled", np.int32, (max_samples,))
        self._acts = model.allocate(device, max_step_tokens, max_samples, layout)
        self.logits = self._acts.logits.buffer.array(np.float32, (max_samples, config.vocab_size))
        self.logprobs = []
        self.gpu_memory_bytes = 0 if device.kind == "cpu" else _held_bytes(device)
        self._prefill = self._record(prefill=True)
        self._decode = self._record(prefill=False)

    def _input(self, name, dtype, shape):
        buffer = self.device.create(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._views[name] = View.of(buffer)
        return buffer.array(dtype, shape)

    def _record(self, prefill):
        config, views = self.model.config, self._views
        inputs = StepInputs(
            token_ids=views["token_ids"],
            positions=views["positions"],
            slots=views["slots"],
            attention=ops.AttentionInputs(
                views["tables"],
                views["tiles"],
                self.layout,
                config.num_heads,
                config.sliding_window,
            ),
            k_caches=[View.of(buffer) for buffer in self._caches[0::2]],
            v_caches=[View.of(buffer) for buffer in self._caches[1::2]],
            logit_rows=views["logit_rows"],
        )
        recorder = Recorder(self.device)
        self.model.record(recorder, inputs, self._acts, prefill)
        num_forward = len(recorder)
        logits, vocab_size = self._acts.logits, config.vocab_size
        ops.penalize(
            recorder,
            logits,
            views["entries"],
            views["entry_starts"],
            views["sample_rows"],
            vocab_size,
        )
        ops.sample(recorder, logits, views["sample_rows"], views["sampled"], vocab_size)
        return _Step(recorder.finish(), num_forward)

    def step(self, chunks):
        """Compute the chunks' tokens and sample where asked.

        Args:
            chunks: list of Chunk, at most max_sequences, together at most max_step_tokens tokens.

        Returns:
            list of list of int: for each chunk that has a request, in order, its draft tokens that
            were right and one token more, which is NO_TOKEN when its logits are not numbers.

        Raises:
            DeviceError: the replay failed.
        """
        num_tokens = num_tiles = num_samples = num_entries = num_drafts = 0
        last_position = 0
        for sequence, chunk in enumerate(chunks):
            token_ids = [*chunk.token_ids, *chunk.draft_token_ids]
            count = len(token_ids)
            self._fill_tokens(num_tokens, chunk, token_ids)
            num_tiles = self._fill_tiles(num_tiles, num_tokens, chunk, count, sequence)
            self._tables[sequence, : len(chunk.block_table)] = chunk.block_table
            num_tokens += count
            num_drafts += len(chunk.draft_token_ids)
            last_position = max(last_position, chunk.start + count - 1)
            if chunk.request is not None:
                rows = range(num_samples, num_samples + 1 + len(chunk.draft_token_ids))
                self._logit_rows[rows.start : rows.stop] = range(num_tokens - len(rows), num_tokens)
                num_entries = self._fill_sampling(rows, num_entries, chunk)
                num_samples = rows.stop
        # Guesses are rows like a decode's: the program that is right for one is right for them.
        step = self._decode if num_tokens - num_drafts == len(chunks) else self._prefill
        sizes = (num_tokens, num_tiles, num_samples, last_position // abi.KV_SPLIT + 1)
        return self._replay(step, sizes, [chunk for chunk in chunks if chunk.request])

    def _replay(self, step, sizes, chunks):
        """Run a step and sample each chunk's tokens."""
        starts = [0, *accumulate(1 + len(chunk.draft_token_ids) for chunk in chunks)]
        wanted = [chunk.request.params.num_logprobs for chunk in chunks]
        logits = {}
        if any(num_top is not None for num_top in wanted):
            step.program.run(*sizes, count=step.num_forward)
            logits = {
                row: self.logits[row].copy()
                for first, end, num_top in zip(starts, starts[1:], wanted, strict=False)
                if num_top is not None
                for row in range(first, end)
            }
            step.program.run(*sizes, first=step.num_forward)
        else:
            step.program.run(*sizes)
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

    def _fill_tokens(self, at, chunk, token_ids):
        block_size, count = self.layout.block_size, len(token_ids)
        self._token_ids[at : at + count] = token_ids
        if count == 1:
            self._positions[at] = chunk.start
            block = chunk.block_table[chunk.start // block_size]
            self._slots[at] = block * block_size + chunk.start % block_size
            return
        positions = np.arange(chunk.start, chunk.start + count, dtype=np.int32)
        self._positions[at : at + count] = positions
        blocks = chunk.block_table[positions // block_size]
        self._slots[at : at + count] = blocks * block_size + positions % block_size

    def _fill_tiles(self, num_tiles, at, chunk, count, sequence):
        """Cut a chunk into attention tiles; returns the tiles so far."""
        for offset in range(0, count, abi.QUERY_TILE):
            rows = min(abi.QUERY_TILE, count - offset)
            self._tiles[num_tiles] = (at + offset, rows, sequence, chunk.start + offset)
            num_tiles += 1
        return num_tiles

    def _fill_sampling(self, rows, num_entries, chunk):
        """Fill a chunk's rows, a range; returns the penalty entries so far."""
        sampler.fill_sample_rows(self._sample_rows[rows.start : rows.stop], chunk.request)
        for num_drafts, row in enumerate(rows):
            entries = sampler.penalty_entries(chunk.request, chunk.draft_token_ids[:num_drafts])
            self._entry_starts[row] = num_entries
            self._entries[num_entries : num_entries + len(entries)] = entries
            num_entries += len(entries)
            self._entry_starts[row + 1] = num_entries
        return num_entries

    @property
    def kv_bytes(self):
        """Bytes of the KV cache."""
        return self.layout.layer_bytes * len(self._caches)

    def close(self):
        """Destroy the programs."""
        self._prefill.program.close()
        self._decode.program.close()


def _held_bytes(device):
    info = device.info()
    return info["allocated_bytes"] + info["mapped_bytes"]
