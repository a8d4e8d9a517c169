"""How long a context of a model the memory of a machine holds, before anything is loaded.

For `metal-marlin info MODEL` and docs/models.md, which so say the same.
"""

from marlin.device import abi
from marlin.engine.kv_cache import Paging, groups_of, kv_bytes, longest_context
from marlin.engine.memory import PREFILL_STEP_TOKENS, activation_bytes
from marlin.models.layers import StepSizes
from marlin.models.spec import ModelSpec

# Gigabytes (2^30) of the Macs that people have.
MAC_GIGABYTES = (16, 24, 36, 64)


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
    sizes = StepSizes(PREFILL_STEP_TOKENS, 1, -(-longest // abi.KV_SPLIT))
    free = memory_bytes - weight_bytes - activation_bytes(spec, sizes)
    return longest_context(spec, max(0, free), longest, PREFILL_STEP_TOKENS)


def kv_growth(spec: ModelSpec) -> tuple[int, int]:
    """(bytes that a token more takes, bytes of windows that give blocks back) of the cache of a
    sequence as long as the model's own context."""
    paging = Paging.of_one(spec, spec.config.max_context_tokens, PREFILL_STEP_TOKENS)
    token_bytes = sum(
        cache.token_bytes * len(layers)
        for cache, layers in groups_of(spec).items()
        if paging.num_blocks_of(cache) == paging.num_blocks
    )
    return token_bytes, kv_bytes(spec, paging) - token_bytes * paging.num_tokens


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
