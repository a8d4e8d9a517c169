"""How the weights of a group become codes, a scale and, of int4, a bias.

Owns the searches that docs/formats.md describes. Everything is a group at a time: groups are
float32 [n, groups, group_size], factors float32 [1 or 2, n, groups], a scale and maybe a bias, both
exact in float16. Refuses to know how codes are stored (formats.py).
"""

import numpy as np

# Magnitudes of fp4's codes 0-7 (OCP Microscaling Formats v1.0, E2M1); bit 3 is the sign.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4_CODE_OF_DOUBLED = np.searchsorted(2 * E2M1, np.arange(13)).astype(np.uint8)
# What the codes of iq4 stand for, as of GGUF's IQ4_NL.
IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
_TABLES = {"fp4": np.concatenate([E2M1, -E2M1]), "iq4": IQ4}
# What the code of 0 is, of kinds without a table.
_ZEROS = {"int8": 128, "int6": 32}
MAX_HALF = 65504.0
TINY_HALF = 2.0**-24
# Below float32's normal range a scale has no finite inverse; such weights round to zero.
TINY_FLOAT = 2.0**-126

# Divisors of a group's largest magnitude tried as its fp4 scale, before least squares. 6 puts the
# largest weight on the largest code (plain absmax); smaller ones place the bulk of the group
# better, larger ones clip.
_FP4_DIVISORS = (6.0, 4.0, 4.6, 5.2, 6.8)
# Shares of a group's range that are cut off its lower and upper end to be tried as its int4 range,
# before least squares; without cuts it is plain min/max.
_INT4_CUTS = ((0, 0), (0.03, 0.03), (0.06, 0.06), (0.09, 0.09), (0, 0.1), (0.1, 0))
# Where columns matter unequally the best scale lies farther from plain, which most miss.
_WEIGHTED_FP4_DIVISORS = (*_FP4_DIVISORS, 3.6, 5.6, 7.6, 8.6)
_WEIGHTED_INT4_CUTS = (*_INT4_CUTS, (0.13, 0.13), (0, 0.2), (0.2, 0), (0, 0.35), (0.35, 0))


def fit(format, groups, importance=None):
    """The factors of each group with the least squared error that the search finds.

    Args:
        importance: float32 [groups, group_size] over 0, what a column's squared errors count;
            None: all alike.
    """
    if format == "int8":
        return _half_scale(np.abs(groups).max(axis=2) / np.float32(127))[None]
    if format == "fp4":
        return _search_fp4_scale(np.abs(groups), importance)[None]
    return _search_int4_affine(groups, importance)


def encode(format, groups, factors):
    """uint8 codes, as formats.pack() takes them, that are nearest to the weights."""
    if format == "int4":
        return _int4_codes(groups, factors).astype(np.uint8)
    scale = factors[0]
    if format == "int8":
        ratio = groups * _inverse(scale)[:, :, None]
        return (np.clip(np.rint(ratio), -127, 127) + 128).astype(np.uint8)
    # Doubled, the levels are integers that index the codes: 0 1 2 3 4 6 8 12.
    doubled = (2 * _fp4_levels(np.abs(groups), scale)).astype(np.uint8)
    return _FP4_CODE_OF_DOUBLED[doubled] | np.signbit(groups).astype(np.uint8) << 3


def levels(format, codes):
    """float32, what a scale is multiplied by for each code."""
    if format in _TABLES:
        return _TABLES[format][codes]
    return codes.astype(np.float32) - _ZEROS.get(format, 0)


def decode(format, codes, factors):
    """float32, the weights that codes [n, groups, group_size] and their factors stand for."""
    values = levels(format, codes)
    values *= factors[0][:, :, None]
    if len(factors) > 1:
        values += factors[1][:, :, None]
    return values


def half_factors(factors):
    """Factors as float16 can hold them; a scale that is not 0 does not become 0."""
    biases = np.clip(factors[1:], -MAX_HALF, MAX_HALF).astype(np.float16).astype(np.float32)
    return np.concatenate([_half_scale(factors[:1]), biases])


