"""The KV cache: how it is cut into blocks, and the buffers of each layer.

Layers that cache alike (one spec) form a group and share a layout. Block ids mean the same tokens
in every layer, so a sequence has one block table. Knows no requests: who has which block is
block_pool.py's.
"""

from typing import NamedTuple

from marlin.device import abi
from marlin.device.device import Device
from marlin.device.ops import KvLayout
from marlin.device.program import View
from marlin.models.layers import LayerCache
from marlin.models.spec import KvSpec, ModelSpec


class Paging(NamedTuple):
    """Blocks of a cache, in every layer alike.

    Attributes:
        num_blocks, block_size: blocks in all, and tokens a block (a multiple of 16).
        table_stride: blocks that one sequence may have.
    """

    num_blocks: int
    block_size: int
    table_stride: int

    @classmethod
    def contiguous(cls, num_tokens: int) -> "Paging":
        """One block for one sequence."""
        return cls(1, num_tokens, 1)

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def max_splits(self) -> int:
        """KV splits of a sequence's longest context."""
        return -(-self.table_stride * self.block_size // abi.KV_SPLIT)

    def layout(self, spec: KvSpec) -> KvLayout:
        """What kernels are told of the cache of a layer."""
        sizes = self.num_blocks, self.block_size, self.table_stride
        return KvLayout(*sizes, spec.num_kv_heads, spec.head_dim)


def groups_of(spec: ModelSpec) -> dict[KvSpec, list[int]]:
    """The layers, by index, that cache alike."""
    groups: dict[KvSpec, list[int]] = {}
    for index, layer in enumerate(spec.layers):
        groups.setdefault(layer.attention.cache, []).append(index)
    return groups


def kv_token_bytes(spec: ModelSpec) -> int:
    """KV cache bytes of a token in all layers."""
    return sum(cache.token_bytes * len(layers) for cache, layers in groups_of(spec).items())


class KvCache:
    """A model's cache on a device, zeroed.

    Attributes:
        layers: LayerCache of each layer.
    """

    def __init__(self, device: Device, spec: ModelSpec, paging: Paging):
        found = {}
        for cache, indices in groups_of(spec).items():
            layout = paging.layout(cache)
            for index in indices:
                k, v = (View.of(device.create(layout.layer_bytes)) for _ in range(2))
                found[index] = LayerCache(k, v, layout)
        self.layers: list[LayerCache] = [found[index] for index in range(len(spec.layers))]

    @property
    def num_bytes(self) -> int:
        return sum(layer.k.num_bytes + layer.v.num_bytes for layer in self.layers)
