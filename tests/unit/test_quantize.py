"""`metal-marlin quantize`: what the native folder holds, and what the user sees."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from gguf_builder import build, f32
from pytorch import torch
from tiny_checkpoints import HEAD_DIM, load_dense, load_packed, save_model, write_gguf

from marlin import cli
from marlin.commands import quantize as command
from marlin.errors import ConfigError
from marlin.models.pooling import Pooling, pooling_of_folder, write_pooling
from marlin.models.registry import config_from_gguf, config_from_hf
from marlin.weights import convert, ggml_types
from marlin.weights.formats import dequantize
from marlin.weights.gguf import GGUFFile
from marlin.weights.native import NativeEntry, NativeWriter
from marlin.weights.safetensors_file import SafetensorsFolder
from marlin.weights.tensor_file import read_bytes

DOWN = "model.layers.1.mlp.down_proj"
QUERY = "model.layers.0.self_attn.q_proj"
# Relative RMS error of normal weights: measured 0.097 (fp4), 0.085 (int4), 0.006 (int8), 0.082
# (iq4), 0.042 (int5), 0.023 (int6) in groups of 64; the bounds leave a tenth.
ERROR_BOUNDS = {
    "fp4": 0.107, "int4": 0.094, "int8": 0.0066, "iq4": 0.091, "int5": 0.0464, "int6": 0.0252
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder of a tiny random Llama, {name: float32 array})."""
    folder = tmp_path_factory.mktemp("source") / "llama"
    folder.mkdir()
    return folder, save_model(folder)


def silent(done, total):
    assert 0 < done <= total


def relative_error(weights, values):
    return np.linalg.norm(values - weights) / np.linalg.norm(weights)


@pytest.mark.parametrize("format", ERROR_BOUNDS)
def test_every_linear_weight_of_a_checkpoint_is_stored_in_the_format(llama, tmp_path, format):
    source, weights = llama
    command.quantize(source, tmp_path / "out", format, 64, silent)
    for name in (DOWN, QUERY):
        packed = load_packed(tmp_path / "out", name, len(weights[f"{name}.weight"]), format)
        assert (packed.format, packed.group_size) == (format, 64)
        error = relative_error(weights[f"{name}.weight"], dequantize(packed))
        assert 0 < error < ERROR_BOUNDS[format]
    stored = SafetensorsFolder(tmp_path / "out").tensors
    assert f"{DOWN}.weight" not in stored


def test_embedding_and_output_matrix_take_eight_bits_where_the_format_has_four(llama, tmp_path):
    source, weights = llama
    command.quantize(source, tmp_path / "out", "fp4", 64, silent)
    for name in ("model.embed_tokens", "lm_head"):
        packed = load_packed(tmp_path / "out", name, 75)
        assert (packed.format, packed.group_size, packed.shape) == ("int8", 32, (75, 64))
        assert relative_error(weights[f"{name}.weight"], dequantize(packed)) < 0.0066


def test_norms_stay_float32_bit_for_bit(llama, tmp_path):
    source, weights = llama
    command.quantize(source, tmp_path / "out", "fp4", 32, silent)
    name = "model.layers.1.input_layernorm.weight"
    np.testing.assert_array_equal(load_dense(tmp_path / "out", name), weights[name])


def test_the_config_is_the_sources_with_a_quantization_object(llama, tmp_path):
    source, _ = llama
    command.quantize(source, tmp_path / "out", "int4", 32, silent)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.pop("quantization") == {
        "version": 1, "format": "int4", "group_size": 32, "tile_rows": 16
    }  # fmt: skip
    assert config == json.loads((source / "config.json").read_text())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"model": {}}'


def test_every_file_of_the_tokenizer_is_copied(llama, tmp_path):
    source = shutil.copytree(llama[0], tmp_path / "source")
    copied = ["added_tokens.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"]
    (source / "additional_chat_templates").mkdir()
    for name in copied:
        (source / name).write_text(name)
    (source / "additional_chat_templates" / "zero.jinja").symlink_to("/dev/zero")
    command.quantize(source, tmp_path / "out", "int4", 32, silent)
    assert [(tmp_path / "out" / name).read_text() for name in copied] == copied
    assert not (tmp_path / "out" / "additional_chat_templates" / "zero.jinja").exists()


