"""Qwen3-Next, and the line that Qwen3.5 is of, too: a gated delta rule in most layers, attention
with a gate in the others, and norms that multiply by 1 + w."""

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_delta, config_experts, config_gguf, config_hf, config_json
from marlin.models.config import MAX_DIM, MAX_LAYERS
from marlin.models.config_delta import FULL, LINEAR, DeltaConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_delta import GatedAttention, GatedDelta
from marlin.models.layers_experts import gated_shared, mixture
from marlin.models.layers_residual import PreNormLayer
from marlin.models.spec import Family, ModelSpec, Names, Tensor
from marlin.weights.gguf import GGUFFile

IMPLIED_PART = 0.25
# Tensors of layers that guess tokens ahead.
GUESSING = ("mtp.", "language_model.mtp.")


class DeltaLine(Family[DeltaConfig]):
    """Families of that layer.

    Attributes:
        grouped: a and b are one matrix, and in folders q, k, v and z another.
        tiled: GGUF files have the values' heads in turns of the keys' heads.
    """

    grouped = False
    tiled = True

    def _experts_of_hf(self, _fields: Fields, num_layers: int) -> dict:
        """The fields of MixtureConfig: here no layer has experts."""
        return config_experts.WITHOUT_EXPERTS | {"dense_layers": tuple(range(num_layers))}

    def _experts_of_gguf(self, _fields: Fields, num_layers: int) -> dict:
        return self._experts_of_hf(_fields, num_layers)

    def config_from_hf(self, fields: Fields) -> DeltaConfig:
        """As Family's."""
        implied = {"head_dim": 256, "intermediate_size": fields.raw("moe_intermediate_size")}
        shared = config_hf.shared(fields.with_defaults(implied), self.model_type, turns_partly=True)
        if not fields.flag("attn_output_gate", True):
            fields.fail("attn_output_gate", "true (without its gate attention is not read here)")
        has_bias, count = fields.flag("attention_bias", False), shared["num_layers"]
        return DeltaConfig(
            **shared,
            **self._experts_of_hf(fields, count),
            **config_delta.with_layout(fields, config_delta.from_hf(fields, count), self.grouped),
            qkv_bias=has_bias,
            o_bias=has_bias,
            qk_norm=True,
            windows=(None,) * count,
            rotary_dim=config_hf.rotary_dim(fields, shared["head_dim"], IMPLIED_PART),
        )

    def config_from_gguf(self, file: GGUFFile) -> DeltaConfig:
        """As Family's."""
        fields = config_gguf.fields_of(file, str(self.gguf_architecture))
        shared = config_gguf.shared(file, fields, self.model_type, turns_partly=True, experts=True)
        return DeltaConfig(
            **shared | {"qk_norm": True},
            **self._experts_of_gguf(fields, shared["num_layers"]),
            **config_delta.from_gguf(fields, shared["num_layers"], self.tiled),
            windows=(None,) * shared["num_layers"],
            rotary_dim=config_gguf.rotary_dim(fields, shared["head_dim"]),
            groups_ba=self.grouped,
        )

    def hf_config(self, config: DeltaConfig) -> dict:
        """As Family's."""
        values = config_json.shared_values(config, self.hf_class)
        del values["mlp_bias"]
        return (
            values
            | config_delta.layout_of_json(config, self.grouped)
            | {
                "layer_types": [LINEAR if linear else FULL for linear in config.linear_layers],
                "partial_rotary_factor": config.rotary_dim / config.head_dim,
                "linear_conv_kernel_dim": config.taps,
                "linear_num_key_heads": config.delta.key_heads,
                "linear_num_value_heads": config.delta.value_heads,
                "linear_key_head_dim": config.delta.key_dim,
                "linear_value_head_dim": config.delta.value_dim,
            }
        )

    def spec(self, config: DeltaConfig) -> ModelSpec:
        """As Family's."""
        rope = Rope(config.rotary_dim, config.rope_theta, config.rope_scaling)
        layers = tuple(_layer(config, rope, index) for index in range(config.num_layers))
        return ModelSpec.usual(config, layers, 1.0, unused=GUESSING)


