"""Modules as MLX stores them: the numbers that come of them, and where they cannot be."""

import numpy as np
import pytest
from foreign_files import bf16, device_values, golden, matrix_of, mlx_affine

from marlin.errors import ModelFileError

CONFIG = {"group_size": 64, "bits": 4, "mode": "affine"}


def config(**changes):
    return {"quantization": CONFIG | changes}


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_affine_codes_stand_for_what_mlx_makes_of_them(bits, group_size, tmp_path):
    stored = golden(f"mlx_affine{bits}_g{group_size}")
    tensors = {
        "m.weight": stored["weight"],
        "m.scales": ("BF16", stored["scales_bf16"]),
        "m.biases": ("BF16", stored["biases_bf16"]),
    }
    found = matrix_of(tmp_path, config(bits=bits, group_size=group_size), tensors, (17, 256))
    assert found.form.kind == ("int4" if bits <= 4 else "int8")
    assert found.form.scale_bytes == 2 and found.form.has_bias
    np.testing.assert_array_equal(device_values(found), stored["values"])
    np.testing.assert_array_equal(found.values(3, 9), stored["values"][3:9])


@pytest.mark.parametrize(
    "mode, kind, tensors",
    [
        ("mxfp4", "fp4", "mlx_mxfp4"),
        ("nvfp4", "fp4", "mlx_nvfp4"),
        ("nvfp4", "fp4", "mlx_nvfp4_global"),
        ("mxfp8", "fp8", "mlx_mxfp8"),
    ],
)
def test_codes_with_scales_of_a_byte_stand_for_what_mlx_makes_of_them(
    mode, kind, tensors, tmp_path
):
    stored = golden(tensors)
    values = stored.pop("values")
    bits, group_size = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}[mode]
    settings = config(mode=mode, bits=bits, group_size=group_size)
    parts = {f"m.{name}": array for name, array in stored.items()}
    found = matrix_of(tmp_path, settings, parts, values.shape)
    assert found.form.kind == kind
    # The scale of a whole tensor is multiplied in another order: a rounding of float32.
    exact = "global" not in tensors
    np.testing.assert_allclose(device_values(found), values, rtol=0 if exact else 3e-7)


def affine_parts(to_scale=bf16, scale=1.0, **changes):
    values = np.random.default_rng(0).standard_normal((20, 128)).astype(np.float32)
    parts, expected = mlx_affine(values * np.float32(scale), 4, 64, to_scale)
    return {f"m.{name}": part for name, part in (parts | changes).items()}, expected


def test_scales_that_float16_does_not_hold_become_float32(tmp_path):
    tensors, expected = affine_parts(scale=1e-6)
    found = matrix_of(tmp_path, config(), tensors, (20, 128))
    assert found.form.scale_bytes == 4
    np.testing.assert_array_equal(device_values(found), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["quantization", "quantization_config"])
def test_settings_stand_under_either_name(name, tmp_path):
    tensors, expected = affine_parts(lambda values: values)
    found = matrix_of(tmp_path, {name: CONFIG}, tensors, (20, 128))
    np.testing.assert_array_equal(device_values(found), expected.astype(np.float32))


def test_a_module_of_its_own_bits_is_read_by_them_and_one_without_scales_is_dense(tmp_path):
    values = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    parts, expected = mlx_affine(values, 6, 32)
    tensors = {f"m.{name}": part for name, part in parts.items()}
    own = config(m={"bits": 6, "group_size": 32}, other=False)
    found = matrix_of(tmp_path, own, tensors, (16, 64))
    np.testing.assert_array_equal(device_values(found), expected.astype(np.float32))
    assert matrix_of(tmp_path, own, {"other.weight": values}, (16, 64), "other") is None


@pytest.mark.parametrize(
    "settings, changes, words",
    [
        (config(bits=8), {}, "weight.*is U32 .20, 16., expected U32 .20, 32."),
        (config(group_size=32), {}, "scales.*expected .* .20, 4."),
        (config(group_size=48), {}, "group_size is 48; expected one of 32, 64, 128"),
        (config(bits=7), {}, "bits is 7; expected one of 2, 3, 4, 5, 6, 8"),
        (config(mode="trellis"), {}, "mode is 'trellis'; expected one of affine, mxfp4"),
        (config(mode="mxfp4"), {}, "mode is 'mxfp4'; expected one with 4 bits in groups of 64"),
        (config(m=False), {}, "m is False; expected true, since m.scales is there"),
        (config(), {"biases": np.zeros((20, 2), np.float16)}, "is F16 .*, expected BF16"),
        (config(), {"scales": bf16(np.full((20, 2), np.inf))}, "row 0 that is no finite number"),
        (
            {"quantization": CONFIG, "quantization_config": CONFIG | {"bits": 8}},
            {},
            "expected what quantization says",
        ),
    ],
)
def test_settings_and_tensors_that_do_not_fit_are_refused(settings, changes, words, tmp_path):
    tensors, _ = affine_parts(**changes)
    with pytest.raises(ModelFileError, match=words):
        matrix_of(tmp_path, settings, tensors, (20, 128))


def test_biases_that_are_missing_are_named(tmp_path):
    tensors, _ = affine_parts()
    del tensors["m.biases"]
    with pytest.raises(ModelFileError, match="m.biases.* is missing beside m.scales"):
        matrix_of(tmp_path, config(), tensors, (20, 128))
