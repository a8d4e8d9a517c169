"""A mixture of experts that mlx-lm quantized: what is read of it, given to transformers, is what
mlx-lm answers. (Rounded activations choose another expert where two are nearly as good, so that the
device's own logits would say less.)"""

import json
from pathlib import Path

import numpy as np
from pytorch import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from marlin.models.plan_folder import plan_folder
from marlin.weights import ggml_types
from marlin.weights.tensor_file import read_bytes

FOLDER = Path(__file__).parents[1] / "data" / "mlx_experts" / "qwen3_moe"


def values_of(stored):
    """float32, what a tensor of the plan stands for."""
    if stored.foreign is not None:
        return stored.foreign.values(0, stored.foreign.shape[0]).reshape(stored.tensor.shape)
    return ggml_types.dequantize(stored.info.dtype, read_bytes(stored.info), stored.tensor.shape)


def with_fused_experts(found):
    """Gates and ups as transformers holds them: one tensor of all experts."""
    found = dict(found)
    for name in [name for name in found if name.endswith(".experts.gate_proj.weight")]:
        stem = name.removesuffix("gate_proj.weight")
        parts = found.pop(name), found.pop(f"{stem}up_proj.weight")
        found[f"{stem}gate_up_proj"] = np.concatenate(parts, axis=1)
        found[f"{stem}down_proj"] = found.pop(f"{stem}down_proj.weight")
    return found


def test_experts_and_routers_of_their_own_bits_are_what_mlx_lm_reads():
    plan = plan_folder(str(FOLDER))
    assert plan.format == "mlx"
    found = {stored.tensor.name: values_of(stored) for stored in plan.tensors}
    found = with_fused_experts(found)
    config = json.loads((FOLDER / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config)).eval().float()
    model.load_state_dict(
        {name: torch.from_numpy(found[name].copy()) for name in model.state_dict()}
    )
    token_ids, expected = (np.load(FOLDER / f"{name}.npy") for name in ("ids", "logits"))
    with torch.no_grad():
        logits = model(torch.from_numpy(token_ids.reshape(1, -1))).logits[0].numpy()
    assert np.abs(logits - expected.reshape(logits.shape)).max() < 1e-5
