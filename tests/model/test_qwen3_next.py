"""Qwen3-Next and Qwen3.5, whose delta rules keep a state: logits of transformers, and the same bits
however an answer came about."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from reference_models import build, logits_of
from safetensors.numpy import load_file, save_file
from test_families_on_metal import reference
from test_native_folder import convert
from test_parity import SENSITIVITY, TOLERANCE, assert_close
from test_speculation import answers, answers_and_drafts, know, read, serving, submit
from tiny_models import logits_by_chunks, random_tokens, running

from marlin import cli
from marlin.errors import ModelFileError
from marlin.models import source as source_module
from marlin.models.plan_folder import plan_folder
from marlin.models.registry import config_from_gguf, config_from_hf, family_of
from marlin.models.source import open_source
from marlin.weights.gguf import GGUFFile
from marlin.weights.tensor_file import read_bytes

# Small models as llama.cpp's own converter and mlx-lm wrote them, and the logits of transformers.
DATA = Path(__file__).parents[1] / "data"
FILES = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_wrapped"]
LENGTH = 200
FAMILIES = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"]
PROMPTS = [random_tokens(count, 97, seed=count) for count in (1, 3, 16, 40, 100, 210)]
ASKED = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 40, "num_logprobs": 1}

assert know  # a fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3_5")
    build("qwen3_5_text").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alone(folder):
    """What each of PROMPTS is answered with nobody beside it and nothing cached."""
    with serving(folder, blocks=(40, 16), states=3) as engine:
        engine.prefix_cache = "off"
        return answers(engine, PROMPTS, **ASKED)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_any_size_agree_with_transformers_and_with_each_other(family, tmp_path):
    model, token_ids = build(family), random_tokens(LENGTH, 97)
    model.save_pretrained(tmp_path)
    expected = logits_of(model, token_ids)
    with running(tmp_path) as runner:
        decoded = logits_by_chunks(runner, token_ids, [1])
        chunks = logits_by_chunks(runner, token_ids, [64, 33, 1, 2, 3])
    assert_close(decoded, expected)
    for position, logits in chunks.items():
        np.testing.assert_array_equal(logits, decoded[position])


@pytest.mark.parametrize(
    "change",
    [
        {"partial_rotary_factor": 0.5, "rope_parameters": None},
        {"layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention"]},
    ],
    ids=["turned part", "kinds"],
)
def test_the_reference_would_show_a_feature_that_is_ignored(change):
    token_ids = random_tokens(60, 97)
    on, off = (logits_of(build("qwen3_5_text", **c), token_ids) for c in ({}, change))
    assert np.abs(on - off).max() > SENSITIVITY


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_llama_cpps_converter_gives_the_logits_of_transformers(name):
    """Heads of values are in turns of those of keys in some, and decays stand for themselves."""
    path = DATA / "families" / f"{name}.gguf"
    token_ids, expected = reference(path)
    with running(path) as runner:
        found = logits_by_chunks(runner, token_ids, [1])
    error = np.abs(np.stack(list(found.values())) - expected).max()
    assert error < TOLERANCE * max(1, expected.std())


def test_a_folder_of_mlx_gives_nearly_what_mlx_lm_answers():
    """Its norms hold 1 + w. Activations of packed weights are int8 on a CPU, so that of a mixture
    tokens would choose other experts: test_families_on_metal.py holds those."""
    path = DATA / "mlx_hybrid" / "qwen3_5_text"
    token_ids = np.load(path / "ids.npy").ravel().tolist()
    expected = np.load(path / "logits.npy").reshape(len(token_ids), -1)
    assert plan_folder(str(path)).format == "mlx"
    with running(path) as runner:
        found = logits_by_chunks(runner, token_ids, [1])
    errors = np.stack(list(found.values())) - expected
    assert np.sqrt((errors**2).mean()) < 0.05 * expected.std()


def test_layers_that_guess_tokens_ahead_are_left_unread_and_named(folder, tmp_path, caplog):
    tensors = load_file(folder / "model.safetensors")
    guessing = {"mtp.norm.weight": np.ones(64, np.float32), "mtp.fc.weight": np.ones((64, 128))}
    save_file(tensors | guessing, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with caplog.at_level(logging.INFO):
        plan_folder(str(tmp_path))
    assert "mtp. (2 tensors)" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_survive_being_written(family, tmp_path):
    values = build(family).config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = config_from_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(family_of(config).hf_config(config)))
    assert config_from_hf(tmp_path) == config


@pytest.mark.parametrize("name", FILES)
def test_a_folder_of_a_file_s_tensors_is_the_same_model(name, tmp_path):
    """Its decays stand for themselves, and its heads are in another order, as config.json says."""
    path = DATA / "families" / f"{name}.gguf"
    source = open_source(path)
    values = family_of(source.config).hf_config(source.config)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert config_from_hf(tmp_path) == source.config
    tensors = {
        at.name: read_bytes(at.info).view(np.float32).reshape(at.info.shape) - np.float32(at.excess)
        for at in source.tensors
    }
    save_file(tensors, tmp_path / "model.safetensors")
    token_ids, expected = reference(path)
    with running(tmp_path) as runner:
        found = logits_by_chunks(runner, token_ids, [1])
    error = np.abs(np.stack(list(found.values())) - expected).max()
    assert error < TOLERANCE * max(1, expected.std())


def test_quantize_makes_a_native_folder_of_a_file(tmp_path, monkeypatch):
    """Whose vocabulary is a stub."""
    tokenizer = SimpleNamespace(save=lambda folder: None)
    monkeypatch.setattr(source_module, "tokenizer_from_gguf", lambda *_: tokenizer)
    path = DATA / "families" / "qwen3_5_text.gguf"
    token_ids, expected = reference(path)
    convert(path, tmp_path / "made", "int8", 32)
    with running(tmp_path / "made") as runner:
        found = logits_by_chunks(runner, token_ids, [1])
    errors = np.stack(list(found.values())) - expected
    assert np.sqrt((errors**2).mean()) < 0.15 * expected.std()


@pytest.mark.parametrize("section", [{"heads_take_turns": 1}, {"decay": True}, {}])
def test_a_layout_of_heads_that_is_not_said_whole_is_refused(folder, tmp_path, section):
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"linear_layout": section}))
    with pytest.raises(ModelFileError, match=r"linear_layout\."):
        config_from_hf(tmp_path)


@pytest.mark.parametrize("kind", ["transformers", "mlx"])
def test_a_folder_that_quantize_wrote_gives_nearly_the_same_logits(kind, tmp_path):
    original = DATA / "mlx_hybrid" / "qwen3_5_text"
    token_ids = np.load(original / "ids.npy").ravel().tolist()
    if kind == "mlx":
        expected = np.load(original / "logits.npy").reshape(len(token_ids), -1)
    else:
        model, original = build("qwen3_5_text", hidden_size=128), tmp_path / "original"
        model.save_pretrained(original)
        expected = logits_of(model, token_ids)
    convert(original, tmp_path / "made", "int8", 32)
    with running(tmp_path / "made") as runner:
        found = logits_by_chunks(runner, token_ids, [1])
    errors = np.stack(list(found.values())) - expected
    assert np.sqrt((errors**2).mean()) < 0.15 * expected.std()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["linear_attention"] * 3}, "layer_types"),
        ({"layer_types": ["conv", "linear_attention"] * 2}, "layer_types"),
        ({"linear_conv_kernel_dim": 9}, "linear_conv_kernel_dim is 9"),
        ({"linear_num_value_heads": 5}, "linear_num_value_heads is 5; .* multiple of the 2"),
        ({"linear_key_head_dim": 144}, "linear_key_head_dim is 144; .* 128 at most"),
        ({"linear_value_head_dim": 40}, "linear_value_head_dim is 40"),
        ({"attn_output_gate": False}, "attn_output_gate"),
    ],
)
def test_a_config_that_cannot_be_is_refused(folder, tmp_path, change, message):
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ModelFileError, match=message):
        config_from_hf(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ssm.inner_size": 63}, "ssm.inner_size is 63"),
        ({"ssm.state_size": 24}, "ssm.state_size is 24"),
        ({"ssm.group_count": 3}, "ssm.time_step_rank is 4; .* multiple of the 3"),
        ({"attention.recurrent_layers": np.array([1, 0, 1])}, "recurrent_layers"),
    ],
)
def test_a_header_that_cannot_be_is_refused(change, message):
    file = GGUFFile(DATA / "families" / "qwen3_5_text.gguf")
    file.metadata.update({f"qwen35.{name}": value for name, value in change.items()})
    with pytest.raises(ModelFileError, match=message):
        config_from_gguf(file)


def test_a_header_without_the_kinds_of_layers_has_attention_in_every_fourth():
    file = GGUFFile(DATA / "families" / "qwen3_5_text.gguf")
    stated = config_from_gguf(file)
    del file.metadata["qwen35.attention.recurrent_layers"]
    assert config_from_gguf(file) == stated


@pytest.mark.parametrize(
    ("count", "states", "preempts"), [(120, 80, False), (30, 80, True), (30, 13, True)]
)
def test_requests_side_by_side_get_the_same_bits(folder, alone, count, states, preempts):
    """Also where there are no slots but those that must be."""
    sizes = {"sequences": len(PROMPTS), "blocks": (count, 16), "states": states}
    with serving(folder, **sizes) as engine:
        requests = [submit(engine, p, **{"seed": i} | ASKED) for i, p in enumerate(PROMPTS)]
        assert [read(request) for request in requests] == alone
        assert (sum(request.num_preemptions for request in requests) > 0) == preempts


@pytest.mark.parametrize(("right", "states"), [(2, 90), (3, 15), (100, 90)])
def test_wrong_guesses_are_undone(folder, alone, know, right, states):
    know([token_ids for token_ids, _, _ in alone[::2]], right)
    sizes = {"blocks": (120, 16), "states": states, "drafts": 16}
    with serving(folder, sequences=len(PROMPTS), **sizes) as engine:
        found, num_drafts, num_right = answers_and_drafts(engine, PROMPTS, **ASKED)
    assert found == alone and 0 < num_right and (right == 100 or num_right < num_drafts)


def test_choices_and_the_next_turn_begin_at_the_last_full_block(folder):
    turns = [random_tokens(100, 97, seed) for seed in range(3)]
    expected, found, cached = [], [], []
    for results, mode in ((expected, "off"), (found, "per-key")):
        with serving(folder, blocks=(60, 16), states=24) as engine:
            engine.prefix_cache = mode
            prompt = []
            for turn in turns:
                prompt = prompt + turn
                for seed in (1, 2):
                    request = submit(engine, prompt, **ASKED | {"seed": seed})
                    results.append(read(request))
                    cached.append(request.num_cached_tokens)
                prompt = prompt + results[-1][0]
    assert found == expected
    assert cached == [0] * 6 + [0, 96, 128, 224, 272, 368]


def test_it_is_measured_and_described(capsys):
    path = str(DATA / "families" / "qwen3_5_text.gguf")
    assert cli.main(["info", path]) == 0
    assert "KV cache      0.25 KiB a token, and 2 MiB of states" in capsys.readouterr().out
    options = ["--prompt-tokens", "300", "--output-tokens", "3", "--repeat", "1"]
    assert cli.main(["bench", path, *options]) == 0
    assert "300" in capsys.readouterr().out
