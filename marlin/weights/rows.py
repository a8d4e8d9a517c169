"""The two orders of the rows that RoPE rotates: Hugging Face's, and GGUF's interleaved one."""

import numpy as np


def unpermute_rows(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Put rows stored for interleaved RoPE into Hugging Face's order (the two halves of a head).

    Hugging Face row h * head_dim + two * (head_dim / 2) + i is GGUF row h * head_dim + 2 * i + two.

    Args:
        array: [num_heads * head_dim, ...], elements or raw row bytes; head_dim is even.
        num_heads: query heads for q_proj, KV heads for k_proj.

    Returns:
        A copy of the same shape and dtype.
    """
    half = array.shape[0] // num_heads // 2
    assert array.shape[0] == num_heads * half * 2, (array.shape, num_heads)
    pairs = array.reshape(num_heads, half, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).copy().reshape(array.shape)
