"""The KV cache: how it is cut into blocks, and the buffers of each layer.

Layers that cache alike (one spec) form a group and share a layout. Groups that keep all tokens
share a sequence's block table; a window that gives blocks back has its own, over fewer blocks; a
state has slots.
Knows no requests: who has which block is block_pool.py's.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from marlin.device import abi
from marlin.device.device import Device
from marlin.device.ops import KvLayout
from marlin.device.ops_state import StateRuns
from marlin.device.program import View
from marlin.models.layers import LayerCache
from marlin.models.layers_latent import LatentKV
from marlin.models.layers_state import StateCache
from marlin.models.spec import CacheSpec, KvSpec, ModelSpec, State, WindowKV, cache_owner

# A contiguous KV cache is a multiple of this long: the key tile.
CONTEXT_STEP = 16

# Tokens a block of a cache for one sequence, where a window gives blocks back.
WINDOW_BLOCK_SIZE = 16
# Of states that are kept for requests to come: so many bytes, but two, and no more than so many.
KEPT_STATE_BYTES = 256 << 20
MAX_KEPT_STATES = 64


class Paging(NamedTuple):
    """Blocks of a cache.

    Attributes:
        num_blocks, block_size: blocks in all, and tokens a block (a multiple of 16).
        table_stride: blocks that one sequence may have.
        windows: (length of a window in tokens, blocks) of each that gives blocks back; layers with
            another window keep all tokens.
        num_states: slots of states, where layers have some.
    """

    num_blocks: int
    block_size: int
    table_stride: int
    windows: tuple[tuple[int, int], ...] = ()
    num_states: int = 0

    @classmethod
    def contiguous(cls, num_tokens: int) -> "Paging":
        """One block for one sequence."""
        return cls(1, num_tokens, 1)

    @classmethod
    def of_one(
        cls, spec: ModelSpec, num_tokens: int, step_tokens: int, draft_tokens: int = 0
    ) -> "Paging":
        """For one sequence of a model: one block, but where a window needs fewer tokens, or layers
        have a state, which is kept at the ends of blocks."""
        count = -(-num_tokens // WINDOW_BLOCK_SIZE)
        paging = cls(count, WINDOW_BLOCK_SIZE, count).with_windows(spec, 1, step_tokens)
        if state_bytes(spec):
            count = max(2, count)
            paging = paging._replace(num_blocks=count, table_stride=count)
            return paging.with_states(spec, 1, draft_tokens)
        return paging if paging.windows else cls.contiguous(num_tokens)

    def with_states(self, spec: ModelSpec, max_sequences: int, draft_tokens: int) -> "Paging":
        """The same with slots of states: of each sequence's last tokens and its last full block, of
        each guess, and of the beginnings of requests to come."""
        if not (size := state_bytes(spec)):
            return self
        kept = min(MAX_KEPT_STATES, max(2, KEPT_STATE_BYTES // size))
        return self._replace(num_states=2 * max_sequences + draft_tokens + kept)

    def with_windows(self, spec: ModelSpec, max_sequences: int, step_tokens: int) -> "Paging":
        """The same, whose windows give blocks back where that leaves them fewer.

        They have blocks for a step of all sequences, and for as many more beginnings of requests
        and one: those that the last requests began and ended with.
        """
        found = []
        for window in sorted({c.window for c in groups_of(spec) if isinstance(c, WindowKV)}):
            of_sequence = -(-window // self.block_size) + 2
            of_step = -(-step_tokens // self.block_size) + 1
            count = (2 * max_sequences + 1) * of_sequence + of_step
            if count < self.num_blocks:
                found.append((window, count))
        return self._replace(windows=tuple(found))

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def max_splits(self) -> int:
        """KV splits of a sequence's longest context."""
        return -(-self.table_stride * self.block_size // abi.KV_SPLIT)

    def num_blocks_of(self, spec: CacheSpec) -> int:
        """Blocks of a layer."""
        if not isinstance(spec, WindowKV):
            return self.num_blocks
        return dict(self.windows).get(spec.window, self.num_blocks)

    def layout(self, spec: KvSpec) -> KvLayout:
        """What kernels are told of the cache of a layer."""
        sizes = self.num_blocks_of(spec), self.block_size, self.table_stride
        value_dim = spec.value_dim if isinstance(spec, LatentKV) else 0
        return KvLayout(*sizes, spec.num_kv_heads, spec.head_dim, spec.dtype, value_dim)


def groups_of(spec: ModelSpec, readers: bool = False) -> dict[CacheSpec, list[int]]:
    """The layers, by index, that cache alike.

    Args:
        readers: those that read what an earlier layer caches are among them.
    """
    groups: dict[CacheSpec, list[int]] = {}
    for index, layer in enumerate(spec.layers):
        if readers or cache_owner(spec, index) == index:
            groups.setdefault(layer.attention.cache, []).append(index)
    return groups


def kv_token_bytes(spec: ModelSpec) -> int:
    """KV cache bytes of a token in all layers: what a context takes a token, up to a window."""
    return sum(cache.token_bytes * len(layers) for cache, layers in groups_of(spec).items())


def state_bytes(spec: ModelSpec) -> int:
    """Bytes of a sequence's state in all layers."""
    groups = groups_of(spec).items()
    return sum(c.slot_bytes * len(layers) for c, layers in groups if isinstance(c, State))


def kv_bytes(spec: ModelSpec, paging: Paging) -> int:
    """Bytes of a KV cache, states included."""
    kv = paging.block_size * sum(
        cache.token_bytes * len(layers) * paging.num_blocks_of(cache)
        for cache, layers in groups_of(spec).items()
    )
    return kv + paging.num_states * state_bytes(spec)


def longest_context(
    spec: ModelSpec,
    num_bytes: int,
    most: int,
    step_tokens: int,
    draft_tokens: int = 0,
    beside: Callable[[Paging], int] | None = None,
) -> int:
    """Tokens, a multiple of CONTEXT_STEP and `most` at most, of the longest cache for one sequence
    of so many bytes, with what is beside such a cache; may be 0."""
    low, high = 0, most // CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        sizes = middle * CONTEXT_STEP, step_tokens, draft_tokens
        paging = Paging.of_one(spec, *sizes)
        needed = kv_bytes(spec, paging) + (beside(paging) if beside else 0)
        low, high = (middle, high) if needed <= num_bytes else (low, middle - 1)
    return low * CONTEXT_STEP


def layer_cache(device: Device, layout: KvLayout, where: tuple[View, View, View]) -> LayerCache:
    """The cache of one layer, zeroed; `where` as KvCache's places."""
    k = View.of(device.create(layout.layer_bytes))
    v = None if layout.value_dim else View.of(device.create(layout.layer_bytes))
    return LayerCache(k, v, layout, *where)


class KvCache:
    """A model's cache on a device, zeroed.

    Args:
        places: {length of a window that gives blocks back, or None for all tokens: Views of the
            slots and block tables of a step, and of the tokens beyond the cache}.
        runs: where a step's states are; None without any.

    Attributes:
        layers: LayerCache or StateCache of each layer, which may be an earlier one's.
    """

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        paging: Paging,
        places: dict[int | None, tuple[View, View, View]],
        runs: StateRuns | None = None,
    ):
        found: dict[int, LayerCache | StateCache] = {}
        for cache, indices in groups_of(spec).items():
            if isinstance(cache, State):
                assert runs is not None, "a model with states has slots for them"
                for index in indices:
                    sizes = [4 * math.prod(shape) * runs.num_slots for shape in cache.shapes]
                    parts = tuple(View.of(device.create(size)) for size in sizes)
                    found[index] = StateCache(parts, runs)
                continue
            layout = paging.layout(cache)
            window = cache.window if isinstance(cache, WindowKV) else None
            where = places.get(window, places[None])
            for index in indices:
                found[index] = layer_cache(device, layout, where)
        self.layers = [found[cache_owner(spec, index)] for index in range(len(spec.layers))]
        self.num_bytes: int = sum(layer.num_bytes for layer in found.values())
