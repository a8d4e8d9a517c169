"""Rows, columns and one-byte floats of foreign files, by numbers that can be checked by eye."""

import math

import numpy as np
import pytest

from marlin.errors import ModelFileError
from marlin.weights.foreign.numbers import E4M3, column_bytes, row_bytes, row_floats
from marlin.weights.formats import E8M0
from marlin.weights.tensor_file import TensorInfo


@pytest.fixture
def matrix(tmp_path):
    """float32 [3, 8]: row r has the numbers 8 r to 8 r + 7; 5 bytes stand before it."""
    path = tmp_path / "model"
    path.write_bytes(b"12345" + np.arange(24, dtype="<f4").tobytes())
    return TensorInfo("t", "F32", (3, 8), 5, 96, str(path))


def test_rows_are_read_where_they_lie(matrix):
    assert row_floats(matrix, 1, 3).tolist() == [list(range(8, 16)), list(range(16, 24))]
    assert row_bytes(matrix, 0, 1).view("<f4").tolist() == [list(range(8))]
    assert row_bytes(matrix, 2, 2).shape == (0, 32)
    empty = TensorInfo("e", "F32", (0, 8), 5, 0, matrix.path)
    assert row_bytes(empty, 0, 0).shape == (0, 0)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (7, 8), (0, 2), (3, 5), (0, 8), (2, 7)])
def test_columns_are_read_alone_or_with_all(matrix, start, stop):
    found = column_bytes(matrix, start, stop)
    assert found.shape == (3, 4 * (stop - start))
    expected = np.arange(24, dtype="<f4").reshape(3, 8)[:, start:stop]
    assert np.ascontiguousarray(found).view("<f4").tolist() == expected.tolist()


def test_a_file_that_became_shorter_is_told_with_the_tensor(matrix):
    with open(matrix.path, "r+b") as file:
        file.truncate(5 + 64 + 4)
        assert column_bytes(matrix, 0, 1).view("<f4").ravel().tolist() == [0, 8, 16]
        file.truncate(5 + 64 + 3)
    with pytest.raises(ModelFileError) as caught:
        column_bytes(matrix, 0, 1)
    assert caught.value.message == f"{matrix.path}: tensor 't': became shorter"


def test_one_byte_floats_are_those_of_their_specification():
    for byte, value in (
        (0x00, 0.0), (0x01, 2**-9), (0x07, 7 * 2**-9), (0x08, 2**-6), (0x38, 1.0), (0x3C, 1.5),
        (0x7E, 448.0), (0xB8, -1.0), (0xFE, -448.0), (0x80, -0.0),
    ):  # fmt: skip
        assert E4M3[byte] == value
    assert math.isnan(E4M3[0x7F]) and math.isnan(E4M3[0xFF]) and E4M3.dtype == np.float32
    assert (E8M0[127], E8M0[128], E8M0[0], E8M0[254]) == (1.0, 2.0, 2.0**-127, 2.0**127)
    assert math.isnan(E8M0[255]) and len(E8M0) == 256
