"""gpt-oss: experts with biases and a clamped gate, a sink in every head's softmax, and a window in
every other layer."""

from dataclasses import replace

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_experts, config_gguf, config_hf, config_json
from marlin.models.config_experts import MixtureConfig
from marlin.models.layers import Rope, attention
from marlin.models.layers_experts import ExpertNames, mixture
from marlin.models.layers_residual import PreNormLayer
from marlin.models.spec import Family, ModelSpec, Names, Tensor
from marlin.weights.gguf import GGUFFile

# Every how many layers one has no window, and the window, where files do not say.
PERIOD, WINDOW = 2, 128
# What config.json means that does not say so, or not how RoPE turns.
IMPLIED = {"rope_theta": 150000.0, "attention_bias": True, "head_dim": 64}
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
# The gate that kernels compute (ops.swiglu_mul).
GATE = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
SPELLED = ExpertNames(router="router", transposed=True)


class GptOss(Family[MixtureConfig]):
    model_type = "gpt_oss"
    hf_class = "GptOssForCausalLM"
    gguf_architecture = "gpt-oss"

    def config_from_hf(self, fields: Fields) -> MixtureConfig:
        fields = fields.with_defaults(IMPLIED)
        if config_hf.rope_section(fields) is None:
            fields = fields.with_defaults({"rope_parameters": ROPE})
        for name, only in GATE.items():
            if fields.number(name, only) != only:
                fields.fail(name, f"{only:g}")
        shared = config_hf.shared(fields, self.model_type)
        has_bias = fields.flag("attention_bias")
        return MixtureConfig(
            **shared,
            **config_experts.from_hf(fields, width="intermediate_size"),
            qkv_bias=has_bias,
            o_bias=has_bias,
            windows=_windows(fields, shared["num_layers"]),
        )

    def config_from_gguf(self, file: GGUFFile) -> MixtureConfig:
        """Files do not say that RoPE's bounds stay between dimensions, as they do in every one."""
        fields = config_gguf.fields_of(file, self.gguf_architecture)
        shared = config_gguf.shared(file, fields, self.model_type, experts=True)
        if shared["rope_scaling"].type == "yarn":
            shared["rope_scaling"] = replace(shared["rope_scaling"], truncate=False)
        experts = config_experts.from_gguf(fields)
        windows = config_gguf.windows(fields, shared["num_layers"], PERIOD)
        return MixtureConfig(**shared, **experts, windows=windows)

    def hf_config(self, config: MixtureConfig) -> dict:
        values = config_json.shared_values(config, self.hf_class)
        del values["mlp_bias"]
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        return values | {
            "intermediate_size": config.expert_dim,
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.num_slots,
            "layer_types": kinds,
            "sliding_window": next(filter(None, config.windows), WINDOW),
            **GATE,
        }

    def spec(self, config: MixtureConfig) -> ModelSpec:
        rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
        layers = tuple(_layer(config, rope, index) for index in range(config.num_layers))
        return ModelSpec.usual(config, layers)


def _windows(fields, num_layers):
    kinds = [
        "full_attention" if (index + 1) % PERIOD == 0 else "sliding_attention"
        for index in range(num_layers)
    ]
    window = WINDOW
    if "sliding_window" in fields.values:
        window = fields.count("sliding_window", None, maximum=1 << 31)
    if window is None and "sliding_attention" in (fields.raw("layer_types") or kinds):
        fields.fail("sliding_window", "the window of the layers that have one")
    return config_hf.windows(fields, num_layers, window, kinds)


def _layer(config, rope, index):
    names, dim = Names.of_layer(index), config.hidden_dim
    sinks = f"{names.hf}self_attn.sinks", f"{names.gguf}attn_sinks.weight"
    return PreNormLayer(
        names.norm("input_layernorm", "attn_norm", dim),
        attention(
            *(names, config, rope, config.windows[index]),
            sinks=Tensor(*sinks, (config.num_heads,)),
        ),
        names.norm("post_attention_layernorm", "post_attention_norm", dim),
        _mixture(names, config),
    )


def _mixture(names, config):
    routing = ops_experts.Router(config.num_experts, config.num_slots, "chosen", normalizes=False)
    sizes = config.hidden_dim, config.expert_dim
    return mixture(names, routing, *sizes, spelled=SPELLED, activation="swiglu", has_bias=True)
