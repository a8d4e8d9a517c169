"""A model file that cannot be run costs one ModelFileError that names file and tensor, no crash."""

import json
import os
import re

import gguf_builder
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import gguf_names, open_device, random_tensors, tiny_config, write_folder

from marlin.commands.quantize import quantize
from marlin.errors import MarlinError, ModelFileError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model
from marlin.models.source import open_source

DOWN = "model.layers.1.mlp.down_proj"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def device():
    opened = open_device(None)
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path):
    """A good folder in Hugging Face form."""
    config = tiny_config(head_dim=32, intermediate_dim=128)
    return write_folder(tmp_path / "model", config, random_tensors(config, seed=0))


def quantized(folder, format):
    """A good native folder made of one in Hugging Face form."""
    native = f"{folder}-{format}"
    quantize(folder, native, format, 32, progress=lambda done, total: None)
    return native


@pytest.fixture
def native(folder):
    return quantized(folder, "int4")


def change_tensors(folder, change):
    """Rewrite a folder's weights after change(tensors)."""
    path = os.path.join(folder, "model.safetensors")
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path)


def change_config(folder, **values):
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config | values, file)


def refusal(path, device):
    """The text of the ModelFileError that loading gives; it names the file or folder."""
    with pytest.raises(ModelFileError) as caught:
        Model(open_checkpoint(path, device))
    assert str(path) in str(caught.value)
    return str(caught.value)


def write_gguf(path, change=lambda tensors: None, metadata=(), blocks=2):
    """A tiny llama GGUF of F32 tensors; change() edits {GGUF name: (kind, shape, raw bytes)}."""
    config = tiny_config(head_dim=32)
    entries = [
        ("general.architecture", "str", "llama"),
        ("llama.context_length", "u32", 512),
        ("llama.embedding_length", "u32", 64),
        ("llama.block_count", "u32", blocks),
        ("llama.feed_forward_length", "u32", 96),
        ("llama.attention.head_count", "u32", 4),
        ("llama.attention.head_count_kv", "u32", 2),
        ("llama.attention.key_length", "u32", 32),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        *metadata,
    ]
    names = gguf_names(config)
    tensors = {
        names[name]: ("F32", values.shape, gguf_builder.f32(values))
        for name, values in random_tensors(config, seed=0).items()
    }
    change(tensors)
    listed = [(name, *stored) for name, stored in tensors.items()]
    path.write_bytes(gguf_builder.build(entries, listed))
    return path


def test_the_models_that_these_tests_break_load_when_whole(folder, native, device, tmp_path):
    for path in (folder, native, write_gguf(tmp_path / "m.gguf")):
        assert len(Model(open_checkpoint(path, device)).spec.layers) == 2


def test_a_path_with_nothing_there_is_refused(device, tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "absent", device)


def test_a_folder_without_weights_is_refused(folder, device):
    os.remove(os.path.join(folder, "model.safetensors"))
    assert "model.safetensors" in refusal(folder, device)


@pytest.mark.parametrize("name", [f"{DOWN}.weight", NORM, "lm_head.weight"])
def test_a_missing_tensor_is_named(folder, device, name):
    change_tensors(folder, lambda tensors: tensors.pop(name))
    assert re.search(f"'{name}': .*missing", refusal(folder, device))


@pytest.mark.parametrize("name", [f"{DOWN}.weight", NORM])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder, device, name):
    def change(tensors):
        tensors[name] = np.zeros((*tensors[name].shape[:-1], 48), np.float32)

    change_tensors(folder, change)
    text = refusal(folder, device)
    assert f"'{name}'" in text and "48" in text and ("64]" in text or "128]" in text)


@pytest.mark.parametrize("name", [f"{DOWN}.weight", NORM])
@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.uint8])
def test_a_tensor_of_another_dtype_is_named_with_those_expected(folder, device, name, dtype):
    def change(tensors):
        tensors[name] = tensors[name].astype(dtype)

    change_tensors(folder, change)
    text = refusal(folder, device)
    assert f"'{name}'" in text and "expected F32 or F16 or BF16" in text


def test_a_head_size_that_the_kernels_cannot_run_is_refused_by_name(tmp_path, device):
    config = tiny_config(head_dim=24)
    folder = write_folder(tmp_path / "model", config, random_tensors(config, seed=0))
    text = refusal(folder, device)
    assert "head_dim is 24" in text and "16" in text


@pytest.mark.parametrize(
    "quantization, expected",
    [
        ({"bits": 4, "group_size": 64}, "mlx has quantized these weights, and no matrix is"),
        ({"version": 2}, "quantization.version is 2; expected 1, of what `metal-marlin quantize`"),
        ("int4", "quantization is 'int4'; expected an object"),
    ],
)
def test_a_quantization_that_the_tensors_or_this_package_do_not_know_is_refused(
    folder, device, quantization, expected
):
    change_config(folder, quantization=quantization)
    text = refusal(folder, device)
    assert "config.json" in text and expected in text


