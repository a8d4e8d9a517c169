"""Weights in slabs, large buffers whose places a plan has given out: repacked, or put in another
order; and those that stay in their file. Refuses to know what files hold.
"""

from marlin.device.buffer import Buffer
from marlin.device.ops import Weight, weight_flags
from marlin.device.program import View
from marlin.models.spec import Tensor
from marlin.weights.kinds import Form


def of_experts(weight: Weight, tensor: Tensor) -> Weight:
    """The Weight of a matrix as experts' kernels read it, if it is of all experts."""
    if not tensor.stack:
        return weight
    count, n, _ = tensor.shape
    return weight._replace(n=n, num_experts=count)


class SlabWeights:
    """The slabs of one checkpoint.

    Args:
        source: device.slabs memory.
        sizes: bytes of each slab.

    Attributes:
        filled: another process has put the weights there.
    """

    def __init__(self, source, sizes: list[int]):
        self._source = source
        self._sizes = sizes
        self._slabs = []
        self.filled: bool = source.filled

    def weight(self, form: Form, n: int, k: int, slab: int, offset: int) -> Weight:
        """The Weight of a matrix [n, k] that begins at `offset` of a slab."""
        views = []
        for num_bytes in filter(None, form.part_bytes(n, k)):
            views.append(View(self._slab(slab), offset, num_bytes))
            offset += num_bytes
        flags = weight_flags(form.scale_bytes, form.has_bias)
        scales, biases, *_ = [*views[1:], None, None]
        return Weight(form.kind, n, k, views[0], form.group_size, flags, scales, biases)

    def map(self, path: str, start: int, num_bytes: int) -> Buffer:
        """Weights that are used where they lie in a file."""
        return self._source.map(path, start, num_bytes)

    def _slab(self, index):
        while len(self._slabs) <= index:
            self._slabs.append(self._source.new(self._sizes[len(self._slabs)]))
        return self._slabs[index]
