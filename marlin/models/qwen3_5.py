"""Qwen3.5 (and 3.6, 3.8), dense and with experts: Qwen3-Next's layers under names of their own."""

from marlin.files.fields import Fields
from marlin.models import config_experts
from marlin.models.config import MAX_DIM
from marlin.models.qwen3_next import DeltaLine, SparseDeltaLine


class Qwen35(DeltaLine):
    model_type = "qwen3_5_text"
    hf_class = "Qwen3_5ForCausalLM"
    gguf_architecture = "qwen35"


class Qwen35Moe(SparseDeltaLine):
    """Every layer has experts, whose weights are always normalized."""

    model_type = "qwen3_5_moe_text"
    hf_class = "Qwen3_5MoeForCausalLM"
    gguf_architecture = "qwen35moe"

    def _experts_of_hf(self, fields: Fields, _num_layers: int) -> dict:
        width = fields.count("shared_expert_intermediate_size", 512, maximum=MAX_DIM)
        return config_experts.from_hf(fields, count="num_experts") | {"shared_dim": width}
