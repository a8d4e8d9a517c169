"""Multimodal folders as transformers writes them: the language model alone, beside transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from pytorch import torch
from reference_models import HalfCache
from tiny_models import logits_of_positions, random_tensor, random_tokens, running
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from marlin.errors import ModelFileError
from marlin.models.registry import config_from_hf

TEXT = {
    **{"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
}
MROPE = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 3, 3]}
SIGHT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 28,
         "num_attention_heads": 2, "patch_size": 14}  # fmt: skip
QWEN_SIGHT = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64}
# model_type: (text part, its other fields, vision part, other fields).
CASES = {
    "llava": ("llama", {"head_dim": 16}, SIGHT | {"model_type": "clip_vision_model"}, {}),
    "llava_next": ("mistral", {"head_dim": 16, "sliding_window": None},
                   SIGHT | {"model_type": "clip_vision_model"}, {}),
    "idefics3": ("llama", {"head_dim": 16}, SIGHT, {"scale_factor": 2}),
    "internvl": ("qwen2", {}, SIGHT | {"image_size": [28, 28], "patch_size": [14, 14]}, {}),
    "mistral3": ("mistral", {"head_dim": 16, "sliding_window": None},
                 SIGHT | {"model_type": "pixtral", "head_dim": 16}, {}),
    "smolvlm": ("llama", {"head_dim": 16}, SIGHT, {"scale_factor": 2}),
    "qwen2_vl": ("qwen2_vl_text", {"rope_parameters": MROPE},
                 {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}, {}),
    "qwen2_5_vl": ("qwen2_5_vl_text", {"rope_parameters": MROPE}, QWEN_SIGHT, {}),
    "qwen3_vl": ("qwen3_vl_text", {"head_dim": 16, "rope_parameters": MROPE},
                 QWEN_SIGHT | {"deepstack_visual_indexes": [0]}, {}),
}  # fmt: skip


def make(model_type):
    """A tiny random model whose language model shows each of its parts in the logits."""
    text_type, own, sight, others = CASES[model_type]
    text = CONFIG_MAPPING[text_type](**TEXT | own)
    images = {"image_token_id": 96, "image_token_index": 96, "video_token_id": 95}
    parts = {"text_config": text.to_dict() | {"model_type": text_type}, "vision_config": sight}
    config = CONFIG_MAPPING[model_type](**parts, **images, **others, tie_word_embeddings=False)
    model, rng = AutoModelForImageTextToText.from_config(config).eval(), np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            if "visi" not in name and "visual" not in name and len(shape) in (1, 2):
                parameter.copy_(torch.from_numpy(random_tensor(name, shape, rng)))
    return model


@pytest.mark.parametrize("model_type", CASES)
def test_the_language_model_within_agrees_with_transformers(model_type, tmp_path):
    model = make(model_type)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model_type
    token_ids = random_tokens(60, 90)
    with torch.no_grad():
        ids = torch.tensor([token_ids])
        expected = model(ids, past_key_values=HalfCache()).logits[0].numpy()
    with running(tmp_path, sequences=16) as runner:
        found = logits_of_positions(runner, token_ids)
    assert np.abs(found - expected).max() < 1e-3


def test_an_older_qwen_vl_has_its_text_fields_beside_the_others(tmp_path):
    flat = {**TEXT, "model_type": "qwen2_5_vl", "tie_word_embeddings": True, "rope_theta": 1e6}
    flat |= {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}}
    flat |= {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    Path(tmp_path / "config.json").write_text(json.dumps(flat))
    config = config_from_hf(tmp_path)
    assert (config.architecture, config.tie_embeddings) == ("qwen2", True)
    assert (config.rope_theta, config.rope_scaling.type) == (1e6, None)


def test_a_text_part_of_another_kind_is_refused_by_name(tmp_path):
    settings = {"model_type": "llava", "text_config": {**TEXT, "model_type": "opt"}}
    Path(tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelFileError, match="text_config.model_type is 'opt'; expected one of ll"):
        config_from_hf(tmp_path)