def test_how_a_models_vectors_are_made_comes_along(llama, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(llama[0], source)
    pooling = Pooling("last", is_declared=True, max_tokens=64)
    write_pooling(str(source), pooling)
    command.quantize(source, tmp_path / "out", "int8", 64, silent)
    assert pooling_of_folder(str(tmp_path / "out")) == pooling


def test_tensors_lie_on_64_byte_boundaries_with_nothing_unaccounted(llama, tmp_path):
    source, _ = llama
    command.quantize(source, tmp_path / "out", "int4", 32, silent)
    infos = SafetensorsFolder(tmp_path / "out").tensors
    fillers = [name for name in infos if name.startswith("padding.")]
    assert all(info.offset % 64 == 0 for name, info in infos.items() if name not in fillers)


def test_bfloat16_and_biases_and_tied_embeddings_are_converted(tmp_path):
    weights = save_model(
        tmp_path, torch.bfloat16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    )
    command.quantize(tmp_path, tmp_path.parent / "tied", "int8", 32, silent)
    out = tmp_path.parent / "tied"
    assert not any(name.startswith("lm_head") for name in SafetensorsFolder(out).tensors)
    name = "model.layers.0.self_attn.o_proj.bias"
    np.testing.assert_array_equal(load_dense(out, name), weights[name])
    packed = load_packed(out, DOWN, 64)
    assert relative_error(weights[f"{DOWN}.weight"], dequantize(packed)) < 0.006
    assert config_from_hf(out).o_bias


def test_a_group_size_that_does_not_divide_becomes_the_next_smaller_one(llama, tmp_path):
    source, weights = llama
    report = command.quantize(source, tmp_path / "out", "fp4", 128, silent)
    assert report.narrowed == {64: 14}  # 64 and 192 columns
    packed = load_packed(tmp_path / "out", DOWN, 64)
    assert (packed.format, packed.group_size, packed.shape) == ("fp4", 64, (64, 192))
    assert relative_error(weights[f"{DOWN}.weight"], dequantize(packed)) < ERROR_BOUNDS["fp4"]


def test_conversion_in_pieces_gives_the_same_bytes(llama, tmp_path, monkeypatch):
    source, _ = llama
    command.quantize(source, tmp_path / "whole", "int4", 32, silent)
    monkeypatch.setattr(convert, "CHUNK_VALUES", 16 * 64)
    command.quantize(source, tmp_path / "pieces", "int4", 32, silent)
    name = "model.safetensors"
    assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_report_counts_bytes_bits_and_errors(llama, tmp_path):
    source, weights = llama
    report = command.quantize(source, tmp_path / "out", "int8", 64, silent)
    assert report.source_bytes == sum(array.nbytes for array in weights.values())
    # 8 bits, a float16 for 64 of them, and the padding of 75 rows to 80.
    assert 8.25 < report.bits_per_weight < 8.4
    assert report.errors.keys() == {"embedding", "lm_head", "attention", "mlp"}
    assert all(0 < error.relative_rms < 0.0066 for error in report.errors.values())
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 0 < size - report.result_bytes < 20_000  # the header


def test_a_gguf_file_gives_the_same_weights_as_the_folder_it_was_made_from(llama, tmp_path):
    source, weights = llama
    write_gguf(tmp_path / "model.gguf", weights)
    command.quantize(source, tmp_path / "from_folder", "fp4", 64, silent)
    command.quantize(tmp_path / "model.gguf", tmp_path / "from_gguf", "fp4", 64, silent)
    expected = SafetensorsFolder(tmp_path / "from_folder").tensors
    found = SafetensorsFolder(tmp_path / "from_gguf").tensors
    assert found.keys() == expected.keys()
    for name, info in expected.items():
        assert read_bytes(found[name]).tobytes() == read_bytes(info).tobytes(), name


def test_a_gguf_file_brings_its_config_and_tokenizer_along(llama, tmp_path):
    _, weights = llama
    write_gguf(tmp_path / "model.gguf", weights)
    command.quantize(tmp_path / "model.gguf", tmp_path / "out", "int8", 64, silent)
    assert config_from_hf(tmp_path / "out") == config_from_gguf(GGUFFile(tmp_path / "model.gguf"))
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"]["A"] == 17
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ messages }}"
    assert settings["eos_token"] == "<|im_end|>"


