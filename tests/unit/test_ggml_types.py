"""Decoding of GGUF block types, against the `gguf` package and against blocks worked by hand."""

import gguf
import numpy as np
import pytest
from foreign_files import golden

from marlin.weights import ggml_types
from marlin.weights.block_types import BLOCK_TYPES, REPACKED


def random_blocks(dtype, num_rows, blocks_per_row):
    """Random bytes whose float16 fields are ordinary numbers, uint8 [num_rows, row bytes]."""
    rng = np.random.default_rng(BLOCK_TYPES[dtype].bytes)
    layout, _ = ggml_types.DECODERS[dtype]
    raw = rng.integers(0, 256, num_rows * blocks_per_row * layout.itemsize, np.uint8)
    for field in {"d", "m", "dmin"} & set(layout.names):
        raw.view(layout)[field] = rng.standard_normal(num_rows * blocks_per_row)
    if "e" in layout.names:
        raw.view(layout)["e"] = rng.integers(1, 250, num_rows * blocks_per_row)
    return raw.reshape(num_rows, -1)


# This package knows blocks of the other types only by their lengths, if at all.
DECODED = [name for name in REPACKED if name not in ("Q1_0", "Q2_0")]


@pytest.mark.parametrize("dtype", DECODED)
def test_random_blocks_decode_as_the_gguf_package_decodes_them(dtype):
    raw = random_blocks(dtype, num_rows=5, blocks_per_row=3)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[dtype])
    decoded = ggml_types.dequantize(dtype, raw.reshape(-1), (5, 3 * BLOCK_TYPES[dtype].values))
    # The same float32 operations in the same order: not a bit of difference.
    np.testing.assert_array_equal(decoded, expected)
    assert decoded.dtype == np.float32


@pytest.mark.parametrize("dtype", REPACKED)
def test_a_block_layout_is_as_long_as_the_reader_thinks(dtype):
    assert ggml_types.DECODERS[dtype][0].itemsize == BLOCK_TYPES[dtype].bytes


@pytest.mark.parametrize("dtype, layout", [("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2")])
def test_plain_types_become_float32(dtype, layout):
    raw = np.array([[1.5, -2], [0.25, 3]], layout).view(np.uint8)
    decoded = ggml_types.dequantize(dtype, raw, (2, 2))
    assert decoded.tolist() == [[1.5, -2], [0.25, 3]] and decoded.dtype == np.float32


def test_bfloat16_is_the_upper_half_of_a_float32():
    raw = np.array([0x3F80, 0xC000, 0x0000, 0x7F80], "<u2").view(np.uint8)
    assert ggml_types.dequantize("BF16", raw, (4,)).tolist() == [1.0, -2.0, 0.0, np.inf]


def test_mxfp4_blocks_of_a_foreign_writer_decode_to_its_values(checkout):
    golden = np.load(checkout / "tests" / "data" / "gguf_mxfp4.npz")
    decoded = ggml_types.dequantize("MXFP4", golden["blocks"].reshape(-1), golden["values"].shape)
    np.testing.assert_array_equal(decoded, golden["values"])


@pytest.mark.parametrize("dtype", ["Q1_0", "Q2_0"])
def test_blocks_that_the_package_lacks_decode_to_the_goldens_values(dtype):
    stored = golden(f"gguf_{dtype}")
    decoded = ggml_types.dequantize(dtype, stored["blocks"].reshape(-1), stored["values"].shape)
    np.testing.assert_array_equal(decoded, stored["values"])


def test_mxfp4_is_e2m1_times_a_power_of_two():
    block = np.zeros(17, np.uint8)
    block[1:9] = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    low, high = [0, 1, 2, 4, 0, -1, -2, -4], [0.5, 1.5, 3, 6, -0.5, -1.5, -3, -6]
    for exponent, scale in ((127, 1.0), (129, 4.0), (0, 2.0**-127)):
        block[0] = exponent
        decoded = ggml_types.dequantize("MXFP4", block, (32,))
        assert decoded[:8].tolist() == [scale * value for value in low]
        assert decoded[16:24].tolist() == [scale * value for value in high]
    block[0] = 255
    assert np.isnan(ggml_types.dequantize("MXFP4", block, (32,))).all()


def test_q4_1_takes_low_nibbles_first():
    block = np.array([1.0, 0.5], np.float16).tobytes() + bytes([0x21] + [0] * 15)
    values = ggml_types.dequantize("Q4_1", np.frombuffer(block, np.uint8), (1, 32))[0]
    assert values[0] == 1.5 and values[16] == 2.5 and values[1] == 0.5


def test_a_length_that_does_not_fit_the_shape_is_an_error():
    with pytest.raises(ValueError, match="34 bytes of Q8_0 are not"):
        ggml_types.dequantize("Q8_0", np.zeros(34, np.uint8), (2, 32))
    with pytest.raises(ValueError, match="35 bytes"):
        ggml_types.dequantize("Q8_0", np.zeros(35, np.uint8), (1, 32))


def test_a_type_without_a_decoder_is_an_error():
    with pytest.raises(ValueError, match="I32 cannot be decoded"):
        ggml_types.dequantize("I32", np.zeros(4, np.uint8), (1,))
