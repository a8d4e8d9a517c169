"""Codes that are chosen for the inputs that a matrix has."""

import numpy as np
import pytest

from marlin.weights.feedback import Moments, quantize_with_feedback, trust_of
from marlin.weights.formats import dequantize, quantize
from marlin.weights.rounding import decode, encode, fit

NUM_ROWS, NUM_COLUMNS = 48, 192


def inputs(count, seed):
    """Inputs whose columns differ in size and go along with each other."""
    mixing = np.random.default_rng(0)
    sizes = np.exp(mixing.normal(size=NUM_COLUMNS))
    mixture = np.diag(sizes) + mixing.normal(size=(NUM_COLUMNS, NUM_COLUMNS)) / 8
    draws = np.random.default_rng(seed).normal(size=(count, NUM_COLUMNS))
    return (draws @ mixture).astype(np.float32)


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(5).normal(size=(NUM_ROWS, NUM_COLUMNS)).astype(np.float32) / 50


def moments_of(x, trust=None):
    if trust is None:
        trust = trust_between_halves(x)
    return [Moments(x.T @ x / len(x), trust)]


def trust_between_halves(x):
    return trust_of(*(part.T @ part for part in np.array_split(x, 2)))


def output_error(packed, weights, x):
    difference = x @ (dequantize(packed) - weights).T
    return np.linalg.norm(difference) / np.linalg.norm(x @ weights.T)


@pytest.mark.parametrize("format, size", [("fp4", 32), ("int4", 32), ("int4", 64), ("int8", 32)])
def test_feedback_beats_weighting_and_weighting_beats_none_on_other_inputs(weights, format, size):
    seen, others = inputs(2000, 1), inputs(500, 2)
    moments = moments_of(seen)
    plain = output_error(quantize(format, weights, size), weights, others)
    importance = moments[0].diagonal
    weighted = output_error(quantize(format, weights, size, importance), weights, others)
    packed = quantize_with_feedback(format, weights, size, moments)
    assert output_error(packed, weights, others) < 0.8 * plain  # measured 0.61 to 0.74
    assert weighted <= plain
    assert format == "int8" or weighted < 0.98 * plain  # measured 0.90 to 0.97


@pytest.mark.parametrize("format", ["fp4", "iq4", "int4", "int5", "int6"])
def test_feeding_errors_forward_keeps_to_a_rows_steps(weights, format):
    seen, others = inputs(2000, 1), inputs(500, 2)
    moments = moments_of(seen)
    halves, stepped = (
        output_error(quantize_with_feedback(format, weights, 32, moments, native), weights, others)
        for native in (False, True)
    )
    assert stepped < 1.04 * halves


def test_products_of_columns_are_believed_as_far_as_two_halves_agree(weights):
    assert trust_between_halves(inputs(20000, 1)) > 0.9
    independent = np.random.default_rng(3).normal(size=(400, NUM_COLUMNS)).astype(np.float32)
    assert trust_between_halves(independent) < 0.1
    few, others = inputs(100, 1), inputs(500, 2)
    errors = [
        output_error(quantize_with_feedback("iq4", weights, 32, moments), weights, others)
        for moments in (moments_of(few), moments_of(few, trust=1))
    ]
    assert errors[0] < 0.92 * errors[1], errors  # measured 0.86


@pytest.mark.parametrize("num_columns", [192, 256, 576, 640])
def test_moments_and_what_feeds_errors_forward_share_one_matrix(num_columns):
    x = np.random.default_rng(0).normal(size=(2000, num_columns)).astype(np.float32)
    given = x.T @ x / len(x)
    moments = Moments(given, 0.5)
    damped = 0.5 * x.T @ x / len(x)
    damped[np.diag_indices(num_columns)] = moments.diagonal
    upper = np.triu(moments.feedback)
    assert np.shares_memory(moments.feedback, given)
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(num_columns), atol=1e-4)
    values = x[:64, :8]
    for start in range(0, num_columns, 64):
        group = slice(start, start + 64)
        np.testing.assert_allclose(moments.among(group), damped[group, group], atol=1e-6)
        np.testing.assert_allclose(
            moments.times(group, values), damped[:, group] @ values, atol=1e-4
        )


def test_columns_in_parts_are_quantized_each_by_its_own_moments(weights):
    x = inputs(500, 1)
    parts = [moments_of(x[:, part], 0.7)[0] for part in (slice(0, 128), slice(128, None))]
    whole = dequantize(quantize_with_feedback("int4", weights, 64, parts))
    for part, moments in zip((slice(0, 128), slice(128, None)), parts, strict=True):
        alone = dequantize(quantize_with_feedback("int4", weights[:, part], 64, [moments]))
        np.testing.assert_array_equal(whole[:, part], alone)


def test_feedback_keeps_rows_apart(weights):
    seen = inputs(300, 1)
    moments = moments_of(seen)
    whole = dequantize(quantize_with_feedback("int4", weights, 64, moments))
    part = dequantize(quantize_with_feedback("int4", weights[16:32], 64, moments))
    np.testing.assert_allclose(part, whole[16:32], atol=2e-3)


@pytest.mark.parametrize("format", ["fp4", "int4", "int8"])
def test_inputs_that_are_all_zero_leave_a_matrix_that_is_close(weights, format):
    moments = [Moments(np.zeros((NUM_COLUMNS, NUM_COLUMNS), np.float32), 1)]
    values = dequantize(quantize_with_feedback(format, weights, 32, moments))
    assert np.linalg.norm(values - weights) < 0.1 * np.linalg.norm(weights)


@pytest.mark.parametrize("format", ["fp4", "int4"])
def test_a_column_of_no_importance_gives_way_to_those_that_have_some(format):
    groups = np.random.default_rng(3).normal(size=(200, 1, 32)).astype(np.float32)
    groups[:, 0, 7] = 4
    importance = np.ones((1, 32), np.float32)
    importance[0, 7] = 1e-3
    rest = np.arange(32) != 7

    def error(importance):
        factors = fit(format, groups, importance)
        values = decode(format, encode(format, groups, factors), factors)
        return np.linalg.norm((values - groups)[:, 0, rest])

    assert error(importance) < 0.96 * error(None)  # measured 0.93 (fp4) and 0.80 (int4)


@pytest.mark.parametrize("value, expected", [(np.nan, "is nan"), (1e5, "over the limit")])
def test_a_weight_that_cannot_be_quantized_is_named(weights, value, expected):
    broken = weights.copy()
    broken[3, 9] = value
    moments = [Moments(np.eye(NUM_COLUMNS, dtype=np.float32), 1)]
    with pytest.raises(ValueError, match=expected):
        quantize_with_feedback("fp4", broken, 32, moments)
