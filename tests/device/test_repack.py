"""GGUF blocks become packed tiles that stand for exactly the same numbers."""

import launch
import numpy as np
import pytest
import reference
from foreign_files import golden
from ggml_blocks import blank, random_blocks, width_of
from matrices import activations

from marlin.weights import formats, ggml_types
from marlin.weights.block_types import REPACKED


@pytest.mark.parametrize("ggml_type", REPACKED)
@pytest.mark.parametrize("num_rows, num_blocks", [(1, 1), (15, 2), (16, 3), (17, 1), (33, 2)])
def test_a_repacked_weight_stands_for_the_same_numbers(device, ggml_type, num_rows, num_blocks):
    k = width_of(ggml_type, num_blocks)
    raw, packed = random_blocks(ggml_type, num_rows, k), blank(ggml_type, num_rows, k)
    launch.repack(device, raw, packed, ggml_type)
    expected = ggml_types.dequantize(ggml_type, raw, (num_rows, k))
    # Q4_0 is d * (q - 8) there and d * q - 8 * d here, each rounded once to float32.
    magnitude = np.abs(expected) + np.abs(formats.dequantize(packed)).max()
    actual = formats.dequantize(packed)
    reference.assert_close(actual, reference.Expected(expected, magnitude))
    if ggml_type != "Q4_0":
        np.testing.assert_array_equal(actual, expected)


def test_mxfp4_of_a_foreign_writer_is_repacked_without_loss(device, checkout):
    golden = np.load(checkout / "tests" / "data" / "gguf_mxfp4.npz")
    raw, values = golden["blocks"].reshape(4, -1), golden["values"].reshape(4, 64)
    packed = blank("MXFP4", 4, 64)
    launch.repack(device, raw, packed, "MXFP4")
    np.testing.assert_array_equal(formats.dequantize(packed), values)
    np.testing.assert_array_equal(launch.embed(device, [3, 0, 2], packed), values[[3, 0, 2]])


def test_the_scale_of_an_mxfp4_block_is_any_power_of_two_or_no_number(device):
    raw, packed = np.zeros((6, 17), np.uint8), blank("MXFP4", 6, 32)
    raw[:, 0] = [0, 1, 126, 127, 254, 255]
    launch.repack(device, raw, packed, "MXFP4")
    scales = formats.unpack(packed)[1][:, 0]
    assert scales[:5].tolist() == [2.0**-127, 2.0**-126, 0.5, 1.0, 2.0**127]
    assert np.isnan(scales[5])


@pytest.mark.parametrize(
    "name", ["IQ4_NL", "IQ4_XS", "NVFP4", "Q1_0", "Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"]
)
def test_blocks_of_a_foreign_writer_are_repacked_without_loss(device, name):
    stored = golden(f"gguf_{name}")
    packed = blank(name, *stored["values"].shape)
    launch.repack(device, stored["blocks"], packed, name)
    np.testing.assert_array_equal(formats.dequantize(packed), stored["values"])


def test_a_factor_of_the_whole_matrix_multiplies_its_scales(device):
    stored = golden("gguf_NVFP4")
    packed = blank("NVFP4", *stored["values"].shape)
    launch.repack(device, stored["blocks"], packed, "NVFP4", factor=0.25)
    np.testing.assert_array_equal(formats.dequantize(packed), stored["values"] / 4)


@pytest.mark.parametrize("ggml_type", REPACKED)
def test_rows_that_pad_the_last_tile_stay_zero(any_device, ggml_type):
    k = width_of(ggml_type, 1)
    packed = blank(ggml_type, 17, k)
    launch.repack(any_device, random_blocks(ggml_type, 17, k), packed, ggml_type)
    arrays = [packed.codes, packed.scales, packed.biases]
    if packed.scale_bytes == 1:
        arrays = [packed.codes, *(packed.scales[name] for name in packed.scales.dtype.names)]
    for array in arrays:
        if array is not None:
            is_bytes = array is packed.codes and array.ndim == 4
            last = array[-1].transpose(0, 2, 1) if is_bytes else array[-1]
            assert last[..., 0].any() and not last[..., 1:].any()


@pytest.mark.parametrize("ggml_type", ["Q4_1", "Q6_K"])
@pytest.mark.parametrize("num_heads, head_dim", [(1, 16), (3, 16), (2, 48)])
def test_interleaved_rope_rows_become_half_split(device, ggml_type, num_heads, head_dim):
    num_rows, k = num_heads * head_dim, width_of(ggml_type, 1)
    raw, packed = random_blocks(ggml_type, num_rows, k), blank(ggml_type, num_rows, k)
    launch.repack(device, raw, packed, ggml_type, permute_heads=num_heads)
    order = reference.rope_row_order(num_rows, num_heads)
    straight = blank(ggml_type, num_rows, k)
    launch.repack(device, raw[order], straight, ggml_type)
    np.testing.assert_array_equal(formats.dequantize(packed), formats.dequantize(straight))


def test_the_rope_order_of_four_rows_is_worked_by_hand():
    # Pairs (0, 1) and (2, 3) become pairs (0, 2) and (1, 3).
    assert reference.rope_row_order(4, 1).tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("ggml_type", REPACKED)
def test_a_repacked_weight_multiplies_as_its_numbers_do(device, ggml_type):
    k = 256
    raw, packed = random_blocks(ggml_type, 17, k), blank(ggml_type, 17, k)
    launch.repack(device, raw, packed, ggml_type)
    x = activations(3, k)
    weight = ggml_types.dequantize(ggml_type, raw, (17, k))
    _, scales, biases = formats.unpack(packed)
    largest = np.repeat(np.abs(scales.astype(np.float64)), packed.group_size, axis=1) * 15
    if biases is not None:
        largest = largest + np.repeat(np.abs(biases.astype(np.float64)), packed.group_size, axis=1)
    magnitude = np.abs(weight) + (largest if packed.biases is not None else 0)
    seen = x if device.kind == "metal" else reference.quantize_activations(x).values
    expected = reference.linear(seen, weight, weight_magnitude=magnitude)
    reference.assert_close(launch.linear(device, x, packed), expected)


@pytest.mark.parametrize("ggml_type", REPACKED)
def test_every_instruction_set_and_thread_count_repacks_to_the_same_bytes(isa, devices, ggml_type):
    k = width_of(ggml_type, 2)
    raw = random_blocks(ggml_type, 37, k)
    results = []
    for device in (devices.get("scalar"), devices.get(isa, 1), devices.get(isa, 3)):
        packed = blank(ggml_type, 37, k)
        launch.repack(device, raw, packed, ggml_type)
        results.append((packed.codes.tobytes(), packed.scales.tobytes()))
    assert results[0] == results[1] == results[2]