def test_rope_factors_of_a_gguf_file_are_kept_under_their_name(llama, tmp_path):
    _, weights = llama
    factors = np.arange(1, HEAD_DIM // 2 + 1, dtype=np.float32)
    extra = [("rope_freqs.weight", "F32", factors.shape, f32(factors))]
    write_gguf(tmp_path / "model.gguf", weights, extra)
    command.quantize(tmp_path / "model.gguf", tmp_path / "out", "int8", 64, silent)
    assert load_dense(tmp_path / "out", "rope_freqs.weight").tolist() == factors.tolist()


def test_q8_0_becomes_int8_in_groups_of_32_without_a_loss(tmp_path):
    rng = np.random.default_rng(1)
    blocks = np.zeros(20 * 2, ggml_types.Q8_0)
    blocks["d"] = rng.random(40) + 0.5
    blocks["qs"] = rng.integers(-127, 128, (40, 32))
    blocks["qs"][:, 3] = 127
    path = tmp_path / "model.gguf"
    path.write_bytes(build([], [("blk.0.ffn_up.weight", "Q8_0", (20, 64), blocks.tobytes())]))
    (info,) = GGUFFile(path).tensors.values()
    tensor = convert.SourceTensor("model.layers.0.mlp.up_proj.weight", info, "mlp")
    entry = convert.plan_entry(tensor, "int8", 32)
    writer = NativeWriter(tmp_path, [entry])
    errors = {}
    convert.convert([tensor], [entry], writer, 1, lambda values: None, errors)
    writer.close()
    assert errors["mlp"].relative_rms == 0
    packed = load_packed(tmp_path, "model.layers.0.mlp.up_proj", 20)
    expected = ggml_types.dequantize("Q8_0", read_bytes(info), (20, 64))
    np.testing.assert_array_equal(dequantize(packed), expected)


def test_weights_beyond_a_shards_size_are_split_and_indexed(tmp_path):
    entries = [NativeEntry(f"w{i}", (16, 32), "int8", 32) for i in range(3)]
    writer = NativeWriter(tmp_path, entries, max_shard_bytes=1100)
    for i in range(3):
        writer.write(f"w{i}.codes", np.full((1, 8, 16, 4), i, np.uint8))
        writer.write(f"w{i}.scales", np.ones((1, 1, 16), np.float16))
    writer.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    tensors = SafetensorsFolder(tmp_path).tensors
    assert [read_bytes(tensors[f"w{i}.codes"])[5] for i in range(3)] == [0, 1, 2]
    assert tensors["w1.scales"].path == tensors["w1.codes"].path


def test_the_command_prints_its_report_and_the_progress_of_a_pipe(llama, tmp_path, capsys):
    out = str(tmp_path / "out")
    words = ["quantize", str(llama[0]), out, "--format", "fp4", "--group-size", "128"]
    args = cli.read(words, {})
    assert command.run(args) == 0
    captured = capsys.readouterr()
    assert f"{out}: fp4, groups of 128" in captured.out
    assert "bits a weight" in captured.out
    assert captured.out.splitlines()[-1].startswith("Serve it with: metal-marlin serve ")
    shown = re.findall(r" relative RMS error (\S+)", captured.out)
    assert shown[:2] == ["0.0054", "0.0054"]  # two digits, however small
    assert "  14 matrices in groups of 64: 128 do not divide them" in captured.out
    assert captured.err.startswith("quantized 100% after")


def test_the_defaults_are_iq4_in_groups_of_32_and_other_choices_are_refused():
    assert (command.DEFAULT_FORMAT, command.DEFAULT_GROUP_SIZE) == ("iq4", 32)
    for words in (["--format", "q4"], ["--group-size", "16"]):
        with pytest.raises(ConfigError, match=f"^{words[0]} must be "):
            cli.read(["quantize", "src", "dst", *words], {})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_redraws_a_bar_on_a_terminal_and_spares_a_log():
    ticks = iter([0.0, 1.0, 2.0, 15.0, 16.0, 20.0])
    terminal = Terminal()
    progress = command.Progress(terminal, "quantized", lambda: next(ticks))
    progress(1, 2)
    progress(2, 2)
    assert terminal.getvalue().count("\r") == 2 and terminal.getvalue().endswith("100%     2 s\n")
    log = io.StringIO()
    progress = command.Progress(log, "quantized", lambda: next(ticks))  # starts at 15
    progress(1, 4)
    progress(4, 4)
    assert log.getvalue() == "quantized 100% after 5 s\n"


def test_the_command_line_reaches_the_command_and_reports_its_refusals(llama, tmp_path, capsys):
    words = ["quantize", str(llama[0]), str(tmp_path / "out"), "--format", "int8"]
    assert cli.main(words, environ={}) == 0
    assert "int8, groups of 32" in capsys.readouterr().out
    assert cli.main([*words[:2], str(tmp_path / "plain")], environ={}) == 0
    assert "iq4, groups of 32" in capsys.readouterr().out
    assert cli.main(words, environ={}) == 2
    assert "not an empty folder" in capsys.readouterr().err
