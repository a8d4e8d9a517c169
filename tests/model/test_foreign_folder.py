"""Folders that other programs quantized, against transformers running the weights they stand for,
and against the logits of mlx-lm."""

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_files import GPTQ, bf16, bf16_values, bit_stream, gptq_parts, mlx_affine, write_tensors
from pytorch import torch
from reference_models import build, logits_of, tensors_of, with_weights
from safetensors.numpy import load_file
from test_native_folder import SIZES, assert_near, convert, stored_weights
from test_shared_weights import fd, load  # noqa: F401
from tiny_models import (
    INSTRUCTION_SETS,
    logits_by_chunks,
    logits_of_positions,
    random_tokens,
    running,
    weight_values,
)

from marlin.models.checkpoint import open_checkpoint

# Random models that mlx-lm quantized to 4 bits, and its logits in float32.
MLX = Path(__file__).parents[1] / "data" / "mlx"


@pytest.mark.parametrize("name", sorted(path.name for path in MLX.iterdir()))
def test_a_folder_that_mlx_lm_wrote_gives_its_logits(name):
    token_ids, expected = (np.load(MLX / name / f"{part}.npy") for part in ("ids", "logits"))
    with running(MLX / name, sequences=token_ids.size) as runner:
        found = logits_of_positions(runner, token_ids.reshape(-1).tolist())
        assert open_checkpoint(MLX / name, runner.device).format == "mlx"
    assert_near(found, expected.reshape(found.shape))


def mixed(name):
    """Settings of a module: what mixtures of bits do to a folder, one dense matrix among them."""
    if "down_proj" in name:
        return {"bits": 6, "group_size": 64}
    if "layers.1.self_attn.v_proj" in name:
        return False
    return {"bits": 8, "group_size": 32} if "embed" in name or "lm_head" in name else None


def write_mlx(folder, model, bits, group_size, own=lambda name: None):
    """The folder that MLX makes of a model; returns the values of its tensors."""
    folder.mkdir()
    config = json.loads(model.config.to_json_string(use_diff=False)) | {
        "quantization": {"group_size": group_size, "bits": bits, "mode": "affine"}
    }
    tensors, stored = {}, {}
    for name, values in tensors_of(model).items():
        stem, said = name.removesuffix(".weight"), own(name)
        if said is not None:
            config["quantization"][stem] = said
        if values.ndim < 2 or said is False:
            tensors[name], stored[name] = bf16(values), bf16_values(values)
            continue
        settings = said or {"bits": bits, "group_size": group_size}
        parts, stored[name] = mlx_affine(values, **settings)
        tensors |= {f"{stem}.{part}": tensor for part, tensor in parts.items()}
    config["quantization_config"] = config["quantization"]
    write_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return {name: values.astype(np.float32) for name, values in stored.items()}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_mixture_of_bits_agrees_with_transformers_running_its_weights(family, tmp_path):
    model = build(family, **SIZES)
    stored = write_mlx(tmp_path / "mlx", model, 4, 32, mixed)
    token_ids = random_tokens(80, 97)
    expected = logits_of(with_weights(model, stored), token_ids)
    with running(tmp_path / "mlx", sequences=16) as runner:
        assert_near(logits_of_positions(runner, token_ids), expected)
        found = logits_by_chunks(runner, token_ids, [33])
    assert_near(np.stack(list(found.values())), expected[list(found)])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_bits_that_become_int8_with_a_bias_run_on_each_instruction_set(isa, tmp_path):
    model = build("llama", **SIZES, tie_word_embeddings=True)
    stored = write_mlx(tmp_path / "mlx", model, 5, 64)
    token_ids = random_tokens(80, 97)
    expected = logits_of(with_weights(model, stored), token_ids)
    with running(tmp_path / "mlx", isa=isa, sequences=16) as runner:
        assert_near(logits_of_positions(runner, token_ids), expected)


def test_workers_share_what_one_of_them_has_repacked(tmp_path, fd, load):  # noqa: F811
    model = build("llama", **SIZES)
    stored = write_mlx(tmp_path / "mlx", model, 4, 64, mixed)
    load(tmp_path / "mlx", fd)
    reader, mapped = load(tmp_path / "mlx", fd, filled=True)
    for name, values in stored.items():
        if values.ndim == 2:
            np.testing.assert_array_equal(weight_values(mapped.weights[name]), values)
    # What it holds itself is its norms, and the mapped slab is counted apart.
    assert reader.info()["allocated_bytes"] < 1 << 16


def test_memory_is_counted_before_any_weight_is_repacked(tmp_path, load, caplog):  # noqa: F811
    model = build("llama", **SIZES)
    write_mlx(tmp_path / "mlx", model, 4, 64, mixed)
    with caplog.at_level("INFO"):
        device, _loaded = load(tmp_path / "mlx")
    # Of two layers' fourteen one is dense and two have six bits; embedding and output have eight.
    assert "matrices that are repacked from mlx: 4 as int8, 11 as int4" in caplog.text
    planned = open_checkpoint(tmp_path / "mlx", device).weight_bytes
    info = device.info()
    held = info["allocated_bytes"] + info["mapped_bytes"]
    # RoPE's frequencies are held, and not of the file.
    assert abs(held - planned) < 1 << 10


