"""Models with latent attention (GLM-4.7-Flash, DeepSeek-V3): from llama.cpp's and mlx-lm's files,
and the same bits however an answer came about."""

import json
from pathlib import Path

import numpy as np
import pytest
from pytorch import torch
from reference_models import build, logits_of
from test_mlx_experts import values_of, with_fused_experts
from test_speculation import answers, answers_and_drafts, know, read, serving, submit
from tiny_models import random_tokens
from transformers import AutoConfig, AutoModelForCausalLM

from marlin.errors import ModelFileError
from marlin.models.plan_folder import plan_folder
from marlin.models.registry import config_from_gguf, config_from_hf, family_of
from marlin.weights.gguf import GGUFFile

DATA = Path(__file__).parents[1] / "data"
MLX = DATA / "mlx_hybrid" / "glm4_moe_lite"
FILES = ["glm4_moe_lite", "deepseek_v3"]
PROMPTS = [random_tokens(count, 97, seed=count) for count in (1, 3, 40, 100)]
ASKED = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 24, "num_logprobs": 1}

assert know  # a fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("glm4_moe_lite")
    build("glm4_moe_lite").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alone(folder):
    """What each of PROMPTS is answered with nobody beside it and nothing cached."""
    with serving(folder, blocks=(40, 16)) as engine:
        engine.prefix_cache = "off"
        return answers(engine, PROMPTS, **ASKED)


@pytest.mark.parametrize(("count", "preempts"), [(120, False), (13, True)])
def test_requests_side_by_side_get_the_same_bits(folder, alone, count, preempts):
    with serving(folder, sequences=len(PROMPTS), blocks=(count, 16)) as engine:
        requests = [submit(engine, p, **{"seed": i} | ASKED) for i, p in enumerate(PROMPTS)]
        assert [read(request) for request in requests] == alone
        assert (sum(request.num_preemptions for request in requests) > 0) == preempts


@pytest.mark.parametrize("right", [2, 100])
def test_guesses_change_no_bit(folder, alone, know, right):
    know([token_ids for token_ids, _, _ in alone[::2]], right)
    with serving(folder, sequences=len(PROMPTS), blocks=(120, 16), drafts=16) as engine:
        found, num_drafts, num_right = answers_and_drafts(engine, PROMPTS, **ASKED)
    assert found == alone and 0 < num_right and (right == 100 or num_right < num_drafts)


def test_a_turn_that_begins_with_what_is_cached_gets_the_same_bits(folder):
    turns = [random_tokens(50, 97, seed) for seed in range(3)]
    found, cached = {}, {}
    for mode in ("off", "per-key"):
        found[mode], cached[mode], prompt = [], [], []
        with serving(folder, blocks=(60, 16)) as engine:
            engine.prefix_cache = mode
            for turn in turns:
                prompt = prompt + turn
                request = submit(engine, prompt, **ASKED)
                found[mode].append(read(request))
                cached[mode].append(request.num_cached_tokens)
                prompt = prompt + found[mode][-1][0]
    assert found["per-key"] == found["off"]
    # Whole blocks of the 73, and of the 147, tokens computed before.
    assert cached == {"off": [0, 0, 0], "per-key": [0, 64, 144]}


def test_a_folder_of_mlx_holds_what_mlx_lm_reads():
    """Its values, given to transformers, are what mlx-lm answers."""
    plan = plan_folder(str(MLX))
    assert plan.format == "mlx"
    found = with_fused_experts({at.tensor.name: values_of(at) for at in plan.tensors})
    for name in [name for name in found if name.endswith("embed_q.weight")]:
        stem = name.removesuffix("embed_q.weight")
        keys, values = found.pop(name).swapaxes(1, 2), found.pop(f"{stem}unembed_out.weight")
        found[f"{stem}kv_b_proj.weight"] = np.concatenate([keys, values], 1).reshape(
            -1, keys.shape[2]
        )
    config = json.loads((MLX / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval().float()
    model.load_state_dict({name: torch.from_numpy(found[name]) for name in model.state_dict()})
    token_ids, expected = (np.load(MLX / f"{name}.npy") for name in ("ids", "logits"))
    logits = logits_of(model, token_ids.ravel().tolist(), half_cache=False)
    assert np.abs(logits - expected.reshape(logits.shape)).max() < 1e-4


def header(name="glm4_moe_lite", **changes):
    file = GGUFFile(DATA / "families" / f"{name}.gguf")
    file.metadata.update({f"deepseek2.{key}": value for key, value in changes.items()})
    return file


@pytest.mark.parametrize("name", FILES)
def test_the_config_of_a_gguf_file_is_that_of_its_folder(name, tmp_path):
    """GLM's says deepseek2, too, which is the same model in other words."""
    config = config_from_gguf(header(name))
    assert (config.nope_dim, config.rope_dim, config.kv_rank, config.value_dim) == (16, 8, 32, 24)
    assert config.dense_layers == (0,) and config.num_kv_heads == config.num_heads == 4
    (tmp_path / "config.json").write_text(json.dumps(family_of(config).hf_config(config)))
    assert config_from_hf(tmp_path) == config


def test_yarn_of_a_gguf_file_means_what_it_does_in_deepseek_s_folders(tmp_path):
    said = {"type": "yarn", "factor": 40.0, "original_context_length": 64}
    said = {f"rope.scaling.{name}": value for name, value in said.items()}
    said["rope.scaling.yarn_log_multiplier"] = float(np.float32(0.1))
    config = config_from_gguf(header("deepseek_v3", **said))
    values = family_of(config).hf_config(config)
    values["rope_scaling"] = {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    published = config_from_hf(tmp_path)
    assert config.attention_scale == published.attention_scale > 24**-0.5
    assert config.rope_scaling.attention_factor == published.rope_scaling.attention_factor == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expert_gating_func", 1),
        ("attention.key_length", 48),
        ("attention.value_length", 48),
        ("attention.head_count_kv", 4),
        ("attention.key_length_mla", 8),
        ("attention.kv_lora_rank", 40),
        ("expert_group_count", 3),
        ("rope.scaling.yarn_log_multiplier", 0.07),
    ],
)
def test_a_header_that_cannot_be_is_refused_by_name(name, value):
    named = {"attention.key_length_mla": "rope.dimension_count"}.get(name, name)
    with pytest.raises(ModelFileError, match=named.replace(".", r"\.")):
        config_from_gguf(header(**{name: value}))


def test_a_file_that_neither_ranks_with_corrections_nor_says_how_is_refused():
    """DeepSeek-V2's: by a softmax."""
    file = header()
    for name in [name for name in file.tensors if name.endswith("exp_probs_b.bias")]:
        del file.tensors[name]
    with pytest.raises(ModelFileError, match="expert_gating_func"):
        config_from_gguf(file)
