"""RoPE frequencies against transformers, for every scaling rule."""

import numpy as np
import pytest
from pytorch import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from marlin.models.registry import config_from_hf
from marlin.models.rope import (
    RopeScaling,
    longrope_attention_factor,
    rope_inv_freq,
    yarn_attention_factor,
)

SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama3 of 1B": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    "yarn with its own bounds": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
    },
    "yarn with a stated attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 1.25,
    },
}


def transformers_config(scaling, theta, head_dim):
    parameters = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        intermediate_size=64,
        num_hidden_layers=1,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )


@pytest.mark.parametrize("head_dim, theta", [(64, 1e4), (128, 5e5), (80, 1e6)])
@pytest.mark.parametrize("name", ["default", *SCALINGS])
def test_frequencies_equal_those_of_transformers(tmp_path, name, head_dim, theta):
    theirs = transformers_config(SCALINGS.get(name), theta, head_dim)
    theirs.architectures = ["LlamaForCausalLM"]
    theirs.save_pretrained(tmp_path)
    config = config_from_hf(tmp_path)
    inv_freq, attention_factor = rope_inv_freq(head_dim, theta, config.rope_scaling)
    assert (config.head_dim, config.rope_theta) == (head_dim, theta)
    if name == "default":
        expected, factor = LlamaRotaryEmbedding(theirs).inv_freq, 1.0
    else:
        rule = SCALINGS[name]["rope_type"]
        expected, factor = ROPE_INIT_FUNCTIONS[rule](theirs, torch.device("cpu"))
    assert inv_freq.dtype == np.float32 and inv_freq.shape == (head_dim // 2,)
    # They compute in float32, we in float64: a few units in the last place.
    np.testing.assert_allclose(inv_freq, expected.numpy(), rtol=2e-6)
    assert attention_factor == pytest.approx(factor, rel=1e-9)


def test_factors_of_a_gguf_file_divide_the_frequencies():
    factors = np.array([1, 8], np.float32)
    inv_freq, attention_factor = rope_inv_freq(4, 100.0, RopeScaling(), factors)
    assert inv_freq.tolist() == pytest.approx([1.0, 0.1 / 8])
    assert attention_factor == 1.0


def test_yarn_multiplies_by_one_tenth_of_the_logarithm_and_one():
    assert yarn_attention_factor(1.0) == 1.0
    assert yarn_attention_factor(np.e) == pytest.approx(1.1)
    assert yarn_attention_factor(np.e, mscale=2, mscale_all_dim=1) == pytest.approx(1.2 / 1.1)
    # One of the two alone says nothing; a context that is not stretched is not.
    for alone in ({"mscale": 2}, {"mscale_all_dim": 2}, {"mscale": 0, "mscale_all_dim": 2}):
        assert yarn_attention_factor(np.e, **alone) == pytest.approx(1.1)
    assert yarn_attention_factor(0.5, mscale=2, mscale_all_dim=1) == 1.0


def test_the_factor_of_longrope_is_its_authors():
    assert longrope_attention_factor(1.0, 4096) == longrope_attention_factor(0.5, 4096) == 1.0
    assert longrope_attention_factor(4096.0, 4096) == pytest.approx(2**0.5)
    assert longrope_attention_factor(64.0, 4096) == pytest.approx(1.5**0.5)
