"""Steps of an encoder, whose tokens see those behind them: whole texts, many at once.

The counterpart of runner.py without logits and samples. Keys and values lie in a cache for the
length of a step, which is how a layer's attention reads those of another row. Knows no queues.
"""

import logging
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from marlin.device.program import Recorder
from marlin.engine.batch import Batch
from marlin.engine.kv_cache import KvCache, Paging
from marlin.engine.runner import held_bytes
from marlin.models.layers import StepInputs, StepSizes

logger = logging.getLogger(__name__)

# Tokens of a step, or of the longest text where that is more: a step reads the weights once.
STEP_TOKENS = 512
# Texts in a step.
MAX_TEXTS = 64
_BLOCK_TOKENS = 16


class EncoderSizes(NamedTuple):
    """What an encoder's steps hold; the attributes that engine/load.py asks of any model.

    Attributes:
        paging: room for a step's texts, each of which begins a block.
    """

    context: int
    paging: Paging
    step_tokens: int
    max_sequences: int = MAX_TEXTS
    draft_tokens: int = 0
    max_logits: int = 0

    @classmethod
    def of(cls, context: int) -> "EncoderSizes":
        step_tokens = max(STEP_TOKENS, context)
        blocks = -(-step_tokens // _BLOCK_TOKENS) + MAX_TEXTS
        return cls(
            context, Paging(blocks, _BLOCK_TOKENS, -(-context // _BLOCK_TOKENS)), step_tokens
        )


class _EncoderBatch(Batch):
    """A batch whose queries all see the last token of their text: each is a tile of its own, at
    that token's position."""

    TILE_ROWS = 1

    def _fill_tiles(self, num_tiles, at, start, count, sequence):
        tiles = self._tiles[num_tiles : num_tiles + count]
        tiles[:, 0] = np.arange(at, at + count)
        tiles[:, 1:] = (1, sequence, start + count - 1)
        return num_tiles + count


class EncoderRunner:
    """Device state for steps of an encoder; arguments and attributes as Runner's."""

    generates = False
    max_draft_tokens = 0

    def __init__(self, device, model, paging, max_step_tokens, max_sequences, _max_drafts=0):
        self.device = device
        self.model = model
        self.paging = paging
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences
        self.logprobs, self.num_beyond = [], []
        # One sample's room, which no step uses.
        self._batch = _EncoderBatch(device, paging, 1, max_step_tokens, max_sequences, 1, 1)
        self._cache = KvCache(device, model.spec, paging, *self._batch.where)
        self._acts = model.allocate(device, StepSizes(max_step_tokens, 0, paging.max_splits))
        states = self._acts["normed"].buffer
        self._states = states.array(np.float32, (max_step_tokens, model.config.hidden_dim))
        self.gpu_memory_bytes = held_bytes(device)
        self._program = self._record()

    def _record(self):
        views = self._batch.views
        names = (row.name for row in fields(StepInputs) if row.name in views)
        inputs = StepInputs(**{name: views[name] for name in names}, caches=self._cache.layers)
        recorder = Recorder(self.device)
        self.model.record(recorder, inputs, self._acts, prefill=True)
        return recorder.finish()

    def step(self, chunks):
        """Compute whole texts and give their states to their poolers; returns an empty list.

        Raises:
            DeviceError: the replay failed.
        """
        sizes = self._batch.fill(chunks)
        self._program.run(*sizes.vars)
        self.num_beyond = self._batch.count_beyond(chunks, [0] * len(chunks))
        at = 0
        for chunk in chunks:
            chunk.request.pooler.add(chunk.start, self._states[at : at + chunk.num_tokens])
            at += chunk.num_tokens
        return []

    @property
    def kv_bytes(self):
        """Bytes of the KV cache."""
        return self._cache.num_bytes

    def close(self):
        """Destroy the program."""
        self._program.close()
