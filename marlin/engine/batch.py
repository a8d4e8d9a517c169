"""A step's inputs: which tokens of which requests, written where the recorded programs read them.

Owns the input buffers and their paging. Knows no programs, no caches and no policy.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marlin.device import abi
from marlin.device.device import Device
from marlin.device.ops_state import StateRuns
from marlin.device.program import View
from marlin.engine.kv_cache import Paging
from marlin.engine.request import Chunk, Request
from marlin.engine.sampling import MAX_LOGIT_BIASES, PARAMETERS

SAMPLE_ROW = abi.PARAMS["SampleRow"]
PENALTY_ENTRY = abi.PARAMS["PenaltyEntry"]
_KERNEL_PARAMETERS = [row.name for row in PARAMETERS if row.in_row]


class BatchSizes(NamedTuple):
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
    num_masks: int
    num_sequences: int

    @property
    def vars(self) -> tuple[int, int, int, int, int, int]:
        """What a replay is given, in the order of the recorded step's variables."""
        sizes = self.num_tokens, self.num_tiles, self.num_samples, self.num_splits
        return *sizes, self.num_masks, self.num_sequences


class Batch:
    """The inputs of one step at a time.

    Args:
        max_step_tokens: tokens a step may compute, guesses included.
        max_sequences: chunks a step may have.
        max_samples: tokens that may be sampled.
        max_scores: prompt tokens that may be scored at once.

    Attributes:
        token_ids: int32 [max_step_tokens], as they were filled last.
        views: {name: View} of token_ids and positions, int32 [max_step_tokens]; tiles,
            int32 [any, 4] (first row, rows, sequence, position of the first row); logit_rows,
            int32 [max_samples]; sample_rows, SAMPLE_ROW [max_samples]; entry_starts,
            int32 [max_samples + 1]; entries, PENALTY_ENTRY [any]; masks,
            uint32 [max_samples, words]; mask_rows, int32 [max_samples]; score_rows,
            int32 [max_scores].
        state_runs: StateRuns of layers that have a state; None without any.
        places: {None, or the length of a window with blocks of its own: Views of slots,
            int32 [max_step_tokens], and tables, int32 [max_sequences, paging.table_stride]; and of
            beyond, int32 [max_step_tokens]}.
    """

    TILE_ROWS = abi.QUERY_TILE  # queries of a unit of attention

    def __init__(
        self,
        device: Device,
        paging: Paging,
        vocab_size: int,
        max_step_tokens: int,
        max_sequences: int,
        max_samples: int,
        max_scores: int,
    ):
        self.views: dict[str, View] = {}
        self._device = device
        self._block_size = paging.block_size
        max_tiles = max_step_tokens // self.TILE_ROWS + max_sequences
        self.token_ids = self._input("token_ids", np.int32, (max_step_tokens,))
        self._positions = self._input("positions", np.int32, (max_step_tokens,))
        self.places: dict[int | None, tuple[View, View, View]] = {}
        self._add_places(paging, max_step_tokens, max_sequences)
        self.state_runs = None
        if paging.num_states:
            self.state_runs = self._new_runs(max_step_tokens, max_sequences, paging.num_states)
        self._tiles = self._input("tiles", np.int32, (max_tiles, 4))
        self._logit_rows = self._input("logit_rows", np.int32, (max_samples,))
        self._sample_rows = self._input("sample_rows", SAMPLE_ROW, (max_samples,))
        self._entry_starts = self._input("entry_starts", np.int32, (max_samples + 1,))
        # Every token of every context and every bias, so that none is ever dropped; pages are
        # touched when used.
        max_entries = max_samples * min(
            vocab_size, paging.table_stride * paging.block_size + MAX_LOGIT_BIASES
        )
        self._entries = self._input("entries", PENALTY_ENTRY, (max_entries,))
        self._masks = self._input("masks", np.uint32, (max_samples, (vocab_size + 31) // 32))
        self._mask_rows = self._input("mask_rows", np.int32, (max_samples,))
        self._score_rows = self._input("score_rows", np.int32, (max_scores,))
        self._unknown_masks = []

    @property
    def where(self) -> tuple[dict[int | None, tuple[View, View, View]], StateRuns | None]:
        """Where a step's tokens and states lie, as KvCache takes them."""
        return self.places, self.state_runs

    def _add_places(self, paging, max_step_tokens, max_sequences):
        self._places = []
        self._beyond = self._input("beyond", np.int32, (max_step_tokens,))
        beyond = self.views.pop("beyond")
        for window in (None, *(length for length, _ in paging.windows)):
            slots = self._input("slots", np.int32, (max_step_tokens,))
            tables = self._input("tables", np.int32, (max_sequences, paging.table_stride))
            self._places.append((slots, tables))
            self.places[window] = self.views.pop("slots"), self.views.pop("tables"), beyond

    def _new_runs(self, max_runs, max_sequences, num_slots):
        self._runs = self._input("runs", np.int32, (max_runs, 4))
        self._run_starts = self._input("run_starts", np.int32, (max_sequences + 1,))
        return StateRuns(self.views.pop("runs"), self.views.pop("run_starts"), num_slots)

    def _input(self, name, dtype, shape):
        buffer = self._device.create(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.views[name] = View.of(buffer)
        return buffer.array(dtype, shape)

    def fill(self, chunks: list[Chunk]) -> BatchSizes:
        """Write a step's inputs; the device must not be reading the last step's any more."""
        num_tokens = num_tiles = num_samples = num_entries = num_drafts = num_masks = 0
        num_runs = 0
        self._unknown_masks = []
        last_position = 0
        for sequence, chunk in enumerate(chunks):
            token_ids = [*chunk.token_ids, *chunk.draft_token_ids]
            count, drafts = len(token_ids), chunk.draft_token_ids
            self._fill_tokens(num_tokens, chunk.start, token_ids)
            self._fill_places(sequence, num_tokens, chunk, count)
            if self.state_runs is not None:
                num_runs = self._fill_runs(sequence, num_tokens, num_runs, chunk.request.state_runs)
            num_tiles = self._fill_tiles(num_tiles, num_tokens, chunk.start, count, sequence)
            num_tokens += count
            num_drafts += len(drafts)
            last_position = max(last_position, chunk.start + count - 1)
            if chunk.wants_logits:
                rows = range(num_samples, num_samples + 1 + len(drafts))
                self._logit_rows[rows.start : rows.stop] = range(num_tokens - len(rows), num_tokens)
                num_entries = self._fill_sampling(rows, num_entries, chunk)
                num_masks = self._fill_masks(rows, num_masks, chunk)
                num_samples = rows.stop
        self._beyond[:num_tokens] = 0
        num_splits = last_position // abi.KV_SPLIT + 1
        sizes = num_tokens, num_tiles, num_samples, num_splits, num_drafts, num_masks
        return BatchSizes(*sizes, len(chunks))

    def count_beyond(self, chunks: Sequence[Chunk], num_accepted: Sequence[int]) -> list[int]:
        """Of each chunk, the tokens whose keys or values were beyond what the cache holds; guesses
        after the first num_accepted, which nothing will read, aside."""
        counts, at = [], 0
        for chunk, accepted in zip(chunks, num_accepted, strict=True):
            kept = chunk.num_tokens + accepted
            counts.append(int(self._beyond[at : at + kept].sum()))
            at += chunk.num_tokens + len(chunk.draft_token_ids)
        return counts

    def fill_scores(self, rows: Sequence[int]) -> None:
        """Write the rows whose logits are wanted for scores, after the step that computed them."""
        self._score_rows[: len(rows)] = rows

    def _fill_tokens(self, at, start, token_ids):
        """Write tokens at positions start, start + 1, ... to rows `at`, at + 1, ..."""
        count = len(token_ids)
        self.token_ids[at : at + count] = token_ids
        if count == 1:
            self._positions[at] = start
            return
        self._positions[at : at + count] = np.arange(start, start + count, dtype=np.int32)

    def _fill_places(self, sequence, at, chunk, count):
        """Write where rows `at`, at + 1, ... of a sequence lie in the cache."""
        block_size, start = self._block_size, chunk.start
        held = chunk.request.block_ids, *chunk.request.window_block_ids
        for (slots, tables), block_ids in zip(self._places, held, strict=True):
            table = np.asarray(block_ids, np.int32)
            tables[sequence, : len(table)] = table
            if count == 1:
                slots[at] = table[start // block_size] * block_size + start % block_size
                continue
            positions = self._positions[at : at + count]
            slots[at : at + count] = (
                table[positions // block_size] * block_size + positions % block_size
            )

    def _fill_runs(self, sequence, at, num_runs, runs):
        """Write the runs of a sequence whose first row is `at`; returns the runs so far."""
        assert runs, "a sequence whose states have no slots"
        end = num_runs + len(runs)
        self._runs[num_runs:end] = runs
        self._runs[num_runs:end, 0] += at
        self._run_starts[sequence : sequence + 2] = num_runs, end
        return end

    def _fill_tiles(self, num_tiles, at, start, count, sequence):
        """Cut a chunk into attention tiles; returns the tiles so far."""
        for offset in range(0, count, self.TILE_ROWS):
            rows = min(self.TILE_ROWS, count - offset)
            self._tiles[num_tiles] = (at + offset, rows, sequence, start + offset)
            num_tiles += 1
        return num_tiles

    def _fill_masks(self, rows, num_masks, chunk):
        """Fill the masks of a chunk's rows that are known; returns the masks so far."""
        guide = chunk.request.guide
        for num_drafts, row in enumerate(rows if guide else ()):
            asked = guide, chunk.draft_token_ids[:num_drafts], self._masks[num_masks]
            self._mask_rows[num_masks] = row
            if not guide.mask(*asked[1:], known=True):
                self._unknown_masks.append(asked)
            num_masks += 1
        return num_masks

    @property
    def lacks_masks(self) -> bool:
        """Whether there is more to do before the step may sample."""
        return bool(self._unknown_masks)

    def find_masks(self) -> None:
        """Fill the masks that were not known; a replay that reads none may be in flight."""
        for guide, draft, out in self._unknown_masks:
            guide.mask(draft, out)

    def _fill_sampling(self, rows, num_entries, chunk):
        """Fill a chunk's rows, a range; returns the penalty entries so far."""
        fill_sample_rows(self._sample_rows[rows.start : rows.stop], chunk.request)
        for num_drafts, row in enumerate(rows):
            entries = penalty_entries(chunk.request, chunk.draft_token_ids[:num_drafts])
            self._entry_starts[row] = num_entries
            self._entries[num_entries : num_entries + len(entries)] = entries
            num_entries += len(entries)
            self._entry_starts[row + 1] = num_entries
        return num_entries


def fill_sample_rows(rows: np.ndarray, request: Request) -> None:
    """Write the SampleRows of a request's next tokens.

    Args:
        rows: SAMPLE_ROW [count], for the next token, the one after it, ...
        request: a draw depends on its seed and on how many tokens there are before it.
    """
    row = rows[0]
    for name in _KERNEL_PARAMETERS:
        row[name] = getattr(request.params, name)
    row["seed_low"] = request.seed & 0xFFFFFFFF
    row["seed_high"] = request.seed >> 32 & 0xFFFFFFFF
    row["position"] = request.num_tokens
    if len(rows) > 1:
        rows[1:] = row
        rows["position"] += np.arange(len(rows), dtype=rows["position"].dtype)


def penalty_entries(request: Request, draft_token_ids: tuple[int, ...] = ()) -> np.ndarray:
    """The tokens whose logits the request's penalties and biases change, each token once.

    Args:
        draft_token_ids: tokens taken for output after the request's own.

    Returns:
        PENALTY_ENTRY [any]; empty when nothing is set. num_outputs counts a token's occurrences in
        the output; a token of the prompt alone has 0, and matters to the repetition penalty only;
        a token that is in neither has -1, and its bias alone.
    """
    seen = _seen_tokens(request, draft_token_ids)
    biases = dict(request.params.logit_bias)
    num_outputs = {**dict.fromkeys(biases, -1), **seen}  # the biased ones first, in their order
    entries = np.zeros(len(num_outputs), PENALTY_ENTRY)
    entries["token_id"], entries["num_outputs"] = list(num_outputs), list(num_outputs.values())
    entries["bias"][: len(biases)] = list(biases.values())
    return entries


def _seen_tokens(request, draft_token_ids):
    """{token id: occurrences in the output}, of those that the request's penalties look at."""
    params = request.params
    repeats = params.repetition_penalty != 1.0
    if not (params.frequency_penalty or params.presence_penalty or repeats):
        return {}
    outputs = Counter([*request.output_token_ids, *draft_token_ids])
    return {**dict.fromkeys(request.prompt_token_ids, 0), **outputs} if repeats else outputs