@pytest.mark.parametrize("method", ["vptq", None, 4])
def test_an_unknown_method_of_quantization_is_refused_by_name(folder, device, method):
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    text = refusal(folder, device)
    assert "config.json" in text and "quantization_config.quant_method" in text
    assert repr(method) in text or "is missing" in text


def test_an_unknown_native_format_is_refused(native, device):
    change_config(native, quantization={"version": 1, "format": "int3"})
    assert "int3" in refusal(native, device)


@pytest.mark.parametrize("tile_rows", [8, 32, "16", None])
def test_tiles_of_other_than_sixteen_rows_are_refused(native, device, tile_rows):
    change_config(native, quantization={"version": 1, "format": "fp4", "tile_rows": tile_rows})
    text = refusal(native, device)
    assert "quantization.tile_rows is" in text and "expected 16" in text


def test_a_quantization_that_is_null_is_none(folder, device):
    change_config(folder, quantization_config=None, quantization=None)
    assert open_checkpoint(folder, device).format == "safetensors"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_refused(folder, device, share):
    path = os.path.join(folder, "model.safetensors")
    os.truncate(path, int(os.path.getsize(path) * share))
    assert "model.safetensors" in refusal(folder, device)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_gguf_file_is_refused(device, tmp_path, share):
    path = write_gguf(tmp_path / "m.gguf")
    os.truncate(path, int(os.path.getsize(path) * share))
    refusal(path, device)


def test_a_file_cut_after_its_header_was_read_is_refused(device, tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(path, device)
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(MarlinError, match="m.gguf"):
        Model(checkpoint)


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "blk.0.attn_norm.weight"])
def test_a_tensor_missing_from_a_gguf_is_named_as_the_file_spells_it(device, tmp_path, name):
    path = write_gguf(tmp_path / "m.gguf", lambda tensors: tensors.pop(name))
    assert re.search(f"'{name}': .*missing", refusal(path, device))


@pytest.mark.parametrize(
    "name, stored",
    [
        ("blk.1.ffn_down.weight", ("F32", (32, 96), bytes(4 * 32 * 96))),
        ("blk.1.ffn_down.weight", ("Q8_0", (64, 64), bytes(64 * 2 * 34))),
        ("output_norm.weight", ("F32", (63,), bytes(4 * 63))),
        ("blk.0.attn_norm.weight", ("Q8_0", (64,), bytes(2 * 34))),
    ],
    ids=["matrix", "blocks", "vector", "quantized-norm"],
)
def test_a_gguf_tensor_of_another_shape_or_type_is_named(device, tmp_path, name, stored):
    path = write_gguf(tmp_path / "m.gguf", lambda tensors: tensors.update({name: stored}))
    assert f"'{name}'" in refusal(path, device)


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_v.bias",
        "blk.1.attn_q.bias",
        "blk.1.ffn_up.bias",
        "blk.1.attn_q_norm.weight",
        "blk.0.attn_norm.bias",
        "blk.0.post_attention_norm.weight",
        "blk.2.attn_norm.weight",
        "output.bias",
        "model.norm.weight",
    ],
)
def test_a_gguf_tensor_that_the_model_would_leave_out_is_refused(device, tmp_path, name):
    stored = ("F32", (64,), gguf_builder.f32(np.full(64, 5)))
    path = write_gguf(tmp_path / "m.gguf", lambda tensors: tensors.update({name: stored}))
    assert f"'{name}': is not a tensor of this llama model" in refusal(path, device)
    with pytest.raises(ModelFileError, match=f"'{name}': is not a tensor"):
        open_source(path)


def with_vectors(names, size):
    """An edit that adds vectors of ones to a GGUF file."""
    values = gguf_builder.f32(np.ones(size))
    return lambda tensors: tensors.update(dict.fromkeys(names, ("F32", (size,), values)))


@pytest.mark.parametrize(
    "part, size", [("attn_output.bias", 64), ("attn_q_norm.weight", 32)], ids=["bias", "norm"]
)
def test_what_the_first_block_of_a_gguf_has_the_second_must_have(device, tmp_path, part, size):
    names = [f"blk.0.{part}", f"blk.0.{part.replace('q_norm', 'k_norm')}"]
    path = write_gguf(tmp_path / "m.gguf", with_vectors(names, size))
    assert re.search(f"'blk.1.{part}': .*missing", refusal(path, device))


@pytest.mark.parametrize("size", [1, 4, 32])
def test_rope_factors_are_one_for_each_pair_of_dimensions(native, device, tmp_path, size):
    name, shape = "rope_freqs.weight", re.escape(f"has shape [{size}]; the config implies [16]")
    path = write_gguf(tmp_path / "m.gguf", with_vectors([name], size))
    assert re.search(f"'{name}': {shape}", refusal(path, device))
    change_tensors(native, lambda tensors: tensors.update({name: np.ones(size, np.float32)}))
    assert re.search(f"'{name}': {shape}", refusal(native, device))


