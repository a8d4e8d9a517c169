"""Parts of Gemma 4: attention whose values are normed, and that may read what an earlier layer
cached; a row of each token for each layer; and the layer that they make.

As layers.py's.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from marlin.device import ops, ops_state
from marlin.device.ops_state import Columns
from marlin.models.layers import LOOKED_UP, Attention, GatedFeedForward, Step, StepSizes
from marlin.models.layers_experts import Mixture
from marlin.models.layers_residual import ResidualLayer
from marlin.models.spec import Constant, Fused, Linear, Tensor

GATE, ROW = "row's gate", "row"
RANKED, BESIDE = "what ranks", "beside experts"


@dataclass(frozen=True, slots=True)
class NormedAttention(Attention):
    """Attention whose values pass a norm without weights.

    Attributes:
        k, v: Linear, or None where another layer's keys and values are read; v, where they are
            made of what keys are made of.
        v_norm: of each head; None without k.
        owner: the layer whose keys and values are read; None: its own.
    """

    k: Any
    v: Any
    v_norm: Constant | None = None
    owner: int | None = None

    @classmethod
    def of(cls, plain: Attention, **own) -> "NormedAttention":
        """With everything but `own` that another has."""
        found = {each.name: getattr(plain, each.name) for each in fields(plain)}
        return cls(**found | own)

    @property
    def fused(self) -> tuple[Fused, ...]:
        """As Attention's."""
        if self.v is None:
            return ()
        return Fused.of((self.q, self.k, self.v), "q_proj", "qkv_proj", "attn_q", "attn_qkv")

    def record(self, step: Step, index: int, x: str = "normed", then: Tensor | None = None) -> None:
        label = f"layer {index}"
        step.linear(x, self.q, "q", f"{label} q")
        if self.owner is None:
            step.linear(x, self.k, "k", f"{label} k")
            if self.v is not None:
                step.linear(x, self.v, "v", f"{label} v")
            self._norm_values(step)
            self._write(step, index)
        else:
            self._turn_queries(step, step.inputs.caches[index].layout)
        self._attend(step, index)
        step.linear("attended", self.o, "delta", f"{label} o", then)

    def _turn_queries(self, step, layout):
        assert self.q_norm is not None
        norm = step.weights[self.q_norm.name], step.config.rms_norm_eps
        of_heads = layout, self.num_heads
        table, turns = self._turns(step)
        ops.turn_queries(step.recorder, step.acts["q"], table, *of_heads, turns, norm)

    def _norm_values(self, step):
        assert self.v_norm is not None, "a layer that keeps values norms them"
        x, weight = step.acts["v" if self.v is not None else "k"], step.weights[self.v_norm.name]
        sizes = self.cache.head_dim, step.config.rms_norm_eps
        count = self.cache.num_kv_heads
        ops.rms_norm(step.recorder, x, weight, step.acts["v"], *sizes, rows_per_var=count)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Of each token a row for each layer: one from a table, and one made of its embedding.

    Attributes:
        table: [vocabulary, layers * dim]; its rows are LOOKED_UP.
        projection: of the embedding.
        norm: [dim], of each layer's part of what it makes.
    """

    table: Tensor
    projection: Linear
    norm: Tensor

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """As a layer's."""
        return dict.fromkeys((LOOKED_UP, "projected"), (sizes.max_tokens, self.table.shape[1]))

    def record(self, step: Step) -> None:
        """What was looked up becomes the sum of both, by the root of 2."""
        width, dim = self.table.shape[1], self.norm.shape[0]
        rows, projected = step.acts[LOOKED_UP], step.acts["projected"]

        def scale(x, factor):
            ops.scale_rows(step.recorder, x, x, width, factor, rows_var=ops.VAR_TOKENS)

        step.linear("hidden", self.projection, "projected", "rows of layers")
        scale(projected, step.config.hidden_dim**-0.5)
        scale(rows, math.sqrt(dim))
        sizes, count = (dim, step.config.rms_norm_eps), width // dim
        weight = step.floats(self.norm)
        ops.rms_norm(step.recorder, projected, weight, rows, *sizes, rows_per_var=count, adds=True)
        scale(rows, 0.5**0.5)


