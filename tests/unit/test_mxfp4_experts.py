"""Experts as gpt-oss stores them: MXFP4 whose gates and ups take turns."""

import numpy as np
import pytest
from foreign_files import config, device_values, golden, write_tensors

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
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
