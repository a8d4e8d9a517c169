"""GGUF blocks for tests of repacking: random ones, and what each type becomes."""

import numpy as np

from marlin.weights import formats, ggml_types
from marlin.weights.block_types import REPACKED
from marlin.weights.kinds import EXPONENTS


def random_blocks(ggml_type, num_rows, k, seed=0):
    """uint8 [num_rows, row bytes]: random bits, with scales that are ordinary numbers."""
    rng = np.random.default_rng(seed)
    layout, _ = ggml_types.DECODERS[ggml_type]
    num_blocks = num_rows * k // REPACKED[ggml_type].values
    raw = rng.integers(0, 256, num_blocks * layout.itemsize).astype(np.uint8)
    for field in {"d", "m", "dmin"} & set(layout.names):
        raw.view(layout)[field] = rng.standard_normal(num_blocks)
    if "e" in layout.names:  # a power of two, of 127 more
        raw.view(layout)["e"] = rng.integers(120, 134, num_blocks)
    return raw.reshape(num_rows, -1)


def blank(ggml_type, num_rows, k):
    """A PackedWeight of zeros of the right kind, as the buffers of a fresh device are."""
    row = REPACKED[ggml_type]
    numbers = num_rows, k // row.group_size
    if row.scale_bytes == 1:
        steps = np.zeros((num_rows, k // 256), np.float16)
        zeros = formats.BlockScales(steps, np.zeros(numbers, np.int8))
    else:
        zeros = np.zeros(
            numbers, {4: np.float32, 2: np.float16, EXPONENTS: np.uint8}[row.scale_bytes]
        )
    codes = np.zeros((num_rows, k), np.uint8)
    return formats.pack(row.kind, codes, zeros, zeros if row.has_bias else None)


def width_of(ggml_type, num_blocks):
    return num_blocks * REPACKED[ggml_type].values
