"""A mixture of experts as a part that families compose: a router, the matrices of all experts, and
an expert that every token shares.

Each token chooses num_slots experts by its router's logits; what they make of it is added up, slot
by slot. Refuses to know how a file stores experts (spec.Stack, plan_experts.py).
"""

from dataclasses import dataclass

from marlin.device import ops, ops_experts
from marlin.models.config_experts import MixtureConfig
from marlin.models.layers import GatedFeedForward, Step, StepSizes
from marlin.models.spec import Fused, Linear, Names, Stack, Tensor

# y = activation(gate) * up; "swiglu" is gpt-oss's clamped one.
ACTIVATIONS = {"silu": ops.silu_mul, "gelu": ops.gelu_mul, "swiglu": ops.swiglu_mul}


@dataclass(frozen=True, slots=True)
class Mixture:
    """delta = (shared(x) +) the sum over a token's slots of weight * expert(x).

    Attributes:
        router: [num_experts, hidden]; its logits are float32.
        correction: [num_experts], for what routing.bias says.
        gate, up, down: of all experts, with biases or without.
        routing: how experts are chosen and weighted.
        shared: what every token takes besides.
        shared_gate: [1, hidden]; its sigmoid multiplies that; None where the family has none.
    """

    router: Linear
    correction: Tensor | None
    gate: Linear
    up: Linear
    down: Linear
    routing: ops_experts.Router
    activation: str
    shared: GatedFeedForward | None = None
    shared_gate: Linear | None = None

    @property
    def fused(self) -> tuple[Fused, ...]:
        return self.shared.fused if self.shared else ()

    def activations(self, sizes: StepSizes) -> dict[str, tuple[int, int]]:
        """{name: (rows, values of 4 bytes a row)} of what record() reads and writes."""
        tokens, slots = sizes.max_tokens, self.routing.num_slots
        _, width, dim = self.gate.weight.shape
        found = self.shared.activations(sizes) if self.shared else {}
        if self.shared_gate:
            found |= {f"shared {what}": (tokens, 1) for what in ("gate", "ids", "weights")}
        return found | {
            "router": (tokens, self.routing.num_experts),
            "expert ids": (tokens, slots),
            "expert weights": (tokens, slots),
            "expert order": (tokens, slots),
            "expert groups": (self.routing.num_experts, 3),
            "expert gate": (tokens, slots * width),
            "expert up": (tokens, slots * width),
            "expert down": (tokens, slots * dim),
        }

    def record(self, step: Step, index: int, x: str = "normed") -> None:
        label, acts, routing = f"layer {index}", step.acts, self.routing
        names = "expert ids", "expert weights", "expert order", "expert groups"
        choices = ops_experts.Choices(*(acts[name] for name in names))
        self._rank(step, x, f"{label} router")
        correction = self.correction and step.weights[self.correction.name]
        ops_experts.route(step.recorder, acts["router"], correction, routing, choices)
        self._experts(step, x, self.gate, "expert gate", 1, choices, f"{label} gate")
        self._experts(step, x, self.up, "expert up", 1, choices, f"{label} up")
        _, width, dim = self.gate.weight.shape
        slots, gate = routing.num_slots, acts["expert gate"]
        multiply = ACTIVATIONS[self.activation]
        multiply(step.recorder, gate, acts["expert up"], gate, slots * width)
        down = "expert down"
        self._experts(step, "expert gate", self.down, down, slots, choices, f"{label} down")
        if self.shared:
            self.shared.record(step, index, x)
        if self.shared_gate:
            self._gate_shared(step, x, label)
        parts = acts[down], choices.weights, acts["delta"]
        ops_experts.combine_experts(step.recorder, *parts, dim, slots, adds=self.shared is not None)

    def _rank(self, step, x, label):
        """Logits of all experts."""
        step.linear(x, self.router, "router", label)

    def _gate_shared(self, step, x, label):
        """What every token takes is a mixture of one expert, which weighs what a sigmoid says."""
        acts = step.acts
        step.linear(x, self.shared_gate, "shared gate", f"{label} shared gate")
        one = ops_experts.Router(1, 1, "sigmoid", normalizes=False)
        chosen = acts["shared ids"], acts["shared weights"]
        ops_experts.choose(step.recorder, acts["shared gate"], None, one, *chosen)
        delta, dim = acts["delta"], self.down.weight.shape[1]
        ops_experts.combine_experts(step.recorder, delta, chosen[1], delta, dim, 1)

    def _experts(self, step, x, layer, y, x_slots, choices, label):
        ops_experts.experts(
            step.recorder,
            step.acts[x],
            step.weights[layer.weight.name],
            step.acts[y],
            x_slots,
            choices,
            self.routing.num_slots,
            bias=layer.bias and step.weights[layer.bias.name],
            many_rows=step.prefill,
            label=label,
        )


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What files call the matrices of experts, after a layer's own beginning.

    Attributes:
        block: of the whole mixture in Hugging Face's names, with what follows it.
        router: within it, without ".weight".
        single: gate, up and down of one expert, with {} for its number.
        fused: whether there may be `gate_up_proj` of all experts; gpt-oss's is transposed.
        correction: of the numbers that correct ranks, without what follows in GGUF.
        stacked: mlx-lm's, of what has the gates, ups or downs of all experts.
    """

    block: str = "mlp."
    router: str = "gate"
    single: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    transposed: bool = False
    correction: str = "gate.e_score_correction_bias"
    stacked: str = "switch_mlp"


def mixture(
    names: Names,
    routing: ops_experts.Router,
    dim: int,
    width: int,
    *,
    spelled: ExpertNames = ExpertNames(),
    activation: str = "silu",
    has_bias: bool = False,
    has_correction: bool = False,
    shared: GatedFeedForward | None = None,
    shared_gate: Linear | None = None,
) -> Mixture:
    """The mixture of a layer under its usual names.

    Args:
        dim, width: columns of the hidden state, and rows of an expert's gate.
        has_bias: whether router and experts have biases.
    """
    block = names.hf + spelled.block
    shape = routing.num_experts, dim
    router = names.linear(spelled.block + spelled.router, "ffn_gate_inp", shape, "router", has_bias)
    correction = None
    if has_correction:
        gguf = f"{names.gguf}exp_probs_b.bias"
        correction = Tensor(block + spelled.correction, gguf, (routing.num_experts,))
    shapes = (width, dim), (width, dim), (dim, width)
    gate, up, down = (
        _experts_of(names.gguf, block, spelled, routing, index, shape, has_bias)
        for index, shape in enumerate(shapes)
    )
    return Mixture(router, correction, gate, up, down, routing, activation, shared, shared_gate)


def gated_shared(names: Names, dim: int, width: int) -> tuple[GatedFeedForward, Linear]:
    """Qwen's expert that every token shares, and the gate of it."""
    shapes = {"gate": (width, dim), "up": (width, dim), "down": (dim, width)}
    gate, up, down = (
        names.linear(f"mlp.shared_expert.{word}_proj", f"ffn_{word}_shexp", shape, "mlp")
        for word, shape in shapes.items()
    )
    own = names.linear("mlp.shared_expert_gate", "ffn_gate_inp_shexp", (1, dim), "router")
    return GatedFeedForward(gate, up, down, "silu"), own


