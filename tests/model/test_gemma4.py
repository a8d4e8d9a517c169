"""Gemma 4: logits of transformers from all kinds of files, whatever its layers cache and read of
each other, and configs that are refused.

The cache is float32 where the logits are compared: scores are not divided by anything here, which
makes what float16 rounds away several times larger than elsewhere.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from pytorch import torch
from reference_models import build, logits_of
from test_mlx_experts import values_of, with_fused_experts
from test_parity import SENSITIVITY, assert_close
from tiny_models import logits_by_chunks, random_tokens, running

from marlin.engine.kv_cache import kv_token_bytes, state_bytes
from marlin.errors import ModelFileError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.plan_folder import plan_folder
from marlin.models.registry import config_from_gguf, config_from_hf, family_of, spec_of
from marlin.models.rope import RopeScaling
from marlin.weights.gguf import GGUFFile

LENGTH = 200
TWO = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
WIDE = TWO | {"head_dim": 256, "global_head_dim": 512, "num_kv_shared_layers": 0}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 3,
    "moe_intermediate_size": 48,
    "attention_k_eq_v": True,
}
CASES = {
    "26B-A4B": (
        "gemma4_text",
        EXPERTS | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    ),
    "E2B": ("gemma4_text", {}),
    "without rows, readers and a cap": (
        "gemma4_text",
        {
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "keys are values": ("gemma4_unified_text", {}),
    "heads as published": ("gemma4_text", WIDE),
}
# As llama.cpp's own converter wrote it, and as mlx-lm did, with the logits of transformers.
DATA = Path(__file__).parents[1] / "data"
NAMES = ["gemma4_text", "gemma4_text_moe"]
CONVERTED = DATA / "families" / "gemma4_text.gguf"
KEPT = {"kv_dtype": "float32"}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """(folder, token ids, their reference logits)."""
    family, changes = CASES[request.param]
    model = build(family, **changes)
    folder = tmp_path_factory.mktemp("model")
    save(model, folder)
    token_ids = random_tokens(LENGTH, 97)
    return folder, token_ids, logits_of(model, token_ids, half_cache=False)


def save(model, folder):
    model.save_pretrained(folder)
    return folder


def test_steps_of_any_size_agree_with_transformers_and_with_each_other(case):
    folder, token_ids, expected = case
    with running(folder, **KEPT) as runner:
        decoded = logits_by_chunks(runner, token_ids, [1])
        chunks = logits_by_chunks(runner, token_ids, [64, 33, 1, 2, 3])
    assert_close(decoded, expected)
    for position, logits in chunks.items():
        np.testing.assert_array_equal(logits, decoded[position])


def test_a_config_survives_being_written(case, tmp_path):
    config = config_from_hf(case[0])
    (tmp_path / "config.json").write_text(json.dumps(family_of(config).hf_config(config)))
    assert config_from_hf(tmp_path) == config


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gemma4_text", {"sliding_window": 400}),
        ("gemma4_text", {"final_logit_softcapping": None}),
        ("gemma4_text", {"num_kv_shared_layers": 2}),
        ("gemma4_text", {"use_double_wide_mlp": False}),
        ("gemma4_unified_text", {"attention_k_eq_v": False}),
        ("gemma4_text", EXPERTS),
        ("gemma4_text", EXPERTS | {"top_k_experts": 2}),
    ],
)
def test_the_reference_would_show_a_feature_that_is_ignored(family, change):
    token_ids = random_tokens(LENGTH, 97)
    base = EXPERTS if change.get("top_k_experts") == 2 else {}
    on, off = (logits_of(build(family, **changes), token_ids) for changes in (base, change))
    assert np.abs(on - off).max() > SENSITIVITY


def test_published_spellings_mean_the_same(tmp_path):
    """Google's files say sizes of all layers without a window, transformers saves each layer's."""
    values = json.loads((save(build("gemma4_unified_text"), tmp_path) / "config.json").read_text())
    saved = config_from_hf(tmp_path)
    del values["per_layer_config"], values["rope_parameters"]
    values |= {"global_head_dim": 32, "num_global_key_value_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert config_from_hf(tmp_path) == saved


def test_layers_that_read_the_cache_of_others_take_no_memory(tmp_path):
    spec = spec_of(config_from_hf(save(build("gemma4_text"), tmp_path)))
    # Four of seven layers: three of 2 heads of 16, one of 2 heads of 32; keys and values of halves.
    assert kv_token_bytes(spec) == 2 * 2 * (3 * 2 * 16 + 2 * 32)
    assert state_bytes(spec) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(build("gemma4_text"), tmp_path_factory.mktemp("e2b"))


def test_rows_of_tokens_are_read_in_place_and_are_no_memory_of_the_device(folder):
    with running(folder, **KEPT) as runner:
        names = runner.model.weights.keys()
        assert not [name for name in names if "embed_tokens_per_layer" in name]
        checkpoint = open_checkpoint(folder, runner.device)
        checkpoint.load()
        table = next(at.info for at in checkpoint.plan if at.tensor.is_table)
        end = table.offset + table.num_bytes
        for _, start, num_bytes in checkpoint._mapped:
            assert start + num_bytes <= table.offset or start >= end
    assert checkpoint.mapped_paths == [str(folder / "model.safetensors")]


def test_the_file_may_be_gone_from_its_place_once_it_is_open(tmp_path, folder):
    model = build("gemma4_text")
    save(model, tmp_path)
    token_ids = random_tokens(40, 97)
    with running(tmp_path, **KEPT) as runner:
        (tmp_path / "model.safetensors").unlink()
        found = logits_by_chunks(runner, token_ids, [16, 1])
    assert_close(found, logits_of(model, token_ids, half_cache=False))


def test_keys_and_values_that_published_files_hold_for_readers_are_left_unread(tmp_path):
    """transformers leaves them out when it saves; Google's files have them."""
    from safetensors.numpy import load_file, save_file

    model = build("gemma4_text")
    path = save(model, tmp_path) / "model.safetensors"
    tensors = load_file(path)
    for name in ("k_proj", "v_proj", "k_norm"):
        tensors[f"model.layers.5.self_attn.{name}.weight"] = np.ones((3, 3), np.float32)
    save_file(tensors, path)
    token_ids = random_tokens(20, 97)
    with running(tmp_path, **KEPT) as runner:
        found = logits_by_chunks(runner, token_ids, [1])
    assert_close(found, logits_of(model, token_ids, half_cache=False))
    tensors["model.layers.2.self_attn.g_proj.weight"] = np.ones((3, 3), np.float32)
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=r"model.layers.2.self_attn.g_proj.weight"):
        with running(tmp_path):
            pass


