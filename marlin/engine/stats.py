"""What an engine tells of itself at a moment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Attributes:
    num_running, num_waiting: requests in steps, and before their first one.
    kv_bytes: of the KV cache.
    gpu_memory_bytes: that weights, cache and activations hold on a GPU.
    num_kv_blocks, num_free_kv_blocks: of the KV cache; free ones may hold what can be found again.
    seconds_since_step: how long the work in hand has waited for a step to be completed; 0 without
        work.
    """

    num_running: int
    num_waiting: int
    kv_bytes: int = 0
    gpu_memory_bytes: int = 0
    num_kv_blocks: int = 0
    num_free_kv_blocks: int = 0
    seconds_since_step: float = 0.0