def test_quantize_makes_a_native_folder_of_one_that_mlx_wrote(tmp_path):
    model = build("llama", **SIZES)
    stored = write_mlx(tmp_path / "mlx", model, 4, 32, mixed)
    native = convert(tmp_path / "mlx", tmp_path / "native", "int8", 32)
    assert "quantization_config" not in json.loads((native / "config.json").read_text())
    for name, values in stored_weights(native, model).items():
        # int8 in groups of 32 (docs/formats.md, "How codes are chosen"); what is no matrix is kept.
        error = (values - stored[name]).std() / stored[name].std()
        assert error < (0.0065 if values.ndim == 2 else 1e-9), name


def gptq(values, group_size=32):
    """({part: tensor}, the float32 matrix), of 4 bits with zeros, as version 1 stores them."""
    groups = values.reshape(len(values), -1, group_size)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    scales = ((high - low) / 14).astype(np.float16)
    step = scales.astype(np.float32)
    zeros = np.clip(np.rint(-low / step), 1, 15).astype(np.uint8)
    codes = np.clip(np.rint(groups / step[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    parts = {
        "qweight": bit_stream(codes.reshape(values.shape), 4).T.copy().view(np.int32),
        "qzeros": bit_stream(zeros.T - np.uint8(1), 4).view(np.int32),
        "scales": scales.T.copy(),
    }
    stood_for = step[..., None] * (codes.astype(np.float32) - zeros[..., None])
    return parts, stood_for.reshape(values.shape)


def fp8(values):
    """({part: tensor}, the float32 matrix), of E4M3 with a scale for 128 by 128."""
    n, k = (-(-size // 128) for size in values.shape)
    scales = np.empty((n, k), np.float32)
    bits, stood_for = np.empty(values.shape, np.uint8), np.empty_like(values)
    for i, j in np.ndindex(n, k):
        block = np.s_[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
        scales[i, j] = np.abs(values[block]).max() / 448
        rounded = torch.from_numpy(values[block] / scales[i, j]).to(torch.float8_e4m3fn)
        bits[block] = rounded.view(torch.uint8).numpy()
        stood_for[block] = rounded.float().numpy() * scales[i, j]
    return {"weight": ("F8_E4M3", bits), "weight_scale_inv": scales}, stood_for


@pytest.mark.parametrize(
    "family, encode, settings",
    [
        ("llama", gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
        ("qwen3", fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    ],
)
def test_a_folder_of_another_program_agrees_with_transformers_running_its_weights(
    family, encode, settings, tmp_path
):
    sizes = SIZES | {"vocab_size": 96, "intermediate_size": 160}
    model, tensors, stored = build(family, **sizes), {}, {}
    for name, values in tensors_of(model).items():
        if "_proj." not in name:
            tensors[name], stored[name] = bf16(values), bf16_values(values)
            continue
        parts, stored[name] = encode(values)
        stem = name.removesuffix(".weight")
        tensors |= {f"{stem}.{part}": tensor for part, tensor in parts.items()}
    config = json.loads(model.config.to_json_string(use_diff=False))
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    write_tensors(tmp_path / "model.safetensors", tensors)
    token_ids = random_tokens(80, 96)
    expected = logits_of(with_weights(model, stored), token_ids)
    with running(tmp_path, sequences=16) as runner:
        assert open_checkpoint(tmp_path, runner.device).format == settings["quant_method"]
        assert_near(logits_of_positions(runner, token_ids), expected)


def test_experts_of_gptq_one_by_one_give_the_logits_of_their_values(tmp_path):
    widths = {"hidden_size": 128, "moe_intermediate_size": 64, "intermediate_size": 64}
    build("qwen3_moe", **widths).save_pretrained(tmp_path / "original")
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    packed, plain = {}, {}
    for name, values in load_file(tmp_path / "original" / "model.safetensors").items():
        packed[name] = plain[name] = values
        if ".experts." in name:
            parts, plain[name] = gptq_parts(4, 1, n=values.shape[0], k=values.shape[1])
            stem = name.removesuffix("weight")
            packed |= {part.replace("m.", stem, 1): array for part, array in parts.items()}
            del packed[name]
    found, token_ids = [], random_tokens(20, 97)
    for tensors, more in ((packed, {"quantization_config": GPTQ}), (plain, {})):
        folder = tmp_path / f"folder{len(found)}"
        folder.mkdir()
        write_tensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(config | more))
        with running(folder, sequences=16) as runner:
            found.append(logits_of_positions(runner, token_ids))
    # Activations are rounded to int8 beside packed weights.
    assert np.abs(found[0] - found[1]).max() < 0.03 * found[1].std()
