"""Scales that are numbers times a step of their row: where they lie, and that they lose nothing
that shows.
"""

import numpy as np
import pytest
from test_formats import squared_errors, weights_of

from marlin.weights.formats import FORMATS, dequantize, pack, quantize, quantize_native, unpack
from marlin.weights.kinds import OF_ROWS, native_form
from marlin.weights.rounding import decode, encode, fit
from marlin.weights.row_scales import FIRST_NUMBER, RowScales, numbers_of, snap, steps_of

STEPPED = [format for format in FORMATS if native_form(format, 32).scale_bytes == OF_ROWS]


def test_all_formats_but_that_of_eight_bits_have_them():
    assert set(FORMATS) - set(STEPPED) == {"int8"}


def test_a_tiles_steps_lie_before_its_numbers():
    steps = np.array([1.5] * 16 + [-2.0] * 4, np.float32)
    numbers = np.arange(20 * 3, dtype=np.int8).reshape(20, 3)
    packed = pack("iq4", np.zeros((20, 96), np.uint8), RowScales(steps, numbers))
    assert packed.scales.shape == (2, 5, 16) and packed.scale_bytes == OF_ROWS
    assert packed.scales[0, :2].tobytes() == np.full(16, 0x3FC0, "<u2").tobytes()
    assert packed.scales[1, 0, :8].tobytes() == np.full(4, 0xC000, "<u2").tobytes()
    assert packed.scales[1, 2:, 3].tolist() == [57, 58, 59]
    assert not packed.scales[1, 2:, 4:].any()
    np.testing.assert_array_equal(unpack(packed)[1], steps[:, None] * numbers)


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("format", STEPPED)
def test_they_lose_next_to_nothing_beside_float16(format, kind):
    weights = weights_of(kind, (48, 1024))
    halves, stepped = (dequantize(quantize(format, weights, 32, native=n)) for n in (False, True))
    before, after = (squared_errors(weights, v, 1024).sum() for v in (halves, stepped))
    assert 0.99 * before < after < 1.06 * before
    assert quantize_native(format, weights, 32).scales.nbytes < 0.6 * 2 * weights.size / 32


@pytest.mark.parametrize("format", STEPPED)
def test_neighbours_of_the_nearest_number_are_tried(format):
    groups = weights_of("heavy", (48, 1024)).reshape(48, -1, 32)
    groups[:, 0] *= 12  # so that the others' numbers are few and coarse
    factors = fit(format, groups, None)
    steps = steps_of(factors)

    def errors(factors):
        values = decode(format, encode(format, groups, factors), factors)
        return np.square(values - groups).sum(axis=2)[:, 1:]

    nearest = errors(numbers_of(factors, steps) * steps)
    snapped = errors(snap(format, groups, None, factors, steps))
    assert (snapped <= nearest * (1 + 1e-5)).mean() > 0.99
    assert snapped.sum() < 0.995 * nearest.sum()


def test_steps_are_bfloat16_and_the_largest_factors_have_the_first_number():
    factors = np.random.default_rng(0).standard_normal((2, 40, 8)).astype(np.float32)
    steps = steps_of(factors)
    assert not (steps.view(np.uint32) & 0xFFFF).any()
    largest = np.abs(numbers_of(factors, steps)).max(axis=2)
    assert (largest <= FIRST_NUMBER).all() and (largest >= FIRST_NUMBER - 1).all()


@pytest.mark.parametrize("format", STEPPED)
def test_rows_of_zeros_and_of_what_is_next_to_zero_stay_so(format):
    weights = weights_of("normal", (4, 64))
    weights[1], weights[2], weights[3, 32:] = 0, 2.0**-140, 0
    values = dequantize(quantize_native(format, weights, 32))
    assert np.isfinite(values).all()
    assert not values[1].any() and np.abs(values[2]).max() < 2.0**-20
    assert np.abs(values[3, 32:]).max() < 0.01 * np.abs(weights[3]).max()
