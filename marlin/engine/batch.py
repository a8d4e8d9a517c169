"""A step's inputs: which tokens of which requests, written where the recorded programs read them.

Owns the input buffers and their layout. Knows no programs, no caches and no policy.
"""

from dataclasses import dataclass

import numpy as np

from marlin.device import abi
from marlin.device.device import Device
from marlin.device.ops import KvLayout
from marlin.device.program import View
from marlin.engine import sampler
from marlin.engine.request import MAX_LOGIT_BIASES, Chunk


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """How much of a Batch a step uses.

    Attributes:
        num_splits: runs of abi.KV_SPLIT tokens that the longest context is read in.
        num_drafts: guesses among the num_tokens.
    """

    num_tokens: int
    num_tiles: int
    num_samples: int
    num_splits: int
    num_drafts: int

    @property
    def vars(self) -> tuple[int, int, int, int]:
        """What a replay is given, in the order of the recorded step's variables."""
        return self.num_tokens, self.num_tiles, self.num_samples, self.num_splits


class Batch:
    """The inputs of one step at a time.

    Args:
        max_step_tokens: tokens a step may compute, guesses included.
        max_sequences: chunks a step may have.
        max_samples: tokens that may be sampled.

    Attributes:
        views: {name: View} of token_ids, positions and slots, int32 [max_step_tokens]; tables,
            int32 [max_sequences, layout.table_stride]; tiles, int32 [any, 4] (first row, rows,
            sequence, position of the first row); logit_rows, int32 [max_samples]; sample_rows,
            SAMPLE_ROW [max_samples]; entry_starts, int32 [max_samples + 1]; entries,
            PENALTY_ENTRY [any].
    """

    def __init__(
        self,
        device: Device,
        layout: KvLayout,
        vocab_size: int,
        max_step_tokens: int,
        max_sequences: int,
        max_samples: int,
    ):
        self.views: dict[str, View] = {}
        self._device = device
        self._block_size = layout.block_size
        max_tiles = max_step_tokens // abi.QUERY_TILE + max_sequences
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
            vocab_size, layout.table_stride * layout.block_size + MAX_LOGIT_BIASES
        )
        self._entries = self._input("entries", sampler.PENALTY_ENTRY, (max_entries,))

    def _input(self, name, dtype, shape):
        buffer = self._device.create(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.views[name] = View.of(buffer)
        return buffer.array(dtype, shape)

    def fill(self, chunks: list[Chunk]) -> BatchSizes:
        """Write a step's inputs; the device must not be reading the last step's any more."""
        num_tokens = num_tiles = num_samples = num_entries = num_drafts = 0
        last_position = 0
        for sequence, chunk in enumerate(chunks):
            token_ids = [*chunk.token_ids, *chunk.draft_token_ids]
            count, drafts = len(token_ids), chunk.draft_token_ids
            table = np.asarray(chunk.request.block_ids, np.int32)
            self._tables[sequence, : len(table)] = table
            self._fill_tokens(num_tokens, chunk.start, token_ids, table)
            num_tiles = self._fill_tiles(num_tiles, num_tokens, chunk.start, count, sequence)
            num_tokens += count
            num_drafts += len(drafts)
            last_position = max(last_position, chunk.start + count - 1)
            if chunk.is_last:
                rows = range(num_samples, num_samples + 1 + len(drafts))
                self._logit_rows[rows.start : rows.stop] = range(num_tokens - len(rows), num_tokens)
                num_entries = self._fill_sampling(rows, num_entries, chunk)
                num_samples = rows.stop
        num_splits = last_position // abi.KV_SPLIT + 1
        return BatchSizes(num_tokens, num_tiles, num_samples, num_splits, num_drafts)

    def _fill_tokens(self, at, start, token_ids, table):
        """Write tokens at positions start, start + 1, ... to rows `at`, at + 1, ..."""
        block_size, count = self._block_size, len(token_ids)
        self._token_ids[at : at + count] = token_ids
        if count == 1:
            self._positions[at] = start
            self._slots[at] = table[start // block_size] * block_size + start % block_size
            return
        positions = np.arange(start, start + count, dtype=np.int32)
        self._positions[at : at + count] = positions
        self._slots[at : at + count] = (
            table[positions // block_size] * block_size + positions % block_size
        )

    def _fill_tiles(self, num_tiles, at, start, count, sequence):
        """Cut a chunk into attention tiles; returns the tiles so far."""
        for offset in range(0, count, abi.QUERY_TILE):
            rows = min(abi.QUERY_TILE, count - offset)
            self._tiles[num_tiles] = (at + offset, rows, sequence, start + offset)
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