def test_rope_factors_of_the_right_number_are_taken(native, device, tmp_path):
    name = "rope_freqs.weight"
    path = write_gguf(tmp_path / "m.gguf", with_vectors([name], 16))
    change_tensors(native, lambda tensors: tensors.update({name: np.ones(16, np.float32)}))
    for checkpoint in (open_checkpoint(path, device), open_checkpoint(native, device)):
        view = checkpoint.load()[name]
        assert view.buffer.array(np.float32, (16,), view.offset).tolist() == [1.0] * 16


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.v_proj.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.pre_feedforward_layernorm.weight",
        "lm_head.bias",
        f"{DOWN}.scales",
        "padding.0",
    ],
)
def test_a_tensor_that_the_model_would_leave_out_of_a_folder_is_refused(folder, device, name):
    change_tensors(folder, lambda tensors: tensors.update({name: np.full(64, 5, np.float32)}))
    assert f"'{name}': is not a tensor of this llama model" in refusal(folder, device)


@pytest.mark.parametrize(
    "format, name",
    [
        ("fp4", f"{DOWN}.biases"),
        ("int4", f"{DOWN}.weight"),
        ("int4", "model.norm.codes"),
        ("int4", "model.layers.2.mlp.down_proj.codes"),
    ],
)
def test_a_tensor_that_a_native_folder_has_no_use_for_is_refused(folder, device, format, name):
    native = quantized(folder, format)
    change_tensors(native, lambda tensors: tensors.update({name: np.zeros(64, np.uint32)}))
    assert f"'{name}': is not a tensor" in refusal(native, device)


def test_tensors_known_to_be_of_no_use_may_lie_beside_the_weights(device, tmp_path):
    """What transformers once stored of RoPE, and an output matrix that is the embedding again."""
    config = tiny_config(tie_embeddings=True)
    tensors = random_tensors(config, seed=0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    for owner in ("model", "model.layers.0.self_attn", "model.layers.1.self_attn"):
        for name in ("inv_freq", "cos_cached", "sin_cached"):
            tensors[f"{owner}.rotary_emb.{name}"] = np.ones(8, np.float32)
    folder = write_folder(tmp_path / "model", config, tensors)
    for path in (folder, quantized(folder, "fp4")):
        assert len(Model(open_checkpoint(path, device)).spec.layers) == 2


def test_frequencies_of_rope_may_lie_in_a_gguf(device, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", with_vectors(["blk.0.attn_rot_embd"], 16))
    assert len(Model(open_checkpoint(path, device)).spec.layers) == 2
    assert not any("rot" in tensor.name for tensor in open_source(path).tensors)


def test_a_gguf_of_another_architecture_is_refused_by_name(device, tmp_path):
    data = write_gguf(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"llama", b"mamba"))
    assert "mamba" in refusal(tmp_path / "m.gguf", device)


def change_part(part, **changed):
    """An edit of one packed matrix's part: dtype=, shape=, or drop=True."""

    def change(tensors):
        name = f"{DOWN}.{part}"
        if "drop" in changed:
            del tensors[name]
            return
        shape = changed.get("shape", tensors[name].shape)
        dtype = changed.get("dtype", tensors[name].dtype)
        tensors[name] = np.zeros(shape, dtype)

    return change


@pytest.mark.parametrize(
    "part, changed",
    [
        ("codes", {"drop": True}),
        ("codes", {"dtype": np.int32}),
        ("codes", {"shape": (4, 15, 16)}),
        ("codes", {"shape": (4, 16, 8)}),
        ("codes", {"dtype": np.uint8}),
        ("scales", {"drop": True}),
        ("scales", {"dtype": np.int16}),
        ("scales", {"shape": (3, 4, 16)}),
        ("scales", {"shape": (4, 4)}),
        ("scales", {"shape": (4, 0, 16)}),
        ("scales", {"shape": (4, 3, 16)}),
        ("biases", {"drop": True}),
        ("biases", {"dtype": np.float32}),
        ("biases", {"shape": (4, 2, 16)}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_a_packed_matrix_with_a_wrong_part_is_named(native, device, part, changed):
    change_tensors(native, change_part(part, **changed))
    text = refusal(native, device)
    assert f"'{DOWN}." in text


@pytest.mark.parametrize("format, steps", [("fp4", 2), ("int8", 0)])
@pytest.mark.parametrize("num_groups", [8, 128])
def test_a_group_size_that_no_kernel_knows_is_refused(folder, device, format, steps, num_groups):
    native = quantized(folder, format)
    change_tensors(native, change_part("scales", shape=(4, num_groups, 16)))
    text = refusal(native, device)
    # 128 columns in groups of 32, 64 or 128.
    known = [(4, steps + groups, 16) for groups in (4, 2, 1)]
    assert f"'{DOWN}.scales'" in text and str(known) in text


def test_packed_weights_in_a_folder_that_does_not_say_so_are_refused(native, device):
    change_config(native, quantization=None)
    assert ".codes'" in refusal(native, device)
