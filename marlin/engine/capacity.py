"""How long a context of a model the memory of a machine holds, before anything is loaded.

For `metal-marlin info MODEL` and docs/models.md, which so say the same.
"""

from marlin.device import abi
from marlin.engine.kv_cache import kv_token_bytes
from marlin.engine.memory import CONTEXT_STEP, activation_bytes
from marlin.models.layers import StepSizes
from marlin.models.spec import ModelSpec

# Gigabytes (2^30) of the Macs that people have.
MAC_GIGABYTES = (16, 24, 36, 64)
STEP_TOKENS = 256


def gpu_bytes(gigabytes: int) -> int:
    """What macOS lets a GPU use, unless it is told otherwise: two thirds of a machine's memory up
    to 36 GB, three quarters of more."""
    parts = (2, 3) if gigabytes <= 36 else (3, 4)
    return (gigabytes << 30) * parts[0] // parts[1]


def context_that_fits(spec: ModelSpec, weight_bytes: int, memory_bytes: int) -> int:
    """Tokens of the longest context of one sequence, up to the model's own; 0 where there is none.

    Args:
        weight_bytes: of the weights on the device.
        memory_bytes: what the device may use in all.
    """
    longest = spec.config.max_context_tokens
    sizes = StepSizes(STEP_TOKENS, 1, -(-longest // abi.KV_SPLIT))
    free = memory_bytes - weight_bytes - activation_bytes(spec, sizes)
    tokens = max(0, free) // kv_token_bytes(spec) // CONTEXT_STEP * CONTEXT_STEP
    return min(tokens, longest)


def num_parameters(spec: ModelSpec) -> int:
    """Numbers in all tensors, a tied output matrix once."""
    total = 0
    for tensor in spec.tensors:
        if not tensor.optional:
            size = 1
            for length in tensor.shape:
                size *= length
            total += size
    return total
