"""Mixtral: a Mistral whose feed-forwards are mixtures of experts. GGUF files call it `llama`."""

from marlin.device import ops_experts
from marlin.files.fields import Fields
from marlin.models import config_experts, config_hf
from marlin.models.config_experts import MixtureConfig
from marlin.models.layers_experts import ExpertNames, mixture
from marlin.models.llama import LlamaLine

SPELLED = ExpertNames("block_sparse_moe.", "gate", ("w1", "w3", "w2"))


class Mixtral(LlamaLine[MixtureConfig]):
    model_type = "mixtral"
    hf_class = "MixtralForCausalLM"

    def config_from_hf(self, fields: Fields) -> MixtureConfig:
        fields = fields.with_defaults({"rope_theta": 1e6})
        window = None
        if fields.raw("sliding_window") is not None:
            window = config_hf.sliding_window(fields)
        shared = config_hf.shared(fields, self.model_type)
        experts = config_experts.from_hf(fields, width="intermediate_size")
        return MixtureConfig(**shared, **experts, windows=(window,) * shared["num_layers"])

    def hf_config(self, config: MixtureConfig) -> dict:
        return super().hf_config(config) | {
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.num_slots,
            "sliding_window": config.windows[0],
        }

    def _feed_forward(self, names, config, _index):
        routing = ops_experts.Router(config.num_experts, config.num_slots)
        return mixture(names, routing, config.hidden_dim, config.expert_dim, spelled=SPELLED)