class SparseDeltaLine(DeltaLine):
    """Those with experts, and one that all tokens share."""

    def _experts_of_gguf(self, fields: Fields, _num_layers: int) -> dict:
        width = fields.count("expert_shared_feed_forward_length", maximum=MAX_DIM)
        return config_experts.from_gguf(fields) | {"shared_dim": width}

    def hf_config(self, config: DeltaConfig) -> dict:
        """As Family's."""
        return super().hf_config(config) | {
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_slots,
            "moe_intermediate_size": config.expert_dim,
            "shared_expert_intermediate_size": config.shared_dim,
        }


class Qwen3Next(SparseDeltaLine):
    model_type = "qwen3_next"
    hf_class = "Qwen3NextForCausalLM"
    gguf_architecture = "qwen3next"
    grouped = True
    tiled = False

    def _experts_of_hf(self, fields: Fields, num_layers: int) -> dict:
        named = fields.counts("mlp_only_layers", 0, MAX_LAYERS)
        step = fields.count("decoder_sparse_step", 1, maximum=1 << 31)
        dense = (i for i in range(num_layers) if i in named or (i + 1) % step)
        return config_experts.from_hf(fields, count="num_experts") | {
            "normalizes": fields.flag("norm_topk_prob", True),
            "shared_dim": fields.count("shared_expert_intermediate_size", 512, maximum=MAX_DIM),
            "dense_layers": tuple(dense),
        }

    def hf_config(self, config: DeltaConfig) -> dict:
        """As Family's."""
        return super().hf_config(config) | {
            "norm_topk_prob": config.normalizes,
            "mlp_only_layers": list(config.dense_layers),
        }


def _layer(config, rope, index):
    names, dim = Names.of_layer(index, 1.0), config.hidden_dim
    mixes = _delta if config.linear_layers[index] else _attention
    return PreNormLayer(
        names.norm("input_layernorm", "attn_norm", dim),
        mixes(names, config, rope),
        names.norm("post_attention_layernorm", "post_attention_norm", dim),
        gated_feed_forward(names, config)
        if index in config.dense_layers
        else _mixture(names, config),
    )


def _mixture(names, config):
    sizes = config.hidden_dim, config.expert_dim
    routing = ops_experts.Router(config.num_experts, config.num_slots, "softmax", config.normalizes)
    shared, gate = gated_shared(names, config.hidden_dim, config.shared_dim)
    return mixture(names, routing, *sizes, shared=shared, shared_gate=gate)


def _attention(names, config, rope):
    shape = 2 * config.num_heads * config.head_dim, config.hidden_dim
    q = names.linear("self_attn.q_proj", "attn_q", shape, "attention", config.qkv_bias)
    return GatedAttention.of(attention(names, config, rope, None), q)


def _delta(names, config, _rope):
    delta, dim = config.delta, config.hidden_dim
    width, heads = delta.value_floats, delta.value_heads

    def linear(word, gguf, rows):
        return names.linear(f"linear_attn.{word}", gguf, (rows, dim), "attention")

    def tensor(word, gguf, *shape, role="other"):
        return Tensor(f"{names.hf}linear_attn.{word}", names.gguf + gguf, shape, role)

    qkv, z = linear("in_proj_qkv", "attn_qkv", delta.row_floats), None
    if config.groups_qkvz:
        qkv = linear("in_proj_qkvz", "ssm_in", delta.row_floats + width)
    else:
        z = linear("in_proj_z", "attn_gate", width)
    b, a = linear("in_proj_b", "ssm_beta", heads), linear("in_proj_a", "ssm_alpha", heads)
    if config.groups_ba:
        b, a = linear("in_proj_ba", "ssm_ba", 2 * heads), None
    return GatedDelta(
        *(qkv, z, b, a),
        tensor("conv1d.weight", "ssm_conv1d.weight", delta.row_floats, config.taps, role="conv"),
        tensor("A_log", "ssm_a", heads),
        tensor("dt_bias", "ssm_dt.bias", heads),
        tensor("norm.weight", "ssm_norm.weight", delta.value_dim),
        names.linear("linear_attn.out_proj", "ssm_out", (dim, width), "attention"),
        delta,
    )
