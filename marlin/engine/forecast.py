"""How long a step of a model should take on a machine that may not be here, from sizes alone.

The model of docs/metal.md: a step reads its weights and the keys and values of its sequences at a
share of the memory's peak, computes, and launches each dispatch. Measures nothing.
"""

from typing import NamedTuple

from marlin.engine.capacity import num_parameters
from marlin.engine.kv_cache import groups_of
from marlin.models.model import read_share, tensors_of
from marlin.models.spec import ModelSpec, WindowKV

# Of Qwen3-4B's 36 layers: 475 dispatches and 365 barriers a step (docs/metal.md).
_DISPATCHES_A_LAYER, _BARRIERS_A_LAYER = 475 / 36, 365 / 36
_ENCODE_S = 0.6e-6
# Attention's operations take longer than a matrix's: they wait for softmax and for the cache.
_ATTENTION_SLOWNESS = 2
# An M1's 1.2 to 1.7e12 operations a second that others' kernels reach, beside its 68 GB/s; the
# larger chips have as many more of both.
_OPERATIONS_A_BYTE = 1.2e12 / 68e9, 1.7e12 / 68e9


class Machine(NamedTuple):
    """What a device reaches.

    Attributes:
        bytes_per_s, operations_per_s: of reading, and of multiplying and adding (two operations).
        launch_s: of a dispatch behind a barrier; 0 where kernels are called.
        step_s: of a step's Python, wake-up and sampling.
        hidden: share of the shorter of reading and computing that the longer one hides.
    """

    bytes_per_s: float
    operations_per_s: float
    launch_s: float
    step_s: float
    hidden: float


def gpu(bandwidth: float, operations: float | None = None) -> tuple[Machine, Machine]:
    """(least, most) that Apple's GPUs reach of a peak bandwidth in bytes a second; operations a
    second are estimated from it where they are not known."""
    low, high = (operations or ratio * bandwidth for ratio in _OPERATIONS_A_BYTE)
    return (
        Machine(0.75 * bandwidth, low, 4e-6, 0.5e-3, 1),
        Machine(0.87 * bandwidth, high, 2.5e-6, 0.3e-3, 1),
    )


def cpu(bandwidth: float, operations: float) -> tuple[Machine, Machine]:
    """(least, most) of a CPU, of what `metal-marlin bench` says that it reads and multiplies a
    second; the shares are those that bench found on the machine of docs/performance.md."""
    return (
        Machine(0.9 * bandwidth, 0.38 * operations, 0, 0.1e-3, 0.5),
        Machine(1.0 * bandwidth, 0.5 * operations, 0, 0.1e-3, 0.5),
    )


class Forecast:
    """Of one model's steps on one machine.

    Args:
        spec: the model.
        weight_bytes: of all its weights; matrices are taken to be packed alike.
        machine: a Machine.
    """

    def __init__(self, spec: ModelSpec, weight_bytes: int, machine: Machine):
        self.spec, self.machine = spec, machine
        self._weight_bytes = weight_bytes / num_parameters(spec)
        matrices = [tensor for tensor in tensors_of(spec.layers) if tensor.is_matrix]
        self._sizes: dict[float, int] = {}  # of the matrices of which a token reads this share
        for tensor in matrices:
            share = read_share(tensor)
            self._sizes[share] = self._sizes.get(share, 0) + _size(tensor)
        self._caches = [
            (cache.token_bytes * len(layers), cache.window if isinstance(cache, WindowKV) else None)
            for cache, layers in groups_of(spec, readers=True).items()
        ]
        self._head = 0 if spec.lm_head is None else _size(spec.lm_head)
        launches = _DISPATCHES_A_LAYER * _ENCODE_S if machine.launch_s else 0
        self._launch_s = len(spec.layers) * (_BARRIERS_A_LAYER * machine.launch_s + launches)

    def step_s(self, context_tokens: list[int], prefill_tokens: int = 0, before: int = 0) -> float:
        """Seconds of a step.

        Args:
            context_tokens: of each sequence that gets its next token.
            prefill_tokens: of a prompt that are computed as well.
            before: tokens of that prompt that have been.
        """
        rows = len(context_tokens) + prefill_tokens
        # Each token takes its own experts: of many, all are read.
        sizes = self._sizes.items()
        read = self._head + sum(size * (1 - (1 - share) ** rows) for share, size in sizes)
        cached = self.kv_bytes(context_tokens)
        multiplied = sum(size * share for share, size in sizes) * rows
        multiplied += self._head * (len(context_tokens) + (1 if prefill_tokens else 0))
        if prefill_tokens:
            config = self.spec.config
            scores = (
                2 * _ATTENTION_SLOWNESS * config.num_layers * config.num_heads * config.head_dim
            )
            multiplied += scores * prefill_tokens * (before + prefill_tokens / 2)
            cached += self.kv_bytes([before + prefill_tokens])
        read_s = (read * self._weight_bytes + cached) / self.machine.bytes_per_s
        computed_s = 2 * multiplied / self.machine.operations_per_s
        shorter, longer = sorted((read_s, computed_s))
        shown_s = (1 - self.machine.hidden) * shorter
        return longer + shown_s + self._launch_s + self.machine.step_s

    def prefill_s(self, num_tokens: int, step_tokens: int) -> float:
        """Seconds of a prompt alone, in steps of so many tokens."""
        return sum(
            self.step_s([], min(step_tokens, num_tokens - begin), begin)
            for begin in range(0, num_tokens, step_tokens)
        )

    def kv_bytes(self, context_tokens: list[int]) -> int:
        """Bytes of keys and values that the next tokens of sequences read."""
        total = 0
        for token_bytes, window in self._caches:
            if window is None:
                total += token_bytes * sum(context_tokens)
            else:
                total += token_bytes * sum(min(count, window) for count in context_tokens)
        return total


def _size(tensor):
    size = 1
    for length in tensor.shape:
        size *= length
    return size
