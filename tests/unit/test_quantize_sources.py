"""Each form in which other programs store weights as the source of `metal-marlin quantize`: the
numbers that it becomes, and what the command says that it has lost; or a refusal by name."""

import json
import re

import numpy as np
import pytest
from foreign_files import AWQ, BNB, GPTQ, config, ct, write_tensors
from foreign_matrices import MATRICES, matrix
from ggml_blocks import random_blocks
from gguf_builder import build, f32
from tiny_checkpoints import load_packed

from marlin import cli
from marlin.models.plan_folder import plan_folder
from marlin.weights import ggml_types
from marlin.weights.block_types import REPACKED
from marlin.weights.formats import dequantize

HEADS, WIDTH, VOCABULARY = 4, 32, 64
VALUE = "model.layers.0.self_attn.v_proj"
GGUF_NAMES = {
    **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
    **{"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"},
    **{"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm"},
    "post_attention_layernorm": "ffn_norm",
}


def weights(n, k):
    """{name: float32 array} of a Llama of one layer whose matrix of values is [n, k]."""
    shapes = {
        **{"self_attn.q_proj": (HEADS * n, k), "self_attn.k_proj": (n, k)},
        **{"self_attn.v_proj": (n, k), "self_attn.o_proj": (k, HEADS * n)},
        **{"mlp.gate_proj": (WIDTH, k), "mlp.up_proj": (WIDTH, k), "mlp.down_proj": (k, WIDTH)},
        **{"input_layernorm": (k,), "post_attention_layernorm": (k,)},
    }
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    shapes |= {"model.embed_tokens.weight": (VOCABULARY, k), "model.norm.weight": (k,)}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def llama(n, k):
    sizes = {"num_hidden_layers": 1, "hidden_size": k, "intermediate_size": WIDTH, "head_dim": n}
    sizes |= {"num_attention_heads": HEADS, "num_key_value_heads": 1, "vocab_size": VOCABULARY}
    others = {"max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | sizes | others


def write_folder(folder, said, parts, shape, prefix="model."):
    """A folder whose matrix of values is `parts`, and what its other tensors are."""
    folder.mkdir()
    plain = weights(*shape)
    del plain[f"{VALUE}.weight"]
    tensors = plain | {f"{VALUE}.{part}": tensor for part, tensor in parts.items()}
    named = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", named)
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return plain


def gguf_metadata(n, k):
    """Of llama(n, k), with a vocabulary that `quantize` can write."""
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": k}
    sizes |= {"feed_forward_length": WIDTH, "attention.head_count": HEADS}
    sizes |= {"attention.head_count_kv": 1, "attention.key_length": n}
    sizes |= {"attention.value_length": n, "rope.dimension_count": n}
    return [
        ("general.architecture", "str", "llama"),
        *((f"llama.{name}", "u32", number) for name, number in sizes.items()),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        ("tokenizer.ggml.model", "str", "gpt2"),
        ("tokenizer.ggml.pre", "str", "smollm"),
        ("tokenizer.ggml.tokens", "arr:str", [chr(48 + i) for i in range(VOCABULARY)]),
        ("tokenizer.ggml.token_type", "arr:i32", [1] * VOCABULARY),
        ("tokenizer.ggml.merges", "arr:str", []),
        ("tokenizer.ggml.eos_token_id", "u32", 3),
    ]


def gguf_tensors(n, k, type_name, raw):
    """[(name, type, shape, bytes)]; its queries and keys are in the order of other programs."""
    found = []
    for name, array in weights(n, k).items():
        stem = name.removeprefix("model.layers.0.").removesuffix(".weight")
        edge = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
        written = edge[name] if name in edge else f"blk.0.{GGUF_NAMES[stem]}"
        dtype, data = (type_name, raw) if name.startswith(VALUE) else ("F32", f32(array))
        found.append((f"{written}.weight", dtype, array.shape, data))
    return found


def run(source, destination, capsys):
    """What `quantize --format int8 --group-size 32` prints."""
    words = ["quantize", str(source), str(destination), "--format", "int8", "--group-size", "32"]
    assert cli.main(words, environ={}) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def stored(folder, name, rows):
    return dequantize(load_packed(folder, name, rows))


def assert_is(folder, values):
    """The matrix of values in a native folder: int8, so off by half a step of a group at most."""
    found = stored(folder, VALUE, len(values))
    groups = (len(values), -1, 32)
    errors = np.abs(found - values).reshape(groups).max(axis=2)
    largest = np.abs(values).reshape(groups).max(axis=2)
    # The step is rounded to float16, by 2^-11 of it, which the largest code feels 127 times.
    assert (errors <= largest * (0.501 / 127 + 2**-11)).all()
    assert np.abs(errors).max() < 0.01 * np.abs(values).max()
    assert plan_folder(str(folder)).format == "int8"


def assert_says_what_is_lost(said, folder, plain, values):
    """By name of the part, with two digits, over all its matrices."""
    square = norm = 0.0
    for part, whole in [*plain.items(), (f"{VALUE}.weight", values)]:
        if ".self_attn." in part:
            found = stored(folder, part.removesuffix(".weight"), len(whole))
            square += ((found - whole) ** 2).sum(dtype=np.float64)
            norm += (whole**2).sum(dtype=np.float64)
    (shown,) = re.findall(r"attention +relative RMS error (\S+)", said)
    assert float(shown) == pytest.approx(np.sqrt(square / norm), rel=0.06)


@pytest.mark.parametrize("name", MATRICES)
def test_a_folder_of_each_form_becomes_native_and_its_loss_is_said(name, tmp_path, capsys):
    settings, parts, values = matrix(name)
    plain = write_folder(tmp_path / "source", llama(*values.shape) | settings, parts, values.shape)
    said = run(tmp_path / "source", tmp_path / "native", capsys)
    assert_is(tmp_path / "native", values)
    assert_says_what_is_lost(said, tmp_path / "native", plain, values)
    written = json.loads((tmp_path / "native" / "config.json").read_text())
    assert "quantization_config" not in written and written["quantization"]["version"] == 1


@pytest.mark.parametrize("type_name", [*REPACKED, "F16", "BF16"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_gguf_file_of_each_type_whole_or_in_parts_becomes_native(
    type_name, parts, tmp_path, capsys
):
    n, k = 16, 256
    if type_name in REPACKED:
        raw = random_blocks(type_name, n, k)
    else:
        halves = np.random.default_rng(1).standard_normal((n, k)).astype(np.float16)
        raw = halves if type_name == "F16" else halves.astype(np.float32).view(np.uint16)[:, 1::2]
    raw = np.ascontiguousarray(raw).tobytes()
    values = ggml_types.dequantize(type_name, np.frombuffer(raw, np.uint8), (n, k))
    tensors, metadata = gguf_tensors(n, k, type_name, raw), gguf_metadata(n, k)
    first = tmp_path / "m.gguf"
    if parts == 1:
        first.write_bytes(build(metadata, tensors))
    else:
        first = tmp_path / "m-00001-of-00002.gguf"
        count = [("split.count", "u16", 2), ("split.tensors.count", "i32", len(tensors))]
        halves = metadata + count + [("split.no", "u16", 0)], count + [("split.no", "u16", 1)]
        first.write_bytes(build(halves[0], tensors[:3]))
        (tmp_path / "m-00002-of-00002.gguf").write_bytes(build(halves[1], tensors[3:]))
    run(first, tmp_path / "native", capsys)
    assert_is(tmp_path / "native", values)


def test_the_language_model_of_a_wrapper_becomes_native_without_its_tower(tmp_path, capsys):
    settings, parts, values = matrix("mlx affine 4")
    text = llama(*values.shape) | {"model_type": "mistral"}
    said = {"model_type": "mistral3", "text_config": text, "vision_config": {}} | settings
    write_folder(tmp_path / "source", said, parts, values.shape, "language_model.model.")
    run(tmp_path / "source", tmp_path / "native", capsys)
    assert_is(tmp_path / "native", values)


REFUSED = {
    "bitsandbytes of 8 bits": (config(BNB, load_in_4bit=False, load_in_8bit=True), "load_in_"),
    "gptq of own settings": (config(GPTQ, dynamic={"-:.*": {}}), "dynamic"),
    "awq of another order": (config(AWQ, version="gemv"), "version"),
    "compressed-tensors that are sparse": (
        config(ct("pack-quantized")["quantization_config"], sparsity_config={"format": "dense24"}),
        "sparsity_config",
    ),
    "mlx of an unknown mode": (
        {"quantization": {"group_size": 32, "bits": 4, "mode": "x"}},
        "mode",
    ),
    "a method that nobody reads": (config({"quant_method": "aqlm"}), "quant_method"),
    "a native folder": (
        {"quantization": {"version": 1, "format": "int8", "group_size": 32, "tile_rows": 16}},
        "quantized already",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_quantize_cannot_read_is_refused_by_name(name, tmp_path, capsys):
    settings, word = REFUSED[name]
    plain = {"weight": weights(16, 64)[f"{VALUE}.weight"]}
    write_folder(tmp_path / "source", llama(16, 64) | settings, plain, (16, 64))
    assert cli.main(["quantize", str(tmp_path / "source"), str(tmp_path / "out")], environ={}) == 1
    error = capsys.readouterr().err
    assert word in error and "config.json" in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("type_name", ["IQ1_S", "IQ2_XXS", "IQ3_S"])
def test_gguf_types_that_are_not_read_are_refused_by_name(type_name, tmp_path, capsys):
    tensors = gguf_tensors(16, 256, type_name, bytes(16 * 128))
    (tmp_path / "m.gguf").write_bytes(build(gguf_metadata(16, 256), tensors))
    words = ["quantize", str(tmp_path / "m.gguf"), str(tmp_path / "out")]
    assert cli.main(words, environ={}) == 1
    error = capsys.readouterr().err
    assert type_name in error and "blk.0.attn_v.weight" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]