def _half_scale(scale):
    rounded = scale.astype(np.float16).astype(np.float32)
    return np.where((rounded == 0) & (scale > 0), np.float32(TINY_HALF), rounded)


def _inverse(scale):
    return np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) >= TINY_FLOAT)


def _dot(left, right, importance):
    """The sum over each group, weighted."""
    if importance is not None:
        left = left * importance
    return np.einsum("ngk,ngk->ng", left, right)


def _search_fp4_scale(magnitudes, importance):
    """float32 [n, groups] scales, exact in float16, for magnitudes [n, groups, group_size]."""
    largest = magnitudes.max(axis=2)
    fitted, best_gain = np.zeros_like(largest), np.zeros_like(largest)
    for divisor in _FP4_DIVISORS if importance is None else _WEIGHTED_FP4_DIVISORS:
        levels = _fp4_levels(magnitudes, largest / np.float32(divisor))
        # Levels fixed, the best scale is a.l / l.l; it lowers the squared error by (a.l)^2 / l.l.
        cross, power = _dot(levels, magnitudes, importance), _dot(levels, levels, importance)
        scale = cross / np.maximum(power, np.float32(TINY_HALF))
        better = scale * cross > best_gain
        fitted = np.where(better, scale, fitted)
        best_gain = np.where(better, scale * cross, best_gain)
    plain, fitted = _half_scale(largest / np.float32(6)), _half_scale(fitted)
    errors = [_fp4_error(magnitudes, scale, importance) for scale in (fitted, plain)]
    return np.where(errors[0] < errors[1], fitted, plain)


def _fp4_levels(magnitudes, scale):
    """The nearest E2M1 magnitude of each weight over its scale, as float32."""
    ratio = magnitudes * _inverse(scale)[:, :, None]
    np.minimum(ratio, 6, out=ratio)
    # From 1 up, E2M1 keeps one mantissa bit; below 1 its values are 0.5 apart.
    rounded = ((ratio.view(np.uint32) + (1 << 21)) & 0xFFC00000).view(np.float32)
    return np.where(ratio < 1, np.rint(ratio + ratio) * np.float32(0.5), rounded)


def _fp4_error(magnitudes, scale, importance):
    difference = _fp4_levels(magnitudes, scale) * scale[:, :, None] - magnitudes
    return _dot(difference, difference, importance)


def _search_int4_affine(groups, importance):
    """float32 [2, n, groups] scales and biases, exact in float16, for [n, groups, group_size]."""
    low, high = groups.min(axis=2), groups.max(axis=2)
    shares = np.float32(1) / groups.shape[2]
    if importance is not None:
        shares = importance / importance.sum(axis=1, keepdims=True)
    mean = (groups * shares).sum(axis=2)
    span = high - low
    fitted, best_gain = np.stack([span / 15, low]), np.zeros_like(low)
    for lower, upper in _INT4_CUTS if importance is None else _WEIGHTED_INT4_CUTS:
        width = np.float32((1 - lower - upper) / 15)
        first = np.stack([span * width, low + span * np.float32(lower)])
        codes = _int4_codes(groups, first)
        # Least squares line through (code, weight); it lowers the squared error by slope * cross.
        mean_code = (codes * shares).sum(axis=2)
        codes -= mean_code[:, :, None]
        cross, power = _dot(codes, groups, importance), _dot(codes, codes, importance)
        slope = cross / np.maximum(power, np.float32(TINY_HALF))
        better = slope * cross > best_gain
        fitted = np.where(better, np.stack([slope, mean - slope * mean_code]), fitted)
        best_gain = np.where(better, slope * cross, best_gain)
    plain, fitted = half_factors(np.stack([span / 15, low])), half_factors(fitted)
    errors = [_int4_error(groups, factors, importance) for factors in (fitted, plain)]
    return np.where(errors[0] < errors[1], fitted, plain)


def _int4_codes(groups, factors):
    scale, bias = factors
    codes = groups - bias[:, :, None]
    codes *= _inverse(scale)[:, :, None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, 15, out=codes)


def _int4_error(groups, factors, importance):
    scale, bias = factors[:, :, :, None]
    difference = _int4_codes(groups, factors) * scale + bias - groups
    return _dot(difference, difference, importance)
