"""LFM2: short convolutions, and attention in every few layers."""

from dataclasses import dataclass, replace

import numpy as np

from marlin.device.abi import MAX_TAPS
from marlin.files.fields import Fields, file_fields
from marlin.models import config_gguf, config_hf, config_json
from marlin.models.config import MAX_DIM
from marlin.models.config_experts import WITHOUT_EXPERTS, MixtureConfig
from marlin.models.layers import Rope, attention, gated_feed_forward
from marlin.models.layers_residual import PreNormLayer
from marlin.models.layers_state import ShortConv
from marlin.models.spec import Family, ModelSpec, Names, Tensor
from marlin.weights.gguf import GGUFFile

CONV, FULL = "conv", "full_attention"
IMPLIED_THETA = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Lfm2Config(MixtureConfig):
    """Attributes of the family; num_experts is 0 where no layer has any:

    conv_layers: of each layer, whether it has a convolution in place of attention.
    taps: rows that an output of a convolution is made of.
    conv_bias: convolutions and the matrices beside them have a bias.
    """

    conv_layers: tuple[bool, ...]
    taps: int
    conv_bias: bool


class Lfm2(Family[Lfm2Config]):
    """Attributes of a family of this line:

    config_class: of its configs.
    """

    model_type = "lfm2"
    hf_class = "Lfm2ForCausalLM"
    gguf_architecture = "lfm2"
    config_class: type[Lfm2Config] = Lfm2Config

    def config_from_hf(self, fields: Fields) -> Lfm2Config:
        implied = {"rms_norm_eps": fields.number("norm_eps", 1e-5, maximum=1.0)}
        if fields.number("rms_norm_eps", implied["rms_norm_eps"]) != implied["rms_norm_eps"]:
            fields.fail("rms_norm_eps", f"norm_eps, which is {implied['rms_norm_eps']:g}")
        tied = fields.flag("tie_word_embeddings", True)
        implied |= {
            "rope_theta": IMPLIED_THETA,
            "tie_word_embeddings": fields.flag("tie_embedding", tied),
            "intermediate_size": fields.count("block_ff_dim", None, maximum=MAX_DIM),
        }
        shared = config_hf.shared(fields.with_defaults(implied), self.model_type)
        shared["tie_embeddings"] = implied["tie_word_embeddings"]
        return self.config_class(
            **shared | self._feed_forwards_of_hf(fields, shared),
            qk_norm=True,
            windows=(None,) * shared["num_layers"],
            conv_layers=self._conv_layers(fields, shared["num_layers"]),
            taps=fields.count("conv_L_cache", 3, minimum=2, maximum=MAX_TAPS),
            conv_bias=fields.flag("conv_bias", False),
        )

    def _feed_forwards_of_hf(self, fields: Fields, shared: dict) -> dict:
        """intermediate_dim and the fields of MixtureConfig: here no layer has experts."""
        width = _width(fields, shared["intermediate_dim"])
        return _dense(shared["num_layers"]) | {"intermediate_dim": width}

    def _experts_of_gguf(self, _file: GGUFFile, _fields: Fields, num_layers: int) -> dict:
        return _dense(num_layers)

    def _conv_layers(self, fields: Fields, num_layers: int) -> tuple[bool, ...]:
        if fields.raw("layer_types") is None:
            full = set(fields.counts("full_attn_idxs", 0, num_layers - 1))
            full = full or set(range(num_layers))
            return tuple(index not in full for index in range(num_layers))
        return conv_layers(fields, num_layers)

    def config_from_gguf(self, file: GGUFFile) -> Lfm2Config:
        name = f"{self.gguf_architecture}.attention.head_count_kv"
        heads, metadata = file.metadata.get(name), dict(file.metadata)
        is_list = isinstance(heads, np.ndarray) and np.issubdtype(heads.dtype, np.integer)
        if is_list and len(heads):
            metadata[name] = int(heads.max())
        fields = file_fields(file.path, metadata, f"{self.gguf_architecture}.")
        has_experts = self.gguf_architecture != Lfm2.gguf_architecture
        shared = config_gguf.shared(file, fields, self.model_type, experts=has_experts)
        count = shared["num_layers"]
        if is_list and (len(heads) != count or not {*heads.tolist()} <= {0, int(heads.max())}):
            raise_at = file_fields(file.path, file.metadata, f"{self.gguf_architecture}.")
            raise_at.fail("attention.head_count_kv", f"{count} of one number and 0")
        return self.config_class(
            **shared | {"qk_norm": True},
            **self._experts_of_gguf(file, fields, count),
            windows=(None,) * count,
            conv_layers=tuple(not n for n in heads.tolist()) if is_list else (False,) * count,
            taps=fields.count("shortconv.l_cache", minimum=2, maximum=MAX_TAPS),
            conv_bias=any(name.endswith("shortconv.conv.bias") for name in file.tensors),
        )

    def hf_config(self, config: Lfm2Config) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        for name in ("attention_bias", "mlp_bias", "rms_norm_eps"):
            del values[name]
        return values | {
            "norm_eps": config.rms_norm_eps,
            **self._feed_forwards_of_json(config),
            "layer_types": [CONV if is_conv else FULL for is_conv in config.conv_layers],
            "conv_L_cache": config.taps,
            "conv_bias": config.conv_bias,
        }

    def _feed_forwards_of_json(self, _config: Lfm2Config) -> dict:
        return {"block_auto_adjust_ff_dim": False}

    def spec(self, config: Lfm2Config) -> ModelSpec:
        rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
        layers = tuple(self._layer(config, rope, index) for index in range(config.num_layers))
        norm = Names("model.", "").norm("embedding_norm", "token_embd_norm", config.hidden_dim)
        return replace(ModelSpec.usual(config, layers), norm=norm)

    def _layer(self, config, rope, index):
        names, dim = Names.of_layer(index), config.hidden_dim
        mixes = _conv if config.conv_layers[index] else _attention
        return PreNormLayer(
            names.norm("operator_norm", "attn_norm", dim),
            mixes(names, config, rope),
            names.norm("ffn_norm", "ffn_norm", dim),
            self._feed_forward(names, config, index),
        )

    def _feed_forward(self, names, config, _index):
        own = Names(f"{names.hf}feed_forward.", names.gguf)
        shape = config.intermediate_dim, config.hidden_dim
        return replace(
            gated_feed_forward(names, config),
            gate=_linear(own, "w1", "gate", shape),
            up=_linear(own, "w3", "up", shape),
            down=_linear(own, "w2", "down", shape[::-1]),
        )


