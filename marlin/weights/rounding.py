"""How the weights of a group become codes, a scale and, of int4 and int5, a bias.

Owns the searches that docs/formats.md describes. Everything is a group at a time: groups are
float32 [n, groups, group_size], factors float32 [1 or 2, n, groups], a scale and maybe a bias, both
exact in float16. Refuses to know how codes are stored (formats.py).
"""

from functools import partial

import numpy as np

# Magnitudes of fp4's codes 0-7 (OCP Microscaling Formats v1.0, E2M1); bit 3 is the sign.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4_CODE_OF_DOUBLED = np.searchsorted(2 * E2M1, np.arange(13)).astype(np.uint8)
# What the codes of iq4 stand for, as of GGUF's IQ4_NL.
IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
# What those of nf4 do, quantiles of a normal distribution (Dettmers et al., "QLoRA", appendix E).
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], np.float32
)  # fmt: skip


def _e4m3():
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    values = np.where(
        exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    )
    return np.where(bits & 128, -values, values).astype(np.float32)


# By byte, as kernels have it: 0x7F and 0xFF, which elsewhere are no numbers, are 480 and -480.
E4M3 = _e4m3()
_TABLES = {"fp4": np.concatenate([E2M1, -E2M1]), "iq4": IQ4, "fp8": E4M3, "nf4": NF4}
# The code of iq4 whose number is nearest to half of index - 254: numbers lie halfway between two
# of its numbers at multiples of a half alone.
_IQ4_CODES = np.searchsorted((IQ4[1:] + IQ4[:-1]) / 2, np.arange(-254, 227) / 2, "right")
_IQ4_CODES = _IQ4_CODES.astype(np.uint8)
# What the code of 0 is, of kinds without a table.
_ZEROS = {"int8": 128, "int6": 32}
# The largest code of kinds with a bias.
_TOPS = {"int4": 15, "int5": 31}
MAX_HALF = 65504.0
TINY_HALF = 2.0**-24
# Below float32's normal range a scale has no finite inverse; such weights round to zero.
TINY_FLOAT = 2.0**-126

# Divisors of a group's largest magnitude tried as its fp4 scale, before least squares. 6 puts the
# largest weight on the largest code (plain absmax); smaller ones place the bulk of the group
# better, larger ones clip.
_FP4_DIVISORS = (6.0, 4.0, 4.6, 5.2, 6.8, 3.6, 5.6, 7.6, 8.6)
# Shares of a group's range that are cut off its lower and upper end to be tried as the range of
# codes with a bias, before least squares; without cuts it is plain min/max.
_CUTS = (
    *((0, 0), (0.03, 0.03), (0.06, 0.06), (0.09, 0.09), (0.13, 0.13), (0, 0.05), (0.05, 0)),
    *((0, 0.1), (0.1, 0), (0.03, 0.1), (0.1, 0.03), (0, 0.2), (0.2, 0)),
)
# Where columns matter unequally the best range may lie far inside.
_WEIGHTED_CUTS = (*_CUTS, (0, 0.35), (0.35, 0))
# What a group's largest weight is taken to be of, of kinds whose numbers end farther from zero on
# one side than on the other: the first is plain.
_SIGNED_DIVISORS = {
    "iq4": (-127, -117, -107, -137, 113, 101, -95, -83, -150, -170, 125, 89),
    "int6": (-32, 31, -33.5, 33, -30, 29, -36),
}
# Times that codes are chosen again for the best factors and these fitted again; more gain nothing.
_REFITS = 2


def fit(format, groups, importance):
    """The factors of each group with the least squared error that the search finds.

    Args:
        importance: float32 [groups, group_size] over 0, what a column's squared errors count;
            None: all alike.
    """
    if format == "int8":
        return _half_scale(np.abs(groups).max(axis=2) / np.float32(127))[None]
    if format == "fp4":
        return _search_fp4_scale(np.abs(groups), importance)[None]
    if format in _SIGNED_DIVISORS:
        return _search_signed_scale(format, groups, importance)[None]
    return _search_affine(groups, importance, _TOPS[format])


def encode(format, groups, factors):
    """uint8 codes, as formats.pack() takes them, that are nearest to the weights."""
    if format in _TOPS:
        return _affine_codes(groups, factors, _TOPS[format]).astype(np.uint8)
    scale = factors[0]
    if format != "fp4":
        ratio = groups * _inverse(scale)[:, :, None]
    if format == "int8":
        return (np.clip(np.rint(ratio), -127, 127) + 128).astype(np.uint8)
    if format == "int6":
        return (np.clip(np.rint(ratio), -32, 31) + 32).astype(np.uint8)
    if format == "iq4":
        halves = np.floor(2 * np.clip(ratio, -127, 113)) + 254
        return _IQ4_CODES[halves.astype(np.int16)]
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
    least = np.copysign(np.float32(TINY_HALF), scale)
    return np.where((rounded == 0) & (scale != 0), least, rounded)


