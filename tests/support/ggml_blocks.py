"""GGUF blocks for tests of repacking: random ones, and what each type becomes."""

import numpy as np

from marlin.weights import formats, ggml_types

# What each type becomes: format, group size, scale dtype, whether it has biases.
TARGETS = {
    "Q4_0": ("int4", 32, np.float16, True),
    "Q4_1": ("int4", 32, np.float16, True),
    "Q5_0": ("int8", 32, np.float16, False),
    "Q5_1": ("int8", 32, np.float16, True),
    "Q8_0": ("int8", 32, np.float16, False),
    "Q4_K": ("int4", 32, np.float32, True),
    "Q5_K": ("int8", 32, np.float32, True),
    "Q6_K": ("int8", 16, np.float32, False),
}
SUPER_BLOCKS = ("Q4_K", "Q5_K", "Q6_K")


def random_blocks(ggml_type, num_rows, k, seed=0):
    """uint8 [num_rows, row bytes]: random bits, with scales that are ordinary numbers."""
    rng = np.random.default_rng(seed)
    layout, _ = ggml_types.DECODERS[ggml_type]
    num_blocks = num_rows * k // (256 if ggml_type in SUPER_BLOCKS else 32)
    raw = rng.integers(0, 256, num_blocks * layout.itemsize).astype(np.uint8)
    for field in {"d", "m", "dmin"} & set(layout.names):
        raw.view(layout)[field] = rng.standard_normal(num_blocks)
    return raw.reshape(num_rows, -1)


def blank(ggml_type, num_rows, k):
    """A PackedWeight of zeros of the right kind, as the buffers of a fresh device are."""
    kind, group_size, dtype, has_bias = TARGETS[ggml_type]
    zeros = np.zeros((num_rows, k // group_size), dtype)
    codes = np.zeros((num_rows, k), np.uint8)
    return formats.pack(kind, codes, zeros, zeros if has_bias else None)


def width_of(ggml_type, num_blocks):
    return num_blocks * (256 if ggml_type in SUPER_BLOCKS else 32)