def _linear(names, word, gguf, shape):
    """mlx-lm writes the words of others."""
    made = names.linear(word, f"ffn_{gguf}", shape, "mlp")
    also = f"{names.hf}{gguf}_proj.weight"
    return replace(made, weight=replace(made.weight, also=also))


def _width(fields, width):
    """The feed-forward's, from what files state of it."""
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return width
    multiple = fields.count("block_multiple_of", 256, maximum=MAX_DIM)
    width = int(fields.number("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
    return -(-width // multiple) * multiple


def _dense(num_layers):
    return WITHOUT_EXPERTS | {"dense_layers": tuple(range(num_layers))}


def conv_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Of each layer, whether `layer_types` says that it has a convolution."""
    kinds = fields.raw("layer_types")
    if (
        type(kinds) is not list
        or len(kinds) != num_layers
        or not {*map(str, kinds)} <= {CONV, FULL}
    ):
        fields.fail("layer_types", f"{num_layers} of {CONV} and {FULL}")
    return tuple(kind == CONV for kind in kinds)


def _attention(names, config, rope):
    size, dim = config.head_dim, config.hidden_dim
    q, k = (names.norm(f"self_attn.{x}_layernorm", f"attn_{x}_norm", size) for x in "qk")
    shape = dim, config.num_heads * size
    o = names.linear("self_attn.out_proj", "attn_output", shape, "attention")
    return replace(attention(names, config, rope, None), q_norm=q, k_norm=k, o=o)


def _conv(names, config, _rope):
    dim, bias = config.hidden_dim, None

    def linear(word, rows):
        shape, own = (rows, dim), config.conv_bias
        return names.linear(f"conv.{word}", f"shortconv.{word}", shape, "attention", own)

    name, gguf = f"{names.hf}conv.conv", f"{names.gguf}shortconv.conv"
    weight = Tensor(f"{name}.weight", f"{gguf}.weight", (dim, config.taps), "conv")
    if config.conv_bias:
        bias = Tensor(f"{name}.bias", f"{gguf}.bias", (dim,))
    return ShortConv(linear("in_proj", 3 * dim), weight, bias, linear("out_proj", dim))
