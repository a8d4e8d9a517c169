"""Matrices as GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes, ModelOpt and the original project
store them: the numbers that come of them, and the sentence where none can."""

import json

import numpy as np
import pytest
from foreign_files import (
    AWQ,
    BNB,
    FP8,
    GPTQ,
    bf16,
    bf16_values,
    bit_stream,
    config,
    ct,
    device_values,
    float8,
    golden,
    gptq_parts,
    matrix_of,
    original_parts,
    parts_of,
)

from marlin.errors import ModelFileError
from marlin.weights.kinds import EXPONENTS, Form


def refusal(*arguments):
    with pytest.raises(ModelFileError) as caught:
        matrix_of(*arguments)
    return str(caught.value)


def assert_stands_for(found, values, exact=True):
    """On the device and for `quantize`; a product rounded to float16 is half a unit off at most."""
    rtol, atol = (1e-6, 1e-7) if exact else (2**-11, 2**-25)
    np.testing.assert_allclose(device_values(found), values, rtol=rtol, atol=atol)
    np.testing.assert_allclose(found.values(0, len(values)), values, rtol=1e-6, atol=1e-7)


def test_gptq_codes_stand_for_the_goldens_values(tmp_path):
    stored = golden("gptq4_v1")
    found = matrix_of(tmp_path, config(GPTQ), parts_of(stored), stored["values"].shape)
    assert found.form.kind == "int4" and found.form.group_size == 64
    assert_stands_for(found, stored["values"])


def test_groups_that_act_order_scatters_become_float16(tmp_path):
    stored = golden("gptq4_desc_act_v1")
    settings = config(GPTQ, desc_act=True)
    found = matrix_of(tmp_path, settings, parts_of(stored), stored["values"].shape)
    assert found.form.kind == "f16"
    assert_stands_for(found, stored["values"], exact=False)


