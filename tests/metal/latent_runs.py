"""One small run of each kernel as latent attention uses it, compared with the oracle."""

from dataclasses import replace

import numpy as np
import reference
import reference_latent
from test_attention_shaders import kv_case, normal, split, whole

from marlin.device.ops_latent import Latent


def latent_write(shader):
    """Five rows of 4 heads: the slots of some lie side by side in a key tile."""
    rows, heads, rank, nope, rope = 5, 4, 40, 12, 6
    inputs = normal(rows, heads, rank), normal(rows, heads, nope + rope), normal(rows, rank + rope)
    table = reference.rope_table(np.arange(rows) * 7, normal(rope // 2) ** 2, 1.0).value
    places = table.astype(np.float32), np.array([3, 4, 31, 5, 16], np.int32)
    norm, cache = normal(rank, seed=3), np.full((2, 1, 48, 16), 7, np.float16)
    latent = Latent(heads, nope, rope, True, 1e-3)
    expected, stored = reference_latent.latent_write(inputs, places, norm, cache, latent)
    sizes = {"num_heads": heads, "nope_dim": nope, "rope_dim": rope, "rank": rank, "row_dim": 48}
    sizes |= {"block_size": 16, "num_blocks": 2, "interleaved": 1, "kv_f32": 0, "eps": 1e-3}
    queries, beyond = np.full((rows, heads, 48), np.nan, np.float32), np.zeros(rows, np.int32)
    bindings = [*inputs, *places, cache, norm, queries, beyond]
    params = ("LatentParams", {"rows_var": 0, **sizes})
    units, constants = (rows, heads + 1, 1), {"KV_F32": 0}
    assert shader("rows").run("latent_write", units, bindings, params, [rows], constants)
    reference.assert_close(queries, expected)
    reference.assert_close(cache, stored, "float16")
    assert not beyond.any()


def attention_of_latents(shader):
    """Wider than a pass of the output, in one split and in two."""
    for sequences in ([(20, 3)], [(270, 2), (5, 1)]):
        case = kv_case.make_case(sequences, num_heads=5, head_dim=320, window=0)
        case = replace(case, value_dim=288)
        for way in (whole, split):
            reference.assert_close(way(shader, case), case.expected())
