"""Recording the kernel of latent attention, as ops.py does the others."""

from typing import NamedTuple

from marlin.device.ops import BOTH, READ, VAR_TOKENS, WRITE, KvLayout
from marlin.device.program import Recorder, View, make_params


class Latent(NamedTuple):
    """Sizes of latent attention.

    Attributes:
        nope_dim, rope_dim: of a head's query, what does not turn, and then what does.
        interleaved: pairs that turn are neighbours, and not halves.
        eps: of the latent's norm.
    """

    num_heads: int
    nope_dim: int
    rope_dim: int
    interleaved: bool
    eps: float


def latent_write(
    recorder: Recorder,
    inputs: tuple[View, View, View],
    rows: tuple[View, View, View],
    norm: View,
    cache: View,
    layout: KvLayout,
    queries: View,
    latent: Latent,
) -> None:
    """Norm and turn a step's latents, write them to their slots, and put its queries together.

    Args:
        inputs: absorbed queries, float [tokens, num_heads, layout.value_dim]; the queries of which
            they were made, float [tokens, num_heads, nope_dim + rope_dim]; latents and what turns
            of the keys, float [tokens, layout.value_dim + rope_dim].
        rows: (RoPE table, slots, beyond) of ops.rope_kv_write().
        norm: float [layout.value_dim].
        queries: float [tokens, num_heads, layout.head_dim], of ops.attention().
    """
    params = make_params(
        "LatentParams",
        rows_var=VAR_TOKENS,
        block_size=layout.block_size,
        num_blocks=layout.num_blocks,
        rank=layout.value_dim,
        row_dim=layout.head_dim,
        kv_f32=int(layout.dtype == "float32"),
        **latent._asdict() | {"interleaved": int(latent.interleaved)},
    )
    table, slots, beyond = rows
    bindings = [(view, READ) for view in (*inputs, table, slots)]
    bindings += [(cache, WRITE), (norm, READ), (queries, WRITE), (beyond, BOTH)]
    recorder.dispatch("latent_write", params, bindings)