@dataclass(frozen=True, slots=True)
class RowGate:
    """hidden += norm(up(gelu(gate(hidden)) * the layer's part of a token's row))."""

    gate: Linear
    up: Linear
    norm: Tensor

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """As a layer's."""
        return dict.fromkeys((GATE, ROW), (sizes.max_tokens, self.gate.weight.shape[0]))

    def record(self, step: Step, index: int, num_layers: int) -> None:
        acts, dim = step.acts, self.gate.weight.shape[0]
        step.linear("hidden", self.gate, GATE, f"layer {index} row's gate")
        taken = Columns(num_layers * dim, 1, dim, index * dim, dim)
        ops_state.take_columns(step.recorder, acts[LOOKED_UP], taken, acts[ROW], dim, 0)
        ops.gelu_mul(step.recorder, acts[GATE], acts[ROW], acts[GATE], dim)
        step.linear(GATE, self.up, "delta", f"layer {index} row")
        step.add_norm(self.norm)


@dataclass(frozen=True, slots=True)
class HiddenMixture(Mixture):
    """A mixture of the residual stream, with a norm for those that rank and one for experts.

    Attributes:
        router_scale: [hidden], of the first, whose result is divided by the root of hidden.
        norm: the second, into "normed".
    """

    router_scale: Tensor = field(kw_only=True)
    norm: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, plain: Mixture, router_scale: Tensor, norm: Tensor) -> "HiddenMixture":
        """With everything else that another has."""
        found = {each.name: getattr(plain, each.name) for each in fields(plain)}
        return cls(**found, router_scale=router_scale, norm=norm)

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """As a layer's."""
        own = {RANKED: (sizes.max_tokens, self.router_scale.shape[0])}
        return Mixture.activations(self, sizes) | own

    def _rank(self, step, _x, label):
        step.norm_into("hidden", self.router_scale, RANKED)
        step.linear(RANKED, self.router, "router", label)
        logits, count = step.acts["router"], self.routing.num_experts
        factor = self.router_scale.shape[0] ** -0.5
        ops.scale_rows(step.recorder, logits, logits, count, factor, rows_var=ops.VAR_TOKENS)
        step.norm(self.norm)


@dataclass(frozen=True, slots=True)
class ExpertsBeside:
    """BESIDE becomes dense_norm(delta) + post_norm(mixture(hidden))."""

    mixture: HiddenMixture
    dense_norm: Tensor
    post_norm: Tensor

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """As a layer's."""
        own = {BESIDE: (sizes.max_tokens, self.post_norm.shape[0])}
        return self.mixture.activations(sizes) | own

    def record(self, step: Step, index: int) -> None:
        step.norm_into("delta", self.dense_norm, BESIDE)
        self.mixture.record(step, index)
        step.norm_into("delta", self.post_norm, BESIDE, adds=True)


@dataclass(frozen=True, slots=True)
class Gemma4Layer(ResidualLayer):
    """hidden = scalar * (hidden + norm(attention(norm(hidden))) + norm(feed_forward(norm(...)))
    + row_gate(...)), each after the other; what experts make beside the feed-forward is added to
    it before its norm."""

    attn_norm: Tensor
    attention: NormedAttention
    post_attn_norm: Tensor
    ffn_norm: Tensor
    feed_forward: GatedFeedForward
    post_ffn_norm: Tensor
    row_gate: RowGate | None
    scalar: Tensor
    experts: ExpertsBeside | None = None
    leaves_delta = False

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """As ResidualLayer's."""
        found = ResidualLayer.activations(self, sizes)
        for part in (self.row_gate, self.experts):
            found |= part.activations(sizes) if part else {}
        return found

    def record(self, step: Step, index: int) -> None:
        """As ResidualLayer's."""
        step.norm(self.attn_norm)
        self.attention.record(step, index)
        step.norm_delta(self.post_attn_norm, None)
        step.norm(self.ffn_norm, delta=step.acts["delta"])
        self.feed_forward.record(step, index)
        if self.experts is None:
            step.add_norm(self.post_ffn_norm)
        else:
            self.experts.record(step, index)
            step.norm_into(BESIDE, self.post_ffn_norm, "hidden", adds=True)
        if self.row_gate is not None:
            self.row_gate.record(step, index, step.config.num_layers)
        scalar, hidden = step.floats(self.scalar), step.acts["hidden"]
        value = float(scalar.buffer.array(np.float32, (1,), scalar.offset)[0])
        sizes = step.config.hidden_dim, value
        ops.scale_rows(step.recorder, hidden, hidden, *sizes, rows_var=ops.VAR_TOKENS)
