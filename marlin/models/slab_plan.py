"""Where what is repacked or put in another order will lie: in slabs, by the sizes of matrices."""

# Repacked weights share buffers of this size: a huge page is 2 MiB, most matrices are smaller.
SLAB_BYTES = 32 << 20
# Weights in a slab begin at multiples of a cache line, which is the largest vector a kernel loads.
SLAB_ALIGNMENT = 64


class SlabPlan:
    """Where what is repacked or put in another order will lie.

    Attributes:
        sizes: bytes of each slab.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._used = 0

    def place(self, num_bytes: int) -> tuple[int, int]:
        """(slab, offset) of the next matrix."""
        if not self.sizes or self._used + num_bytes > self.sizes[-1]:
            self.sizes.append(max(SLAB_BYTES, num_bytes))
            self._used = 0
        offset = self._used
        self._used += -(-num_bytes // SLAB_ALIGNMENT) * SLAB_ALIGNMENT
        return len(self.sizes) - 1, offset