@pytest.mark.parametrize("version, less", [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_number_of_bits_and_both_versions_of_gptq_are_read(bits, version, less, tmp_path):
    tensors, values = gptq_parts(bits, less)
    settings = config(GPTQ, bits=bits, checkpoint_format=version)
    found = matrix_of(tmp_path, settings, tensors, values.shape)
    assert found.form.kind == ("int8" if bits == 8 else "int4")
    assert_stands_for(found, values)


def test_groups_that_act_order_leaves_whole_stay_packed(tmp_path):
    # The groups of columns 0-31, 32-63, 64-95, 96-127.
    order = np.repeat([1, 0, 0, 1], 32)
    tensors, values = gptq_parts(4, 1, order)
    found = matrix_of(tmp_path, config(GPTQ, desc_act=True), tensors, values.shape)
    assert (found.form.kind, found.form.group_size) == ("int4", 32)
    assert_stands_for(found, values)


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_settings_may_stand_in_a_file_of_their_own(name, tmp_path):
    stored, settings = golden("gptq4_v1"), {k: v for k, v in GPTQ.items() if k != "quant_method"}
    tensors = parts_of(stored)
    if name == "hf_quant_config.json":
        stored, settings = golden("modelopt_nvfp4"), {"quantization": {"quant_algo": "NVFP4"}}
        scales = ("F8_E4M3", stored["weight_scale_e4m3"])
        tensors = {"m.weight": stored["weight"], "m.weight_scale": scales}
        tensors["m.weight_scale_2"] = stored["weight_scale_2"].reshape(1)
    (tmp_path / name).write_text(json.dumps(settings))
    found = matrix_of(tmp_path, {}, tensors, stored["values"].shape)
    assert_stands_for(found, stored["values"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"bits": 5}, "bits is 5; expected one of 2, 3, 4, 8"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; expected one of gptq"),
        ({"dynamic": {"-:.*": {}}}, "dynamic is"),
        ({"group_size": 32}, "m.qzeros.*is I32 .2, 4., expected I32 .4, 4."),
        ({"bits": 8}, "m.qweight.*expected I32 .32, 32."),
    ],
)
def test_settings_of_gptq_that_do_not_fit_are_refused(changes, words, tmp_path):
    tensors, values = gptq_parts(4, 1)
    with pytest.raises(ModelFileError, match=words):
        matrix_of(tmp_path, config(GPTQ, **changes), tensors, values.shape)


def test_a_zero_that_version_1_could_have_cut_off_is_refused(tmp_path):
    tensors, values = gptq_parts(4, 1)
    tensors["m.qzeros"] |= np.int32(15)
    assert "stores a zero of 15" in refusal(tmp_path, config(GPTQ), tensors, values.shape)


def test_a_group_that_is_not_there_is_refused(tmp_path):
    tensors, values = gptq_parts(4, 1)
    tensors["m.g_idx"][3] = 2
    assert "names groups 0 to 2 of 2" in refusal(tmp_path, config(GPTQ), tensors, values.shape)


def test_codes_that_fill_no_whole_words_are_refused(tmp_path):
    tensors, values = gptq_parts(4, 1)
    for name in ("m.qweight", "m.scales"):
        tensors[name] = np.ascontiguousarray(tensors[name][:, :28])
    tensors["m.qzeros"] = np.ascontiguousarray(tensors["m.qzeros"][:, :3])
    words = "packs 28 codes of 4 bits, which fill no whole words of 32"
    assert words in refusal(tmp_path, config(GPTQ), tensors, (28, values.shape[1]))
    stored = parts_of(golden("awq4"))
    n = stored["m.scales"].shape[1] - 4
    stored["m.scales"] = np.ascontiguousarray(stored["m.scales"][:, :n])
    for name in ("m.qweight", "m.qzeros"):
        stored[name] = np.ascontiguousarray(stored[name][:, : n // 8])
    words = f"packs {n} codes of 4 bits"
    assert words in refusal(tmp_path, config(AWQ), stored, (n, stored["m.qweight"].shape[0]))


@pytest.mark.parametrize("size", [1 << 40, 10**30])
def test_groups_may_be_longer_than_the_matrix(size, tmp_path):
    tensors, values = gptq_parts(4, 1, group_size=128)
    del tensors["m.g_idx"]
    found = matrix_of(tmp_path, config(GPTQ, group_size=size), tensors, values.shape)
    assert_stands_for(found, values)


def test_awq_codes_stand_for_the_goldens_values(tmp_path):
    stored = golden("awq4")
    found = matrix_of(tmp_path, config(AWQ), parts_of(stored), stored["values"].shape)
    assert found.form.kind == "int4"
    assert_stands_for(found, stored["values"])
    assert_stands_for(found.sliced(16, 16), stored["values"][16:])


@pytest.mark.parametrize(
    "changes, words",
    [({"version": "gemv"}, "version is 'gemv'"), ({"bits": 3}, "bits is 3; expected 4")],
)
def test_other_packings_of_awq_are_refused_by_name(changes, words, tmp_path):
    stored = golden("awq4")
    found = refusal(tmp_path, config(AWQ, **changes), parts_of(stored), stored["values"].shape)
    assert words in found


@pytest.mark.parametrize("bits, kind", [(4, "int4"), (8, "int8")])
def test_packed_integers_of_compressed_tensors_stand_for_its_values(bits, kind, tmp_path):
    stored = golden(f"ct_pack{bits}")
    tensors = parts_of(stored) | {"m.weight_shape": np.array(stored["values"].shape)}
    settings = ct("pack-quantized", bits, group_size=64, strategy="group")
    found = matrix_of(tmp_path, settings, tensors, stored["values"].shape)
    assert found.form.kind == kind
    assert_stands_for(found, stored["values"])
    tensors["m.weight_shape"] = np.array([17, 128])
    assert "says [17, 128]" in refusal(tmp_path, settings, tensors, stored["values"].shape)


@pytest.mark.parametrize("n", [32, 28, 9])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_packed_integers_with_zeros_and_an_order_stand_for_their_values(bits, n, tmp_path):
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (n, 96)).astype(np.uint8)
    zeros = rng.integers(0, 1 << bits, (n, 3)).astype(np.uint8)
    order, scales = np.repeat([2, 0, 1], 32), bf16_values(rng.uniform(0.01, 0.02, (n, 3)))
    tensors = {
        "m.weight_packed": bit_stream(codes, bits).view(np.int32),
        "m.weight_scale": bf16(scales),
        "m.weight_zero_point": bit_stream(zeros.T.copy(), bits).T.copy().view(np.int32),
        "m.weight_g_idx": order.astype(np.int32),
    }
    found = matrix_of(tmp_path, ct("pack-quantized", bits), tensors, (n, 96))
    values = scales[:, order] * (codes.astype(np.float32) - zeros[:, order])
    assert_stands_for(found, values)


@pytest.mark.parametrize("scale_shape", [(24, 1), (24, 2), (1,)])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_plain_integers_of_compressed_tensors_become_int8(scale_shape, has_zeros, tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (24, 64)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, scale_shape).astype(np.float32)
    tensors, zeros = {"m.weight": weight, "m.weight_scale": scales}, np.zeros(scale_shape)
    if has_zeros:
        zeros = rng.integers(-9, 9, scale_shape).astype(np.int8)
        tensors["m.weight_zero_point"] = zeros
    found = matrix_of(tmp_path, ct("int-quantized", 8), tensors, (24, 64))
    assert found.form.kind == "int8" and found.form.has_bias == has_zeros
    columns = 64 // scale_shape[-1]
    grouped = [np.repeat(np.atleast_2d(part), columns, axis=1) for part in (scales, zeros)]
    assert_stands_for(found, grouped[0] * (weight.astype(np.float32) - grouped[1]))


def test_nvfp4_of_compressed_tensors_divides_by_its_global_scale_and_modelopts_multiplies(tmp_path):
    stored = golden("modelopt_nvfp4")
    values, factor = stored["values"], stored["weight_scale_2"].reshape(1)
    packed, scales = stored["weight"], ("F8_E4M3", stored["weight_scale_e4m3"])
    settings = config({"quant_method": "modelopt", "quant_algo": "NVFP4"})
    tensors = {"m.weight": packed, "m.weight_scale": scales, "m.weight_scale_2": factor}
    assert_stands_for(matrix_of(tmp_path, settings, tensors, values.shape), values)
    tensors = {"m.weight_packed": packed, "m.weight_scale": scales}
    tensors["m.weight_global_scale"] = (1 / factor).astype(np.float32)
    settings = ct("nvfp4-pack-quantized", type="float")
    assert_stands_for(matrix_of(tmp_path, settings, tensors, values.shape), values)
    del tensors["m.weight_global_scale"]
    assert "global_scale" in refusal(tmp_path, settings, tensors, values.shape)


def test_mxfp4_and_mxfp8_of_compressed_tensors_are_exact(tmp_path):
    stored = golden("mlx_mxfp4")
    tensors = {
        "m.weight_packed": stored["weight"].view(np.uint8),
        "m.weight_scale": stored["scales"],
    }
    found = matrix_of(tmp_path, ct("mxfp4-pack-quantized"), tensors, stored["values"].shape)
    assert found.form.kind == "fp4"
    np.testing.assert_array_equal(device_values(found), stored["values"])
    stored = golden("mlx_mxfp8")
    weight = ("F8_E4M3", stored["weight"].view(np.uint8))
    tensors = {"m.weight": weight, "m.weight_scale": stored["scales"]}
    found = matrix_of(tmp_path, ct("mxfp8-quantized", 8), tensors, stored["values"].shape)
    assert (found.form.kind, found.form.scale_bytes) == ("fp8", EXPONENTS)
    np.testing.assert_array_equal(device_values(found), stored["values"])


def test_blocks_of_8_bit_floats_stay_as_they_are(tmp_path):
    stored = golden("fp8_block")
    weight = ("F8_E4M3", stored["weight"])
    tensors = {"m.weight": weight, "m.weight_scale_inv": stored["weight_scale_inv"]}
    found = matrix_of(tmp_path, config(FP8), tensors, stored["values"].shape)
    assert found.form == Form("fp8", 32, 4)  # of 96 columns
    np.testing.assert_array_equal(device_values(found), stored["values"])


POWER, PLAIN = np.full((1, 1), 2.0**-9, np.float32), np.float32(0.003)


@pytest.mark.parametrize(
    "settings, name, scale, wide",
    [
        (config(FP8), "weight_scale_inv", POWER, "bf16"),
        (config(FP8), "weight_scale_inv", ("F8_E8M0", np.full((1, 1), 118, np.uint8)), "bf16"),
        (config({"quant_method": "fp8"}), "weight_scale", PLAIN, "f16"),
        (ct("float-quantized", 8), "weight_scale", bf16(np.full((20, 1), 0.003)), "f16"),
        (config({"quant_method": "modelopt", "quant_algo": "FP8"}), "weight_scale", PLAIN, "f16"),
    ],
)
@pytest.mark.parametrize("k", [64, 60])
def test_a_scale_of_8_bit_floats_may_be_a_power_of_two_a_rows_or_the_tensors(
    settings, name, scale, wide, k, tmp_path
):
    weight, values = float8((20, k))
    scale = scale if isinstance(scale, tuple) else np.asarray(scale)
    factor = 2.0**-9 if wide == "bf16" else 0.003
    if isinstance(scale, tuple) and scale[0] == "BF16":
        factor = bf16_values(np.float32(0.003))
    found = matrix_of(tmp_path, settings, {"m.weight": weight, f"m.{name}": scale}, (20, k))
    # Groups of 32 columns at least: where none divides them, the matrix becomes a wider one.
    assert found.form.kind == ("fp8" if k == 64 else wide)
    assert_stands_for(found, values * np.float32(factor), exact=k == 64 or wide == "bf16")


def test_blocks_that_end_within_the_matrix_share_smaller_groups(tmp_path):
    weight, values = float8((20, 160))
    scales = np.array([[0.3, 0.7], [0.9, 0.2]], np.float32)
    settings = config(FP8, weight_block_size=[16, 128])
    found = matrix_of(
        tmp_path, settings, {"m.weight": weight, "m.weight_scale_inv": scales}, (20, 160)
    )
    assert found.form == Form("fp8", 32, 4)
    spread = np.repeat(np.repeat(scales, 16, axis=0)[:20], 128, axis=1)[:, :160]
    np.testing.assert_array_equal(device_values(found), values * spread)


@pytest.mark.parametrize("size", [1 << 40, 10**30])
def test_blocks_may_be_larger_than_the_matrix(size, tmp_path):
    weight, values = float8((20, 64))
    scale = np.linspace(0.5, 1, 20, dtype=np.float32)[:, None]
    settings = config(FP8, weight_block_size=[1, size])
    tensors = {"m.weight": weight, "m.weight_scale_inv": scale}
    found = matrix_of(tmp_path, settings, tensors, (20, 64))
    assert_stands_for(found, values * scale)


def test_a_number_that_is_none_is_refused_when_it_is_converted(tmp_path):
    weight, _ = float8((20, 64))
    weight[1][7, 3] = 0x7F
    tensors = {"m.weight": weight, "m.weight_scale_inv": np.ones((1, 1), np.float32)}
    found = matrix_of(tmp_path, config(FP8), tensors, (20, 64))
    with pytest.raises(ModelFileError, match="in row 7 that is no finite number"):
        found.arrays(0, 20)


@pytest.mark.parametrize("name", ["bnb_nf4", "bnb_nf4_double"])
@pytest.mark.parametrize("own_table", [False, True])
def test_codes_of_nf4_stay_and_those_of_another_table_become_float16(name, own_table, tmp_path):
    stored = golden(name)
    values = stored.pop("values")
    tensors = {"m.weight": stored.pop("weight")}
    for key, array in stored.items():
        key = key.replace("quant_state__bitsandbytes", "quant_state.bitsandbytes")
        tensors[f"m.weight.{key}"] = np.atleast_1d(array)
    if own_table:
        tensors["m.weight.quant_map"] = tensors["m.weight.quant_map"] * np.float32(0.75)
        values = values * np.float32(0.75)
    found = matrix_of(tmp_path, config(BNB), tensors, values.shape)
    assert found.form == (Form("f16") if own_table else Form("nf4", 64, 4))
    assert_stands_for(found, values, exact=not own_table)
    assert set(tensors) == {part.name for part in found.parts}
    del tensors["m.weight.quant_map"]
    assert "quant_map" in refusal(tmp_path, config(BNB), tensors, values.shape)


def test_bitsandbytes_of_8_bits_is_refused(tmp_path):
    settings = config(BNB, load_in_4bit=False, load_in_8bit=True)
    assert "load_in_4bit is False" in refusal(
        tmp_path, settings, {"m.w": np.zeros(1, "f4")}, (1, 1)
    )


@pytest.mark.parametrize("n", [24, 128, 16])  # 128: as many rows as columns; 16: k / 8
@pytest.mark.parametrize("layout", ["A", "B1", "B2"])
def test_the_original_projects_layouts_are_told_apart_and_lossless(layout, n, tmp_path):
    tensors, values = original_parts(layout, n)
    found = matrix_of(tmp_path, {}, tensors, values.shape)
    assert (found.form.kind, found.form.group_size, found.form.scale_bytes) == ("fp4", 64, 2)
    np.testing.assert_array_equal(device_values(found), values)


def test_a_rotation_that_is_marked_is_undone(tmp_path):
    tensors, values = original_parts("B1", rotate=64)
    found = matrix_of(tmp_path, {}, tensors, values.shape)
    assert found.form.kind == "f16"
    np.testing.assert_allclose(device_values(found), values, rtol=2**-10, atol=1e-6)


def test_what_the_original_project_damaged_is_refused_with_the_reason(tmp_path):
    tensors, values = original_parts("B1")
    settings = {"format": "mmfp4_e2m1_marlin", "actorder": True}
    (tmp_path / "quantization_config.json").write_text(json.dumps(settings))
    assert "its scales lost their order" in refusal(tmp_path, {}, tensors, values.shape)
    (tmp_path / "quantization_config.json").write_text('{"format": "trellis_v3"}')
    assert "format is 'trellis_v3'" in refusal(tmp_path, {}, tensors, values.shape)


def test_groups_of_the_original_project_must_be_as_long_as_it_says(tmp_path):
    tensors, values = original_parts("A")
    tensors["m.weight.group_size"] = np.array([32], np.int32)
    found = refusal(tmp_path, {}, tensors, values.shape)
    assert "says 32; the scales are of 64 columns" in found