def test_the_language_model_of_a_multimodal_folder_agrees_with_transformers(tmp_path):
    text = build("gemma4_text")
    sight = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16,
             "num_attention_heads": 2, "num_key_value_heads": 2, "patch_size": 4}  # fmt: skip
    config = transformers.Gemma4Config(
        text_config=text.config.to_dict(), vision_config=sight, audio_config=None,
        image_token_id=90, video_token_id=91, audio_token_id=92,
    )  # fmt: skip
    model = transformers.Gemma4ForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    save(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "gemma4"
    token_ids = random_tokens(60, 90)
    with running(tmp_path, **KEPT) as runner:
        found = logits_by_chunks(runner, token_ids, [16, 1])
    assert_close(found, logits_of(text, token_ids, half_cache=False))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_llama_cpps_converter_gives_the_logits_of_transformers(name):
    file = DATA / "families" / f"{name}.gguf"
    token_ids = np.load(file.with_suffix(".ids.npy")).ravel().tolist()
    expected = np.load(file.with_suffix(".logits.npy")).reshape(len(token_ids), -1)
    with running(file, **KEPT) as runner:
        found = logits_by_chunks(runner, token_ids, [1])
    assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_config_of_such_a_file_survives_as_config_json(name, tmp_path):
    config = config_from_gguf(GGUFFile(DATA / "families" / f"{name}.gguf"))
    if name == "gemma4_text":
        assert (config.num_readers, config.wide_readers, config.row_dim) == (3, True, 8)
    else:
        assert (config.num_experts, config.num_slots, config.expert_dim) == (8, 2, 32)
    assert config.full_rope_scaling == RopeScaling("proportional", num_turning=4)
    (tmp_path / "config.json").write_text(json.dumps(family_of(config).hf_config(config)))
    assert config_from_hf(tmp_path) == config


WRONG = [
    ("attention.sliding_window_pattern", None),
    ("attention.sliding_window_pattern", np.array([True] * 6)),
    ("attention.key_length_swa", None),
    ("attention.value_length_swa", 32),
    ("rope.dimension_count", 16),
    ("attention.shared_kv_layers", 4),
    ("attention.head_count_kv", np.array([1, 2, 1, 1, 1, 1])),
    ("feed_forward_length", np.array([96, 96, 96, 96, 192, 192])),
    ("feed_forward_length", np.array([96, 64, 96, 192, 192, 192])),
    ("expert_count", 8000),
    ("attention.scale", 0.25),
    ("rope.scaling.factor", 2.0),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_header_that_cannot_be_is_refused_by_name(name, value):
    file = GGUFFile(CONVERTED)
    file.metadata[f"gemma4.{name}"] = value
    with pytest.raises(ModelFileError, match=name):
        config_from_gguf(file)


def test_other_factors_of_rope_than_a_part_that_turns_are_refused(tmp_path):
    info = GGUFFile(CONVERTED).tensors["rope_freqs.weight"]
    raw = bytearray(CONVERTED.read_bytes())
    raw[info.offset : info.offset + 4] = np.float32(2.0).tobytes()
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(ModelFileError, match=r"rope_freqs.weight.*holds other factors"):
        config_from_gguf(GGUFFile(tmp_path / "m.gguf"))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_mlx_holds_what_mlx_lm_reads(name):
    """Its values, given to transformers, are what mlx-lm answers."""
    folder = DATA / "mlx_hybrid" / name
    plan = plan_folder(str(folder))
    assert plan.format == "mlx"
    found = {stored.tensor.name: values_of(stored) for stored in plan.tensors}
    found = with_fused_experts(found)
    found["lm_head.weight"] = found["model.embed_tokens.weight"]
    config = json.loads((folder / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    model = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**config)).eval().float()
    model.load_state_dict({name: torch.from_numpy(values) for name, values in found.items()})
    token_ids, expected = (np.load(folder / f"{name}.npy") for name in ("ids", "logits"))
    logits = logits_of(model, token_ids.ravel().tolist(), half_cache=False)
    assert np.abs(logits - expected.reshape(logits.shape)).max() < 1e-4


LOCAL = {"sliding_attention": {"rope_theta": 1e4}}
REFUSED = [
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ({"layer_types": ["full_attention"] * 6 + ["sliding_attention"]}, "layer_types"),
    ({"layer_types": ["full_attention"] * 3}, "layer_types"),
    ({"num_kv_shared_layers": 7}, "num_kv_shared_layers"),
    ({"num_kv_shared_layers": 6}, "num_kv_shared_layers"),
    ({"vocab_size_per_layer_input": 90}, "vocab_size_per_layer_input"),
    ({"hidden_activation": "silu"}, "hidden_activation"),
    ({"num_experts": 8}, "num_experts"),
    (EXPERTS | {"top_k_experts": 9}, "top_k_experts"),
    ({"per_layer_config": {"1": {"head_dim": 64}}}, "per_layer_config"),
    ({"per_layer_config": {"0": {"head_dim": 64}}}, "per_layer_config.0"),
    ({"per_layer_config": {"9": {"head_dim": 64}}}, "per_layer_config.9"),
    ({"per_layer_config": {"1": {"sliding_window": 4}}}, "per_layer_config.1"),
    ({"per_layer_config": None, "global_head_dim": 33}, "num_global_key_value_heads"),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e6}} | LOCAL},
     "rope_parameters.full_attention.rope_type"),
    ({"rope_parameters": {"full_attention": {"rope_type": "proportional"}} | LOCAL},
     "rope_parameters.full_attention.rope_theta"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
     "rope_parameters.sliding_attention.rope_theta"),
    ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
     "rope_parameters.sliding_attention.rope_type"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "name"), REFUSED)
def test_a_config_that_cannot_be_is_refused_by_name(folder, tmp_path, change, name):
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ModelFileError, match=name.replace(".", r"\.")):
        config_from_hf(tmp_path)
