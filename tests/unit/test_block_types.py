"""The tables of block types and weight kinds: Python's and the header's are one, and whole."""

import re

import pytest

from marlin.weights import ggml_types
from marlin.weights.block_types import BLOCK_TYPES, GGUF_TYPES, REPACKED, UNREAD_GGUF_TYPES
from marlin.weights.kinds import BLOCK_COLUMNS, EXPONENTS, KINDS, MAY, MUST, NEVER, PACKED_KINDS

BIASES = {"MARLIN_NEVER": NEVER, "MARLIN_MAY": MAY, "MARLIN_MUST": MUST}


@pytest.fixture(scope="module")
def header(checkout):
    return (checkout / "shaders" / "block_types.h").read_text()


def rows_of(header, table):
    """The cells of each row of a table, as the header spells them."""
    rows = re.search(rf"#define {table}\(X\)(.*?)\n(?!    X\()", header, re.DOTALL)[1]
    return [re.split(r",\s*", row) for row in re.findall(r"X\((.*?)\)", rows)]


def test_the_header_has_every_kind_as_python_has_it(header):
    in_c = [
        (name, int(bits), int(group), BIASES[bias])
        for name, bits, group, bias in rows_of(header, "MARLIN_WEIGHT_KINDS")
    ]
    assert in_c == [(k.name, k.bits, k.least_group, k.bias) for k in KINDS.values()]


def test_the_header_has_every_repacked_type_as_python_has_it(header):
    in_c = rows_of(header, "MARLIN_BLOCK_TYPES")
    in_python = [
        [row.name, row.number, row.values, row.bytes, row.kind]
        + [row.group_size, row.scale_bytes, int(row.has_bias)]
        for row in REPACKED.values()
    ]
    assert in_c == [[str(cell) for cell in row] for row in in_python]


@pytest.mark.parametrize("name", REPACKED)
def test_a_repacked_type_becomes_what_its_kind_can_be(name):
    row, kind = REPACKED[name], KINDS[REPACKED[name].kind]
    assert row.values % row.group_size == 0 and row.group_size >= kind.least_group > 0
    assert kind.bias in ((MAY, MUST) if row.has_bias else (MAY, NEVER))
    assert row.scale_bytes in (1, 2, 4, EXPONENTS)
    assert row.scale_bytes != 1 or row.values == BLOCK_COLUMNS
    assert row.scale_bytes != EXPONENTS or not row.has_bias


def test_every_type_that_a_matrix_may_be_of_has_a_decoder():
    assert {row.name for row in BLOCK_TYPES.values() if row.kind} <= set(ggml_types.DECODERS)


def test_no_number_is_two_types():
    numbers = [row.number for row in BLOCK_TYPES.values() if row.number is not None]
    assert len(numbers) == len(GGUF_TYPES) and not set(GGUF_TYPES) & set(UNREAD_GGUF_TYPES)


def test_the_parts_of_a_repacked_matrix_are_of_whole_tiles():
    # 17 rows are two tiles of 16: 4 bits a value, and a float16 scale and bias for each 32 of them.
    assert REPACKED["Q4_1"].part_bytes(17, 64) == (32 * 64 // 2, 32 * 2 * 2, 32 * 2 * 2)
    # 6 bits a value, a byte for each 16 of them and a float16 for all.
    assert REPACKED["Q6_K"].part_bytes(1, 256) == (16 * 256 * 6 // 8, 16 * (16 + 2), 0)
    # 4 bits a value, and a byte for each 32 of them: as in its file.
    assert REPACKED["MXFP4"].part_bytes(16, 64) == (16 * 32, 16 * 2, 0)
    assert 16 * (32 + 2) == 16 * 64 // REPACKED["MXFP4"].values * REPACKED["MXFP4"].bytes


def test_codes_of_a_packed_matrix_have_the_shape_of_its_tiles():
    assert KINDS["fp4"].code_dtype == "U32" and KINDS["fp4"].code_shape(17, 64) == (2, 8, 16)
    assert KINDS["int8"].code_dtype == "U8" and KINDS["int8"].code_shape(17, 64) == (2, 16, 16, 4)
    assert PACKED_KINDS == ("fp4", "int4", "int8", "int5", "int6", "iq4", "fp8", "nf4")
