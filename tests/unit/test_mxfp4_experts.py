"""Experts as other programs store them: MXFP4 whose gates and ups take turns, as gpt-oss's; and
matrices that were quantized one by one."""

import numpy as np
import pytest
from foreign_files import GPTQ, config, device_values, golden, gptq_parts, write_tensors

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.models.plan_experts import find_stack
from marlin.models.spec import Stack, Tensor
from marlin.weights.foreign.table import reader_of
from marlin.weights.safetensors_file import SafetensorsFile


@pytest.mark.parametrize("part, num_parts", [(0, 2), (1, 2), (0, 1)])
def test_gates_and_ups_of_mxfp4_experts_are_told_apart(part, num_parts, tmp_path):
    stored = golden("hf_mxfp4")
    tensors = {"e.gate_up_proj_blocks": stored["blocks"], "e.gate_up_proj_scales": stored["scales"]}
    write_tensors(tmp_path / "model.safetensors", tensors)
    settings = file_fields("config.json", config({"quant_method": "mxfp4"}))
    reader = reader_of(settings, SafetensorsFile(tmp_path / "model.safetensors").tensors)
    shape = (2, 64 // num_parts, 128)
    found = reader.fused("e.gate_up_proj", shape, part, num_parts)
    assert found.form.kind == "fp4" and found.shape == (2 * shape[1], 128)
    expected = stored["values"][:, part::num_parts].reshape(-1, 128)
    np.testing.assert_array_equal(device_values(found), expected)
    np.testing.assert_array_equal(found.values(16, 48), expected[16:48])
    with pytest.raises(ModelFileError, match="expected U8 .2, 32, 4, 16."):
        reader.fused("e.gate_up_proj", (2, 32, 128), 0, 1)


NAME = "model.layers.0.mlp.experts"
GATES = Tensor(
    f"{NAME}.gate_proj.weight",
    "blk.0.ffn_gate_exps.weight",
    (3, 32, 128),
    "mlp",
    stack=Stack(2, single=NAME + ".{}.gate_proj.weight"),
)


def stack_of(folder, experts):
    """What is found of GATES in a folder of experts, each the tensors of a module `m`."""
    tensors = {
        name.replace("m.", f"{NAME}.{number}.gate_proj.", 1): array
        for number, expert in enumerate(experts)
        for name, array in expert.items()
    }
    write_tensors(folder / "model.safetensors", tensors)
    found = SafetensorsFile(folder / "model.safetensors").tensors
    reader = reader_of(file_fields("config.json", config(GPTQ)), found)
    return find_stack("the folder", GATES, found, reader)


def scaled(expert, factor):
    """(tensors, values) of gptq_parts() under other scales."""
    tensors, values = expert
    scales = (tensors["m.scales"] * np.float16(factor)).astype(np.float16)
    return tensors | {"m.scales": scales}, values * factor


def test_experts_that_were_quantized_one_by_one_are_one_matrix(tmp_path):
    experts = [scaled(gptq_parts(4, 1), factor) for factor in (1, 2, 0.5)]
    found = stack_of(tmp_path, [tensors for tensors, _ in experts])
    assert (found.form.kind, found.shape) == ("int4", (96, 128))
    expected = np.concatenate([values for _, values in experts])
    np.testing.assert_allclose(device_values(found), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.values(16, 80), device_values(found)[16:80])
    assert len(found.parts) == 3 * len({info.name.rsplit(".", 1)[1] for info in found.parts})


def test_an_expert_that_is_missing_is_named(tmp_path):
    tensors, _ = gptq_parts(4, 1)
    with pytest.raises(ModelFileError, match="expert 0's") as caught:
        stack_of(tmp_path, [tensors, tensors])
    assert "experts.2.gate_proj" in str(caught.value)
