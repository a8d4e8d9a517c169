"""What a model takes of its device's memory, counted before any of it is taken.

Weights are there once for all processes that serve the model; each process has a KV cache and
activations of its own. Knows sizes only; allocates nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

from marlin.engine.kv_cache import Paging, kv_bytes, longest_context
from marlin.errors import ConfigError
from marlin.models.layers import StepSizes
from marlin.models.model import activation_shapes
from marlin.models.spec import ModelSpec

# KV caches may take this share of the device's memory when the user names no context.
MAX_KV_MEMORY_SHARE = 0.25
# Tokens of a prefill step. A step reads the weights once; this many hide that read behind
# arithmetic, keep activations in the second-level cache, and let an abort be noticed soon
# (docs/performance.md).
PREFILL_STEP_TOKENS = 256


def activation_bytes(spec: ModelSpec, sizes: StepSizes) -> int:
    """Bytes of a step's activations, see models.model.activation_shapes()."""
    return sum(4 * rows * width for rows, width in activation_shapes(spec, sizes).values())


class MemoryBudget(NamedTuple):
    """A device's memory, and what of it is spoken for before the KV cache.

    Attributes:
        memory_bytes: what the device may use in all (marlin_device_info).
        weight_bytes: mapped and repacked weights, once for all processes.
        num_processes: processes that have a KV cache each.
        beside: bytes of each process that a draft model takes beside such a cache, or None.
    """

    memory_bytes: int
    weight_bytes: int
    num_processes: int = 1
    beside: Callable[[Paging], int] | None = None

    def context_that_fits(
        self,
        spec: ModelSpec,
        activations: int,
        step_tokens: int = PREFILL_STEP_TOKENS,
        draft_tokens: int = 0,
    ) -> int:
        """Tokens of the longest context of one sequence when the user names none, up to the
        model's own; may be 0.

        MAX_KV_MEMORY_SHARE of the memory bounds all processes' caches together, and so does what
        weights and activations (bytes, of each process) leave.
        """
        free = self.memory_bytes - self.weight_bytes - self.num_processes * activations
        room = min(free, int(self.memory_bytes * MAX_KV_MEMORY_SHARE))
        most = spec.config.max_context_tokens
        sizes = most, step_tokens, draft_tokens
        room = max(0, room) // self.num_processes
        return longest_context(spec, room, *sizes, beside=self.beside)

    def check(self, cache, kv_bytes, activations, beside=0):
        """Refuse what the device cannot hold.

        Args:
            cache: of what the KV cache is, for the message: "of 4096 tokens".
            kv_bytes, activations, beside: bytes of one process, the last those of a draft model.

        Raises:
            ConfigError: weights, KV caches and activations together exceed the memory.
        """
        needed = self.weight_bytes + self.num_processes * (kv_bytes + activations + beside)
        if needed <= self.memory_bytes:
            return
        each = f" for each of {self.num_processes} processes" if self.num_processes > 1 else ""
        more = f" and a draft model's cache and activations {_mib(beside)}" if beside else ""
        raise ConfigError(
            f"the model does not fit: its weights take {_mib(self.weight_bytes)}, a KV cache "
            f"{cache} {_mib(kv_bytes)} and a step's activations {_mib(activations)}{more}{each}, "
            f"{_mib(needed)} in all; the device has {_mib(self.memory_bytes)}"
        )


def check_memory(
    budget: MemoryBudget, spec: ModelSpec, paging: Paging, step_tokens: int, max_logits: int
) -> None:
    """Check a MemoryBudget against a KV cache and the activations of steps over it.

    Args:
        step_tokens, max_logits: tokens, and rows of logits, that a step may compute.

    Raises:
        ConfigError: as MemoryBudget.check().
    """
    cache = f"of {paging.num_tokens} tokens"
    if paging.num_blocks > 1:
        cache = f"of {paging.num_blocks} blocks of {paging.block_size} tokens"
    activations = activation_bytes(spec, StepSizes(step_tokens, max_logits, paging.max_splits))
    beside = budget.beside(paging) if budget.beside else 0
    budget.check(cache, kv_bytes(spec, paging), activations, beside)


def _mib(num_bytes):
    return f"{-(-num_bytes >> 20)} MiB"
