"""LFM2, dense and with experts: short convolutions whose state is kept, shared, given up and taken
back: logits of transformers, and the same bits however an answer came about."""

import json
from pathlib import Path

import numpy as np
import pytest
from pytorch import torch
from reference_models import build, logits_of
from test_mlx_experts import values_of, with_fused_experts
from test_parity import SENSITIVITY, TOLERANCE, assert_close
from test_speculation import answers, answers_and_drafts, know, read, serving, submit
from tiny_models import logits_by_chunks, random_tokens, running
from transformers import AutoConfig, AutoModelForCausalLM

from marlin import cli
from marlin.errors import ModelFileError
from marlin.models.plan_folder import plan_folder
from marlin.models.registry import config_from_gguf, config_from_hf, family_of
from marlin.weights.gguf import GGUFFile

# A small model as llama.cpp's own converter wrote it, and the logits of transformers.
DATA = Path(__file__).parents[1] / "data"
FAMILIES = ["lfm2", "lfm2_moe"]
CONVERTED = {family: DATA / "families" / f"{family}.gguf" for family in FAMILIES}
LENGTH = 200
PROMPTS = [random_tokens(count, 97, seed=count) for count in (1, 3, 16, 40, 100, 210)]
ASKED = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 40, "num_logprobs": 1}

