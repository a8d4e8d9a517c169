"""Rows of tables are what the whole table has there, whatever its file stores them as."""

import os

import numpy as np
import pytest

from marlin.errors import ModelFileError
from marlin.weights import ggml_types
from marlin.weights.block_types import BLOCK_TYPES
from marlin.weights.row_table import RowTable, hold
from marlin.weights.tensor_file import TensorInfo

ROWS, COLUMNS = 12, 512


def table(path, dtype):
    """(RowTable of a file, float32 of all of it); numbers at random."""
    row_bytes = COLUMNS // BLOCK_TYPES[dtype].values * BLOCK_TYPES[dtype].bytes
    raw = np.random.default_rng(0).integers(0, 60, (ROWS, row_bytes), np.uint8)
    path.write_bytes(bytes(7) + raw.tobytes())
    info = TensorInfo("rows", dtype, (ROWS, COLUMNS), 7, raw.size, str(path))
    return RowTable(hold(info)), ggml_types.dequantize(dtype, raw, (ROWS, COLUMNS))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"])
def test_rows_are_those_of_the_whole_in_any_order_and_repeated(dtype, tmp_path):
    rows, whole = table(tmp_path / "m", dtype)
    asked = [11, 0, 3, 3]
    np.testing.assert_array_equal(rows.rows(np.array(asked, np.int32)), whole[asked])


def test_a_file_that_is_replaced_is_read_as_it_was(tmp_path):
    rows, whole = table(tmp_path / "m", "F16")
    (tmp_path / "n").write_bytes(bytes(20_000))
    os.replace(tmp_path / "n", tmp_path / "m")
    np.testing.assert_array_equal(rows.rows([4]), whole[[4]])


def test_a_file_that_was_cut_short_is_named(tmp_path):
    rows, _ = table(tmp_path / "m", "F16")
    os.truncate(tmp_path / "m", 5000)
    rows.rows([3])
    with pytest.raises(ModelFileError, match=r"rows.*ends at byte 5000, before its tensor does"):
        rows.rows([3, 4])
