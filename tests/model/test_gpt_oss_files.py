"""gpt-oss in the files that people have: the same numbers as GGUF, as the folder of OpenAI's layout
and as MLX's give the same bits, and what transformers answers of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_files import write_tensors
from test_native_folder import convert
from tiny_models import logits_of_positions, running, write_folder

from marlin.models.plan_folder import plan_folder
from marlin.models.registry import family_of, spec_of
from marlin.models.source import open_source
from marlin.weights.formats import PackedWeight, dequantize
from marlin.weights.gguf_parts import read_gguf
from marlin.weights.tensor_file import read_bytes

CONVERTED = Path(__file__).parents[1] / "data" / "families"
FILE = CONVERTED / "gpt_oss_mxfp4.gguf"
# Of the logits' deviation: keys and values are float16 in the cache and float32 in the reference.
FLOAT16_CACHE = 2.5e-3


def reference():
    token_ids = np.load(CONVERTED / "gpt_oss_mxfp4.ids.npy").reshape(-1)
    logits = np.load(CONVERTED / "gpt_oss_mxfp4.logits.npy").reshape(len(token_ids), -1)
    return token_ids.tolist(), logits


def logits_from(path):
    with running(path, sequences=16) as runner:
        return logits_of_positions(runner, reference()[0])


@pytest.fixture(scope="module")
def source():
    return open_source(FILE)


@pytest.fixture(scope="module")
def from_gguf():
    return logits_from(FILE)


def values_of(source):
    """{Hugging Face name: float32}, what the file's tensors stand for."""
    return {
        tensor.name: tensor.rows(0, tensor.shape[0]).reshape(tensor.shape)
        for tensor in source.tensors
    }


def test_the_values_of_a_converted_file_give_the_logits_of_transformers(source, tmp_path):
    """As float32: rounded activations would choose another expert now and then."""
    shapes = {tensor.name: tensor.shape for tensor in spec_of(source.config).tensors}
    tensors = {name: values.reshape(shapes[name]) for name, values in values_of(source).items()}
    found = logits_from(write_folder(tmp_path, source.config, tensors))
    expected = reference()[1]
    assert np.abs(found - expected).max() < FLOAT16_CACHE * expected.std()


def test_the_file_itself_gives_nearly_the_same_logits(from_gguf):
    expected = reference()[1]
    errors = np.sqrt(((from_gguf - expected) ** 2).mean(axis=1)) / expected.std()
    assert np.median(errors) < 0.03 and errors.max() < 0.3


def codes_of(path):
    """{GGUF name: (codes uint8 [experts, rows, columns], exponents uint8 [experts, rows, blocks])}
    of the experts' MXFP4 blocks: an exponent, then low halves of bytes before high ones."""
    found = {}
    for name, info in read_gguf(str(path)).tensors.items():
        if info.dtype == "MXFP4":
            blocks = read_bytes(info).reshape(*info.shape[:2], -1, 17)
            codes = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
            found[name] = codes.reshape(info.shape), blocks[..., 0].copy()
    assert len(found) == 12
    return found


def in_turns(gates, ups):
    """Rows of both, a gate before its up."""
    return np.stack([gates, ups], axis=2).reshape(gates.shape[0], -1, *gates.shape[2:])


def bytes_of(codes):
    """Two codes a byte, the first one low."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def as_openai(layer, experts, biases):
    """An expert's gates and ups take turns; a block of 32 columns is 16 bytes."""
    tensors, stem = {}, f"model.layers.{layer}.mlp.experts."
    joined = {"down_proj": experts["down"]}
    joined["gate_up_proj"] = tuple(map(in_turns, experts["gate"], experts["up"]))
    for name, (codes, exponents) in joined.items():
        tensors[f"{stem}{name}_blocks"] = bytes_of(codes).reshape(*exponents.shape, 16)
        tensors[f"{stem}{name}_scales"] = exponents
    tensors[f"{stem}down_proj_bias"] = biases["down"]
    tensors[f"{stem}gate_up_proj_bias"] = in_turns(biases["gate"], biases["up"])
    return tensors


def as_mlx(layer, experts, biases):
    tensors, stem = {}, f"model.layers.{layer}.mlp.experts."
    for word, (codes, exponents) in experts.items():
        tensors[f"{stem}{word}_proj.weight"] = np.ascontiguousarray(bytes_of(codes)).view(np.uint32)
        tensors[f"{stem}{word}_proj.scales"] = exponents
        tensors[f"{stem}{word}_proj.bias"] = biases[word]
    return tensors


LAYOUTS = {
    "openai": (as_openai, {"quantization_config": {"quant_method": "mxfp4"}}),
    "mlx": (as_mlx, {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}),
}


def write_layout(layout, source, folder):
    """A folder of the file's numbers."""
    write, settings = LAYOUTS[layout]
    values = values_of(source)
    tensors = {name: array for name, array in values.items() if ".experts." not in name}
    codes = codes_of(FILE)
    for layer in range(source.config.num_layers):
        stem = f"model.layers.{layer}.mlp.experts."
        words = ("gate", "up", "down")
        experts = {word: codes[f"blk.{layer}.ffn_{word}_exps.weight"] for word in words}
        biases = {word: values[f"{stem}{word}_proj.bias"] for word in words}
        tensors |= write(layer, experts, biases)
    write_tensors(folder / "model.safetensors", tensors)
    config = family_of(source.config).hf_config(source.config) | settings
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_the_same_numbers_gives_the_same_bits(layout, source, from_gguf, tmp_path):
    write_layout(layout, source, tmp_path)
    np.testing.assert_array_equal(logits_from(tmp_path), from_gguf)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantize_makes_a_native_folder_of_each_layout(layout, source, tmp_path):
    (tmp_path / "source").mkdir()
    write_layout(layout, source, tmp_path / "source")
    native = convert(tmp_path / "source", tmp_path / "native", "int8", 32)
    assert "quantization_config" not in json.loads((native / "config.json").read_text())
    expected, experts = values_of(source), 0
    for tensor in plan_folder(str(native)).tensors:
        if tensor.kind == "int8" and ".experts." in tensor.tensor.name:
            whole = expected[tensor.tensor.name].reshape(tensor.tensor.rows)
            found = packed_values(tensor)
            # int8 in groups of 32: half of a 127th of a group's largest number, and its scale's.
            assert np.abs(found - whole).max() <= np.abs(whole).max() * (0.501 / 127 + 2**-11)
            experts += 1
    assert experts == 3 * source.config.num_layers


def packed_values(stored):
    """float32 [N, K] of a packed matrix of a native folder."""
    codes = read_bytes(stored.info).reshape(stored.info.shape)
    scales = read_bytes(stored.scales).view(np.float16).reshape(stored.scales.shape)
    form = stored.kind, stored.tensor.rows, stored.group_size
    return dequantize(PackedWeight(*form, codes, scales, None))
