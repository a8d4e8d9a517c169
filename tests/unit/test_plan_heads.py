"""plan_heads.py: a matrix of each head out of one, packed, that has the rows of all heads."""

from types import SimpleNamespace

import numpy as np
import pytest

from marlin.models.head_rows import HeadRows
from marlin.models.plan_heads import of_packed
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.kinds import ROW_TILE, Form

HEADS, COLUMNS = 3, 8
FORM = Form("int4")


def packed(num_rows):
    """A matrix whose codes say where they come from, and its values."""
    values = np.arange(HEADS * num_rows * COLUMNS, dtype=np.float32).reshape(-1, COLUMNS)
    info = SimpleNamespace(name="kv_b_proj")

    def arrays(start, stop):
        return values[start:stop] + 0.25, values[start:stop, :1]

    def some(start, stop):
        return values[start:stop]

    return values, ForeignMatrix(values.shape, (info,), FORM, some, arrays)


def each_head(values, num_rows, first, own):
    starts = [head * num_rows + first for head in range(HEADS)]
    return [values[start : start + own] for start in starts]


def tensor(rows, columns):
    return SimpleNamespace(name="per_head", shape=(HEADS, rows, columns))


@pytest.mark.parametrize("first", [0, ROW_TILE])
def test_whole_tiles_of_each_head_stay_packed(first):
    own = 2 * ROW_TILE
    values, whole = packed(3 * ROW_TILE)
    wanted = np.concatenate(each_head(values, 3 * ROW_TILE, first, own))
    rows = HeadRows("", "", 3 * ROW_TILE, first, turned=False)
    found = of_packed(tensor(own, COLUMNS), rows, whole)
    assert (found.shape, found.form) == (wanted.shape, FORM)
    for start, stop in ((0, len(wanted)), (own, 2 * own), (ROW_TILE, own + ROW_TILE)):
        assert (found.values(start, stop) == wanted[start:stop]).all()
        codes, scales = found.arrays(start, stop)
        assert (codes == wanted[start:stop] + 0.25).all()
        assert (scales == wanted[start:stop, :1]).all()


@pytest.mark.parametrize(
    ("num_rows", "first", "own", "turned"),
    [(3 * ROW_TILE, ROW_TILE, 2 * ROW_TILE, True), (6, 0, 4, True), (6, 2, 4, False)],
)
def test_what_is_turned_or_no_whole_tile_becomes_float16(num_rows, first, own, turned):
    values, whole = packed(num_rows)
    heads = each_head(values, num_rows, first, own)
    wanted = np.concatenate([head.T if turned else head for head in heads])
    shape = (COLUMNS, own) if turned else (own, COLUMNS)
    found = of_packed(tensor(*shape), HeadRows("", "", num_rows, first, turned), whole)
    assert (found.shape, found.form.kind) == (wanted.shape, "f16")
    for start, stop in ((0, len(wanted)), (3, 7), (len(wanted) - 5, len(wanted))):
        assert (found.values(start, stop) == wanted[start:stop]).all()
        (stored,) = found.arrays(start, stop)
        assert stored.dtype == np.float16
        assert (stored == wanted[start:stop].astype(np.float16)).all()