def _experts_of(gguf, block, spelled, routing, index, shape, has_bias):
    """The gates, ups or downs (0, 1, 2) of all experts."""
    word = ("gate", "up", "down")[index]
    count, slots = routing.num_experts, routing.num_slots
    hf, gguf = f"{block}experts.{word}_proj", f"{gguf}ffn_{word}_exps"
    stacked = f"{block}{spelled.stacked}.{word}_proj"
    single = f"{block}experts.{{}}.{spelled.single[index]}.weight"
    whole = f"{block}experts.{'down' if word == 'down' else 'gate_up'}_proj"
    part = (0, 1) if word == "down" else (index, 2)
    of_whole = {"part": part[0], "num_parts": part[1], "transposed": spelled.transposed}
    stack = Stack(slots, f"{stacked}.weight", single, whole, **of_whole)
    names = f"{hf}.weight", f"{gguf}.weight"
    weight = Tensor(*names, (count, *shape), "mlp", stack=stack)
    if not has_bias:
        return Linear(weight)
    names = f"{hf}.bias", f"{gguf}.bias"
    stack = Stack(slots, f"{stacked}.bias", "", f"{whole}_bias", **of_whole)
    return Linear(weight, Tensor(*names, (count, shape[0]), stack=stack))


def shared_experts(names: Names, config: MixtureConfig) -> GatedFeedForward | None:
    """What every token takes beside its experts, as one feed-forward of config.shared_dim; None
    where that is 0."""
    dim, width = config.hidden_dim, config.shared_dim
    if not width:
        return None
    shapes = {"gate": (width, dim), "up": (width, dim), "down": (dim, width)}
    gate, up, down = (
        names.linear(f"mlp.shared_experts.{word}_proj", f"ffn_{word}_shexp", shape, "mlp")
        for word, shape in shapes.items()
    )
    return GatedFeedForward(gate, up, down, "silu")