def _inverse(scale):
    return np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) >= TINY_FLOAT)


def _dot(left, right, importance):
    """The sum over each group, weighted."""
    if importance is not None:
        left = left * importance
    return np.einsum("ngk,ngk->ng", left, right)


def _best_scale(groups, starts, importance, numbers_of):
    """The best scale that least squares finds from what is tried first, and again from there.

    Args:
        starts: float32 [n, groups] each.
        numbers_of: of scales, what the nearest codes multiply them by.
    """
    fitted, best_gain = np.zeros_like(starts[0]), np.zeros_like(starts[0])
    for start in (*starts, *[None] * _REFITS):
        numbers = numbers_of(fitted if start is None else start)
        # Numbers fixed, the best scale is a.l / l.l; it lowers the squared error by (a.l)^2 / l.l.
        cross, power = _dot(numbers, groups, importance), _dot(numbers, numbers, importance)
        scale = cross / np.maximum(power, np.float32(TINY_HALF))
        better = scale * cross > best_gain
        fitted = np.where(better, scale, fitted)
        best_gain = np.where(better, scale * cross, best_gain)
    return fitted


def _search_fp4_scale(magnitudes, importance):
    """float32 [n, groups] scales, exact in float16, for magnitudes [n, groups, group_size]."""
    largest = magnitudes.max(axis=2)
    starts = [largest / np.float32(divisor) for divisor in _FP4_DIVISORS]
    fitted = _best_scale(magnitudes, starts, importance, partial(_fp4_levels, magnitudes))
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


def _search_signed_scale(format, groups, importance):
    """As _search_fp4_scale(), for the groups themselves and scales of either sign."""
    at = np.abs(groups).argmax(axis=2)[:, :, None]
    largest = np.take_along_axis(groups, at, axis=2)[:, :, 0]
    starts = [largest / np.float32(divisor) for divisor in _SIGNED_DIVISORS[format]]

    def numbers_of(scale):
        return levels(format, encode(format, groups, scale[None]))

    fitted = _best_scale(groups, starts, importance, numbers_of)
    tried = [_half_scale(scale) for scale in (fitted, starts[0])]
    errors = []
    for scale in tried:
        difference = decode(format, encode(format, groups, scale[None]), scale[None]) - groups
        errors.append(_dot(difference, difference, importance))
    return np.where(errors[0] < errors[1], *tried)


def _search_affine(groups, importance, top):
    """float32 [2, n, groups] scales and biases, exact in float16, for [n, groups, group_size]."""
    low, high = groups.min(axis=2), groups.max(axis=2)
    shares = np.float32(1) / groups.shape[2]
    if importance is not None:
        shares = importance / importance.sum(axis=1, keepdims=True)
    mean = (groups * shares).sum(axis=2)
    span = high - low
    fitted, best_gain = np.stack([span / top, low]), np.zeros_like(low)
    cuts = _CUTS if importance is None else _WEIGHTED_CUTS
    for cut in (*cuts, *[None] * _REFITS):
        start = fitted
        if cut is not None:
            width = np.float32((1 - sum(cut)) / top)
            start = np.stack([span * width, low + span * np.float32(cut[0])])
        codes = _affine_codes(groups, start, top)
        # Least squares line through (code, weight); it lowers the squared error by slope * cross.
        mean_code = (codes * shares).sum(axis=2)
        codes -= mean_code[:, :, None]
        cross, power = _dot(codes, groups, importance), _dot(codes, codes, importance)
        slope = cross / np.maximum(power, np.float32(TINY_HALF))
        better = slope * cross > best_gain
        fitted = np.where(better, np.stack([slope, mean - slope * mean_code]), fitted)
        best_gain = np.where(better, slope * cross, best_gain)
    plain, fitted = half_factors(np.stack([span / top, low])), half_factors(fitted)
    errors = [_affine_error(groups, factors, importance, top) for factors in (fitted, plain)]
    return np.where(errors[0] < errors[1], fitted, plain)


def _affine_codes(groups, factors, top):
    scale, bias = factors
    codes = groups - bias[:, :, None]
    codes *= _inverse(scale)[:, :, None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, top, out=codes)


def _affine_error(groups, factors, importance, top):
    scale, bias = factors[:, :, :, None]
    difference = _affine_codes(groups, factors, top) * scale + bias - groups
    return _dot(difference, difference, importance)
