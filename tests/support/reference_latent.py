"""The oracle of latent attention's own kernel: what it writes, in float64 and as a cache holds it.
(Attention over what it wrote is reference.attention.)"""

import numpy as np
import reference
from reference import KEY_TILE, Expected


def latent_write(inputs, rows, norm, cache, latent):
    """(Expected queries [rows, num_heads, row_dim], Expected cache).

    Args:
        inputs: absorbed queries [rows, num_heads, rank], queries [rows, num_heads, nope_dim +
            rope_dim], latents [rows, rank + rope_dim].
        rows: RoPE table [rows, 2, rope_dim / 2], slots.
        norm: [rank].
        cache: float16 or float32 [num_blocks, block_size / 16, row_dim, 16].
    """
    absorbed, q, kv = inputs
    (table, slots), rank, used = rows, len(norm), kv.shape[1]
    tiles, row_dim = cache.shape[1:3]
    turned = reference.rotate(q[..., latent.nope_dim :], table, latent.interleaved)
    queries = np.zeros((*q.shape[:2], row_dim))
    queries[..., :rank], queries[..., rank:used] = absorbed, turned
    keys = np.zeros((len(kv), row_dim))
    keys[:, :rank] = reference.rms_norm(kv[:, :rank], norm, latent.eps)[0].value
    keys[:, rank:used] = reference.rotate(kv[:, None, rank:], table, latent.interleaved)[:, 0]
    stored = cache.astype(np.float64)
    for slot, key in zip(slots, keys, strict=True):
        block, offset = divmod(int(slot), tiles * KEY_TILE)
        held = reference.to_kv(key, cache.dtype)
        stored[block, offset // KEY_TILE, :, offset % KEY_TILE] = held
    return Expected(queries, np.abs(queries) + 1), Expected(stored, np.abs(stored))
