"""Attention inputs: sequences scattered over a dirty KV cache, and what the oracle says of them."""

from dataclasses import dataclass, field, replace

import numpy as np
import reference

from marlin.device import abi, ops

# Stale memory must not be seen; were it seen, values of this size would show in any output.
STALE = 3e4


@dataclass(frozen=True)
class KvCase:
    """One step's attention.

    Attributes:
        sequences: (context_len, num_queries) of each; the queries are its last positions.
        q: float32 [rows, num_heads, head_dim], sequence after sequence.
        k_cache, v_cache: float16 or float32, as the kernels' heads say.
        tables: int32 [num_sequences, table_stride]; -1 where no position may be looked up.
        tiles: int32 [num_tiles, 4]: first row, rows, sequence, position of the first row.
        scores: softcap, position_scale, scale_tokens and sinks (float32 [num_heads]) of
            ops.AttentionInputs, where they are set.
        value_dim: of a cache whose keys hold the values; v_cache is not read then.
    """

    sequences: list
    q: np.ndarray
    k_cache: np.ndarray
    v_cache: np.ndarray
    tables: np.ndarray
    tiles: np.ndarray
    window: int
    scale: float
    scores: dict = field(default_factory=dict)
    value_dim: int = 0

    @property
    def layout(self):
        num_blocks, num_kv_heads, block_size, head_dim = self.v_cache.shape
        sizes = num_blocks, block_size, self.tables.shape[1], num_kv_heads, head_dim
        return ops.KvLayout(*sizes, self.v_cache.dtype.name, self.value_dim)

    @property
    def num_splits(self):
        """KV splits of the longest context."""
        return -(-max(length for length, _ in self.sequences) // abi.KV_SPLIT)

    def rows_of(self, index):
        """Rows of one sequence, as a slice of the token axis."""
        first = sum(num_queries for _, num_queries in self.sequences[:index])
        return slice(first, first + self.sequences[index][1])

    def expected(self):
        """reference.Expected of all rows."""
        parts = []
        for index, (context_len, num_queries) in enumerate(self.sequences):
            table = self.tables[index]
            keys, values = reference.read_kv(self.k_cache, self.v_cache, table, context_len)
            if self.value_dim:
                values = keys[..., : self.value_dim]
            positions = np.arange(context_len - num_queries, context_len)
            q = self.q[self.rows_of(index)]
            sizes = self.window, self.scale
            parts.append(reference.attention(q, keys, values, positions, *sizes, **self.scores))
        return reference.Expected(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def alone(self, index):
        """The same case with only one of its sequences, its cache and table as they are."""
        sequence = self.sequences[index]
        return replace(
            self,
            sequences=[sequence],
            q=self.q[self.rows_of(index)],
            tables=self.tables[index : index + 1],
            tiles=tiles_of([sequence]),
        )

    def in_tiles_of(self, rows):
        """The same case with smaller tiles."""
        return replace(self, tiles=tiles_of(self.sequences, rows))


def tiles_of(sequences, rows_per_tile=abi.QUERY_TILE):
    """int32 [num_tiles, 4] that cover every query row."""
    tiles, row = [], 0
    for index, (context_len, num_queries) in enumerate(sequences):
        for start in range(0, num_queries, rows_per_tile):
            rows = min(rows_per_tile, num_queries - start)
            tiles.append((row + start, rows, index, context_len - num_queries + start))
        row += num_queries
    return np.array(tiles, np.int32)


def make_case(
    sequences,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    block_size=16,
    window=0,
    loudness=1.0,
    scale=None,
    dtype=np.float16,
    **scores,
):
    """A KvCase with shuffled blocks.

    Args:
        block_size: tokens a block; None is one contiguous block as long as the longest context.
        loudness: factor on the queries: large ones make a sharp softmax.
        scale: of the scores; None is head_dim ** -0.5.
        dtype: of the cache.
        scores: KvCase.scores.
    """
    rng = np.random.default_rng(len(sequences) + head_dim + num_heads)
    longest = max(length for length, _ in sequences)
    block_size = block_size or -(-longest // 16) * 16
    stride = -(-longest // block_size)
    num_blocks = stride * len(sequences) + 2
    num_rows = sum(num_queries for _, num_queries in sequences)
    k_cache = np.full((num_blocks, num_kv_heads, block_size // 16, head_dim, 16), STALE, dtype)
    v_cache = np.full((num_blocks, num_kv_heads, block_size, head_dim), -STALE, dtype)
    free = np.random.default_rng(num_blocks).permutation(num_blocks).tolist()
    tables = np.full((len(sequences), stride), -1, np.int32)
    for index, (context_len, _) in enumerate(sequences):
        for block in range(-(-context_len // block_size)):
            tables[index, block] = free.pop()
        positions = np.arange(context_len)
        slots = tables[index, positions // block_size] * block_size + positions % block_size
        k, v = rng.standard_normal((2, context_len, num_kv_heads, head_dim))
        reference.write_kv(k_cache, v_cache, k, v, slots)
    q = (rng.standard_normal((num_rows, num_heads, head_dim)) * loudness).astype(np.float32)
    scale = head_dim**-0.5 if scale is None else scale
    tiles = tiles_of(sequences)
    return KvCase(sequences, q, k_cache, v_cache, tables, tiles, window, scale, scores)
