"""What `metal-marlin quantize` refuses; neither refusal nor interruption leaves a trace."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
from gguf_builder import f32
from pytorch import torch
from tiny_checkpoints import save_model, tiny_config, write_gguf
from transformers import LlamaForCausalLM

from marlin.commands import quantize as command
from marlin.errors import ConfigError, ModelFileError

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder of a tiny random Llama, {name: float32 array})."""
    folder = tmp_path_factory.mktemp("source") / "llama"
    folder.mkdir()
    return folder, save_model(folder)


def silent(done, total):
    assert 0 < done <= total


def assert_nothing_was_made(folder, *kept):
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


def test_a_destination_that_holds_something_is_refused(llama, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    with pytest.raises(ConfigError, match="not an empty folder"):
        command.quantize(llama[0], tmp_path / "out", "fp4", 64, silent)
    assert_nothing_was_made(tmp_path / "out", "precious")
    with pytest.raises(ConfigError, match="not an empty folder"):
        command.quantize(llama[0], tmp_path / "out" / "precious", "fp4", 64, silent)


def test_an_empty_destination_gets_what_an_absent_one_gets(llama, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        command.quantize(llama[0], tmp_path / name, "fp4", 64, silent)
    assert_nothing_was_made(tmp_path, "absent", "empty")
    empty, absent = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("empty", "absent")
    )
    assert empty == absent
    assert {"config.json", "model.safetensors"} <= set(empty)


@pytest.mark.parametrize("inside", ["", "out", "deep/er/out"])
def test_a_destination_inside_the_source_is_refused(tmp_path, inside):
    save_model(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConfigError):
        command.quantize(tmp_path, tmp_path / inside, "fp4", 64, silent)
    assert_nothing_was_made(tmp_path, *before)


def test_an_unknown_format_group_size_or_source_is_refused(llama, tmp_path):
    with pytest.raises(ConfigError, match="'fp3' is unknown; fp4, int4, int8"):
        command.quantize(llama[0], tmp_path / "out", "fp3", 64, silent)
    with pytest.raises(ConfigError, match="group size 48"):
        command.quantize(llama[0], tmp_path / "out", "fp4", 48, silent)
    with pytest.raises(ConfigError, match="does not exist"):
        command.quantize(tmp_path / "absent", tmp_path / "out", "fp4", 64, silent)
    assert_nothing_was_made(tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    llama, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 1000))
    with pytest.raises(ConfigError, match="MB and .* has 0.0 MB free"):
        command.quantize(llama[0], tmp_path / "out", "fp4", 64, silent)
    assert_nothing_was_made(tmp_path)


def stop_after(count):
    """A progress that interrupts once it was called `count` times, and the calls."""
    calls = []

    def progress(done, total):
        calls.append((done, total))
        if len(calls) == count:
            raise KeyboardInterrupt

    return progress, calls


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_run_goes_on_where_it_was(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "NOTE_S", 0.0)
    expected = command.quantize(llama[0], tmp_path / "whole", "fp4", 64, silent)
    progress, _ = stop_after(9)
    with pytest.raises(KeyboardInterrupt):
        command.quantize(llama[0], tmp_path / "out", "fp4", 64, progress)
    assert_nothing_was_made(tmp_path, ".out.partial", "whole")
    progress, calls = stop_after(0)
    assert command.quantize(llama[0], tmp_path / "out", "fp4", 64, progress) == expected
    assert len(calls) == 21 - 8 and calls[-1][0] == calls[-1][1]  # 21 tensors, 8 of them noted
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert_nothing_was_made(tmp_path, "out", "whole")


def test_what_was_asked_for_otherwise_is_made_anew(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "NOTE_S", 0.0)
    progress, _ = stop_after(9)
    with pytest.raises(KeyboardInterrupt):
        command.quantize(llama[0], tmp_path / "out", "fp4", 64, progress)
    progress, calls = stop_after(0)
    command.quantize(llama[0], tmp_path / "out", "int4", 64, progress)
    assert len(calls) == 21
    command.quantize(llama[0], tmp_path / "other", "int4", 64, silent)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")


def test_two_runs_into_one_folder_are_one_too_many(llama, tmp_path):
    def again(done, total):
        command.quantize(llama[0], tmp_path / "out", "fp4", 64, silent)

    with pytest.raises(ConfigError, match="another run is converting into"):
        command.quantize(llama[0], tmp_path / "out", "fp4", 64, again)


@pytest.mark.parametrize("value, expected", [(float("nan"), "is nan"), (1e5, "over the limit")])
def test_a_weight_that_cannot_be_quantized_is_named_and_leaves_nothing(tmp_path, value, expected):
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 9] = value
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(ModelFileError) as caught:
        command.quantize(tmp_path / "source", tmp_path / "out", "fp4", 64, silent)
    assert expected in caught.value.message and f"{DOWN}.weight" in caught.value.message
    assert_nothing_was_made(tmp_path, "source")


@pytest.mark.parametrize("mixed", [False, True])
def test_a_matrix_that_no_group_size_divides_is_refused_by_name(tmp_path, mixed):
    (tmp_path / "source").mkdir()
    save_model(tmp_path / "source", intermediate_size=200)
    asked = "int4", 64, silent
    if mixed:
        asked = command.MIXED, 64, silent, command.Calibration("gptq", "text", 64, 4.5)
    expected = r"layers.\d.mlp.down_proj.weight': has 200 columns, no multiple of 32"
    with pytest.raises(ModelFileError, match=expected):
        command.quantize(tmp_path / "source", tmp_path / "out", *asked)
    assert_nothing_was_made(tmp_path, "source")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"quantization": {"bits": 4, "group_size": 64}},
            "mlx has quantized these weights, and no",
        ),
        ({"quantization_config": {"quant_method": "vptq"}}, "quant_method is 'vptq'; expected one"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight': is missing"),
        ({"num_hidden_layers": 1}, "'model.layers.1.*is not a tensor of this llama"),
        ({"intermediate_size": 256}, r"shape \[192, 64\]; the config implies \[256, 64\]"),
    ],
)
def test_a_checkpoint_that_contradicts_its_config_is_refused(tmp_path, changes, expected):
    (tmp_path / "source").mkdir()
    save_model(tmp_path / "source")
    change_config(tmp_path / "source", **changes)
    with pytest.raises(ModelFileError, match=expected):
        command.quantize(tmp_path / "source", tmp_path / "out", "fp4", 64, silent)
    assert_nothing_was_made(tmp_path, "source")


def test_a_gguf_tensor_outside_the_family_is_refused(llama, tmp_path):
    extra = [("blk.0.ffn_gate_inp.weight", "F32", (2, 2), f32(np.zeros((2, 2))))]
    write_gguf(tmp_path / "model.gguf", llama[1], extra)
    with pytest.raises(ModelFileError, match="ffn_gate_inp.weight.*is not a tensor"):
        command.quantize(tmp_path / "model.gguf", tmp_path / "out", "fp4", 64, silent)