assert know  # a fixture


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{family: a folder}."""
    found = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, path in found.items():
        build(family).save_pretrained(path)
    return found


@pytest.fixture(scope="module")
def folder(folders):
    return folders["lfm2"]


@pytest.fixture(scope="module")
def alone_by_family(folders):
    """{family: what each of PROMPTS is answered with nobody beside it and nothing cached}."""
    found = {}
    for family, folder in folders.items():
        with serving(folder, blocks=(40, 16), states=3) as engine:
            engine.prefix_cache = "off"
            found[family] = answers(engine, PROMPTS, **ASKED)
    return found


@pytest.fixture(scope="module")
def alone(alone_by_family):
    return alone_by_family["lfm2"]


PUBLISHED = {"conv_bias": False, "conv_L_cache": 3, "tie_word_embeddings": True}
NEITHER = {"norm_topk_prob": False, "use_expert_bias": False, "num_dense_layers": 0}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("lfm2", {}, id="of four taps with biases"),
        pytest.param("lfm2", PUBLISHED, id="as published"),
        pytest.param("lfm2_moe", {}, id="with experts"),
        pytest.param("lfm2_moe", PUBLISHED | NEITHER, id="with experts, neither ranked nor normed"),
    ],
)
def test_steps_of_any_size_agree_with_transformers_and_with_each_other(family, changes, tmp_path):
    model, token_ids = build(family, **changes), random_tokens(LENGTH, 97)
    model.save_pretrained(tmp_path)
    expected = logits_of(model, token_ids)
    with running(tmp_path) as runner:
        decoded = logits_by_chunks(runner, token_ids, [1])
        chunks = logits_by_chunks(runner, token_ids, [64, 33, 1, 2, 3])
    assert_close(decoded, expected)
    for position, logits in chunks.items():
        np.testing.assert_array_equal(logits, decoded[position])


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"]}),
        ("lfm2_moe", {"use_expert_bias": False}),
        ("lfm2_moe", {"norm_topk_prob": False}),
        ("lfm2_moe", {"routed_scaling_factor": 1.0}),
        ("lfm2_moe", {"num_dense_layers": 0}),
    ],
)
def test_the_reference_would_show_a_feature_that_is_ignored(family, change):
    token_ids = random_tokens(60, 97)
    on, off = (logits_of(build(family, **c), token_ids) for c in ({}, change))
    assert np.abs(on - off).max() > SENSITIVITY


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_llama_cpps_converter_gives_the_logits_of_transformers(family):
    file = CONVERTED[family]
    token_ids = np.load(file.with_suffix(".ids.npy")).ravel().tolist()
    expected = np.load(file.with_suffix(".logits.npy")).reshape(len(token_ids), -1)
    with running(file) as runner:
        found = logits_by_chunks(runner, token_ids, [1])
    error = np.abs(np.stack(list(found.values())) - expected).max()
    assert error < TOLERANCE * max(1, expected.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_mlx_holds_what_mlx_lm_reads(family):
    """Its values, given to transformers, are what mlx-lm answers."""
    folder = DATA / "mlx_hybrid" / family
    plan = plan_folder(str(folder))
    assert plan.format == "mlx"
    found = {stored.tensor.name: values_of(stored) for stored in plan.tensors}
    found = with_fused_experts(found)
    found["lm_head.weight"] = found["model.embed_tokens.weight"]
    config = json.loads((folder / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval().float()
    shapes = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    state = {name: torch.from_numpy(found[name].reshape(shape)) for name, shape in shapes.items()}
    model.load_state_dict(state)
    token_ids, expected = (np.load(folder / f"{name}.npy") for name in ("ids", "logits"))
    logits = logits_of(model, token_ids.ravel().tolist(), half_cache=False)
    assert np.abs(logits - expected.reshape(logits.shape)).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_survive_being_written(folders, family, tmp_path):
    of_file = config_from_gguf(GGUFFile(CONVERTED[family]))
    for config in (config_from_hf(folders[family]), of_file):
        (tmp_path / "config.json").write_text(json.dumps(family_of(config).hf_config(config)))
        assert config_from_hf(tmp_path) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["conv"] * 3}, "layer_types"),
        ({"layer_types": ["conv", "linear_attention", "conv", "conv"]}, "layer_types"),
        ({"conv_L_cache": 9}, "conv_L_cache is 9; it must be an integer from 2 to 8"),
        ({"conv_L_cache": 1}, "conv_L_cache"),
        ({"norm_eps": 1e-6}, "rms_norm_eps"),
    ],
)
def test_a_config_that_cannot_be_is_refused(folder, tmp_path, change, message):
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ModelFileError, match=message.split(" ")[0]):
        config_from_hf(tmp_path)


@pytest.mark.parametrize(
    ("family", "count", "states", "preempts"),
    [
        ("lfm2", 120, 80, False),
        ("lfm2", 30, 80, True),
        ("lfm2", 30, 13, True),
        ("lfm2_moe", 30, 13, True),
    ],
)
def test_requests_side_by_side_get_the_same_bits(
    folders, alone_by_family, family, count, states, preempts
):
    """Also where there are no slots but those that must be."""
    sizes = {"sequences": len(PROMPTS), "blocks": (count, 16), "states": states}
    with serving(folders[family], **sizes) as engine:
        requests = [submit(engine, p, **{"seed": i} | ASKED) for i, p in enumerate(PROMPTS)]
        assert [read(request) for request in requests] == alone_by_family[family]
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
    # As with windows: the last full block of the 139, or 279, tokens computed before; for the
    # choice more that of its prompt of 100, 240 or 380.
    assert cached == [0] * 6 + [0, 96, 128, 224, 272, 368]


def test_a_shared_beginning_is_computed_once_more_and_then_kept(folder):
    system = random_tokens(190, 97, seed=7)
    prompts = [system + random_tokens(100, 97, seed) for seed in range(20, 23)]
    results, cached = [], []
    for mode in ("off", "per-key"):
        with serving(folder, blocks=(120, 16), states=24) as engine:
            engine.prefix_cache = mode
            for prompt in prompts:
                request = submit(engine, prompt, max_tokens=9)
                results.append(read(request))
                cached.append(request.num_cached_tokens)
    assert results[:3] == results[3:]
    # Steps of 64 tokens leave states at 64, 128 and 192 - 2; the second request leaves one at 176.
    assert cached == [0] * 3 + [0, 128, 176]


def test_it_is_measured_and_described(capsys):
    assert cli.main(["info", str(CONVERTED["lfm2"])]) == 0
    assert "KV cache      0.125 KiB a token, and 1 MiB of states" in capsys.readouterr().out
    options = ["--prompt-tokens", "300", "--output-tokens", "3", "--repeat", "1"]
    assert cli.main(["bench", str(CONVERTED["lfm2"]), *options]) == 0
    assert "300" in capsys.readouterr().out
