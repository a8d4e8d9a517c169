"""The oracle: what each kernel should compute, in plain numpy, clear rather than fast.

Owns the mathematics and how close a device must come to it. Knows no device, no buffer and no
packed byte: a packed weight arrives as the matrix it stands for.

Sums are float64. What a kernel only moves or computes element by element is float32 here too, in
the same order, and is compared bit by bit.
"""

import math
from typing import NamedTuple

import numpy as np

# Largest error allowed: a share of the magnitude of what was added up, and what counts as nothing.
#   float32  Kernels multiply and add in float32, where one rounding is 2^-24 = 6e-8. Sums here have
#            at most about 1000 terms, whose roundings walk at random to some 30 of them. An
#            exponential below 2^-126, float32's smallest normal, may be 0, and silu multiplies it
#            by its argument of about 100.
#   float16  A key or value is rounded once when it is stored; a device that fuses a multiply and
#            an add may land on the other side of a rounding boundary, one unit in the last place
#            away.
TOLERANCES = {"float32": (2e-6, 1e-35), "float16": (2.0**-10, 2.0**-24)}

ACT_GROUP = 32
# Largest codes tried for a group of activations; the largest value that counts as no activation.
ACT_LEVELS = np.array([127.0, 125.3, 123.7, 122.1], np.float32)
SMALLEST_ACTIVATION = np.float32(1e-30)
# Below this share of its group's largest value every other one lies, if that one is left out.
OUTLIER_SHARE = np.float32(0.25)
KEY_TILE = 16
MAX_HALF = 65504.0


class Expected(NamedTuple):
    """A value and the size of what cancelled on the way to it; both of the result's shape."""

    value: np.ndarray
    magnitude: np.ndarray


def assert_close(actual, expected, dtype="float32"):
    """Fail, naming the worst place, unless actual is within TOLERANCES[dtype] of an Expected."""
    assert actual.shape == expected.value.shape, (actual.shape, expected.value.shape)
    error = np.abs(actual.astype(np.float64) - expected.value)
    relative, negligible = TOLERANCES[dtype]
    share = error / (relative * np.abs(expected.magnitude.astype(np.float64)) + negligible)
    if not (share <= 1).all():
        worst = np.unravel_index(np.argmax(np.where(np.isnan(share), np.inf, share)), share.shape)
        raise AssertionError(
            f"{np.sum(~(share <= 1))} of {share.size} values are off, the worst at "
            f"{[int(i) for i in worst]}: {actual[worst]!r}, not {expected.value[worst]!r}, "
            f"{share[worst]:.3g} times the tolerance"
        )


def linear(x, weight, bias=None, weight_magnitude=None):
    """y = x W^T + b.

    Args:
        x: [rows, k]; weight: [n, k]; bias: [n] or None.
        weight_magnitude: [n, k], what cancels inside a weight (|scale * code| + |bias|); None: |W|.
    """
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    magnitude = np.abs(x) @ (np.abs(weight) if weight_magnitude is None else weight_magnitude).T
    value = x @ weight.T
    if bias is not None:
        value, magnitude = value + bias, magnitude + np.abs(bias)
    return Expected(value, magnitude)


class QuantizedRows(NamedTuple):
    """Activations as packed linear kernels see them.

    Attributes:
        values: float64 [rows, k], codes * scales, and outliers as they are.
        codes: int8 [rows, k]; of an outlier 0.
        scales: float64 [rows, k / 32].
        settled: bool [rows, k / 32], whether the best step leads by more than float32 can blur.
    """

    values: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    settled: np.ndarray


def outliers_of(groups):
    """Bool like groups, float32 [..., 32]: a value that all others of its group are less than a
    quarter of. Such a value stays a float."""
    sizes = np.abs(groups)
    largest = sizes.max(axis=-1, keepdims=True)
    reaches = sizes >= largest * OUTLIER_SHARE
    return reaches & (reaches.sum(axis=-1, keepdims=True) == 1) & (largest > SMALLEST_ACTIVATION)


def quantize_activations(x):
    """int8 codes in groups of 32 along k, outliers left out: of four steps, the one that rounds the
    group with the least squared error, and then the scale that fits its codes q best, x.q / q.q.

    Args:
        x: float32 [rows, k], k a multiple of 32.
    """
    groups = x.astype(np.float32).reshape(len(x), -1, ACT_GROUP)
    is_outlier = outliers_of(groups)
    outliers = np.where(is_outlier, groups, 0).astype(np.float64)
    groups = np.where(is_outlier, np.float32(0), groups)
    largest = np.abs(groups).max(axis=2)
    alive = largest > SMALLEST_ACTIVATION
    factors = ACT_LEVELS / np.where(alive, largest, 1)[:, :, None]
    scaled = groups[:, :, None] * factors[:, :, :, None]
    tried = np.rint(scaled).astype(np.float64)
    errors = ((scaled - tried) ** 2).sum(axis=3) / ACT_LEVELS.astype(np.float64) ** 2
    best = np.argmin(errors, axis=2)[:, :, None]
    least, runner_up = np.moveaxis(np.sort(errors, axis=2)[:, :, :2], 2, 0)
    codes = np.take_along_axis(tried, best[:, :, :, None], 2)[:, :, 0] * alive[:, :, None]
    scales = (codes * groups).sum(axis=2) / np.maximum((codes * codes).sum(axis=2), 1)
    return QuantizedRows(
        (codes * scales[:, :, None] + outliers).reshape(x.shape),
        codes.astype(np.int8).reshape(x.shape),
        scales,
        ~alive | (runner_up - least > 1e-4 * least),
    )


def bfloat16(values):
    """(float32 values cut to bfloat16's, their uint16 bits)."""
    bits = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return (bits.astype(np.uint32) << 16).view(np.float32), bits


def rms_norm(x, weight, eps, delta=None, delta_scale=1.0, added_to=None):
    """y = s * weight / sqrt(mean(s^2) + eps) with s = x + delta * delta_scale.

    Args:
        x, delta: float32 [..., dim]; weight: [dim].
        added_to: float32 [..., dim] that y is added to, or None.

    Returns:
        (Expected y, float32 s, each product and sum rounded once together).
    """
    summed = x
    if delta is not None:
        summed = (x.astype(np.float64) + delta.astype(np.float64) * np.float32(delta_scale)).astype(
            np.float32
        )
    wide = summed.astype(np.float64)
    y = wide * weight / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if added_to is None:
        return Expected(y, np.abs(y)), summed
    return Expected(y + added_to, np.abs(y) + np.abs(added_to)), summed


def layer_norm(x, weight, bias, eps, delta=None):
    """y = (s - mean) / sqrt(variance + eps) * weight + bias with s = x + delta; as rms_norm()."""
    summed = x if delta is None else x + delta
    wide = summed.astype(np.float64)
    mean = wide.mean(axis=1, keepdims=True)
    inverse = 1 / np.sqrt(np.mean((wide - mean) ** 2, axis=1, keepdims=True) + eps)
    magnitude = (np.abs(wide) + np.abs(mean)) * inverse * np.abs(weight) + np.abs(bias)
    return Expected((wide - mean) * inverse * weight + bias, magnitude), summed


def rope_table(positions, inv_freq, scale):
    """[rows, 2, half_dim]: cos and sin of the float32 angle, times scale."""
    angles = positions.astype(np.float32)[:, None] * inv_freq.astype(np.float32)
    value = np.stack([np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))], 1)
    return Expected(value * scale, np.full(value.shape, scale))


def rotate(heads, table, interleaved=False):
    """RoPE on the first rotary_dim dimensions, in half-split pairs (i, i + rotary_dim / 2) or
    neighbours (2i, 2i + 1), float32 with each product rounded.

    Args:
        heads: float32 [rows, num_heads, head_dim]; table: float32 [rows, 2, rotary_dim / 2].
    """
    cos, sin, pairs = table[:, None, 0], table[:, None, 1], table.shape[2]
    turned = heads.copy()
    one, other = slice(0, pairs), slice(pairs, 2 * pairs)
    if interleaved:
        one, other = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    low, high = heads[..., one], heads[..., other]
    turned[..., one], turned[..., other] = low * cos - high * sin, high * cos + low * sin
    return turned


def to_half(values):
    """float16, out of range to the largest finite one."""
    return np.clip(values, -MAX_HALF, MAX_HALF).astype(np.float16)


def to_kv(values, dtype):
    """As a KV cache of that type holds them."""
    return to_half(values) if dtype == np.float16 else values.astype(dtype)


def write_kv(k_cache, v_cache, k, v, slots):
    """Store k and v float32 [rows, num_kv_heads, head_dim] at their slots, in place.

    Args:
        k_cache: float16 or float32 [num_blocks, num_kv_heads, block_size / 16, head_dim, 16].
        v_cache: the same [num_blocks, num_kv_heads, block_size, head_dim].
        slots: block * block_size + offset of each row.
    """
    block, offset = np.divmod(np.asarray(slots, np.int64), v_cache.shape[2])
    k_cache[block, :, offset // KEY_TILE, :, offset % KEY_TILE] = to_kv(k, k_cache.dtype)
    v_cache[block, :, offset] = to_kv(v, v_cache.dtype)


def read_kv(k_cache, v_cache, table, count):
    """Keys and values of positions [0, count) of a table, [count, kv_heads, dim] each."""
    position, block_size = np.arange(count), v_cache.shape[2]
    block, offset = np.asarray(table)[position // block_size], position % block_size
    return k_cache[block, :, offset // KEY_TILE, :, offset % KEY_TILE], v_cache[block, :, offset]


def attention(
    q,
    keys,
    values,
    positions,
    window=0,
    scale=None,
    softcap=0.0,
    position_scale=0.0,
    scale_tokens=1,
    sinks=None,
):
    """Causal attention of one sequence.

    Args:
        q: [rows, num_heads, head_dim]; keys, values: [context, num_kv_heads, head_dim].
        positions: int [rows]; a query sees (position - window, position], or all before it for 0.
        scale: of the scores; None is head_dim ** -0.5.
        softcap: scores become softcap * tanh(score / softcap); 0: they stay.
        position_scale, scale_tokens: a query is multiplied by 1 + position_scale * ln(1 + position
            // scale_tokens).
        sinks: [num_heads] scores that take their share of a head's softmax and have no value.
    """
    growth = 1 + position_scale * np.log1p(np.asarray(positions) // scale_tokens)
    q, keys, values = (array.astype(np.float64) for array in (q, keys, values))
    repeats = q.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, repeats, axis=1), np.repeat(values, repeats, axis=1)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    distance = np.asarray(positions)[:, None] - np.arange(len(keys))
    seen = (distance >= 0) & (distance < (window or len(keys)))
    q = q * growth[:, None, None]
    scores = np.einsum("rhd,chd->rhc", q, keys) * scale
    # An error of a score changes its weight by as large a share; its own size is its terms'.
    terms = np.einsum("rhd,chd->rhc", np.abs(q), np.abs(keys)) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
        terms = terms + softcap
    scores = np.where(seen[:, None], scores, -np.inf)
    sinks = np.full(q.shape[1], -np.inf) if sinks is None else sinks.astype(np.float64)
    largest = np.maximum(scores.max(axis=2, keepdims=True), sinks[None, :, None])
    weights = np.exp(scores - largest)
    weights /= weights.sum(axis=2, keepdims=True) + np.exp(sinks[None, :, None] - largest)
    sizes = np.einsum("rhc,chd->rhd", weights, np.abs(values))
    strongest = np.where(seen[:, None], terms, 0).max(axis=2, keepdims=True)
    return Expected(np.einsum("rhc,chd->rhd", weights, values), sizes * (1 + strongest))


def silu_mul(gate, up):
    """gate / (1 + exp(-gate)) * up."""
    wide = gate.astype(np.float64)
    # exp of -|gate| cannot overflow.
    small = np.exp(-np.abs(wide))
    value = wide * np.where(wide >= 0, 1, small) / (1 + small) * up
    # exp's error grows with its argument.
    return Expected(value, np.abs(value) * (1 + np.abs(wide)))


def gelu_mul(gate, up):
    """gate * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 * gate^3))) / 2 * up."""
    wide = gate.astype(np.float64)
    # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), which loses nothing where tanh is almost -1.
    slope = 2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    small = np.exp(-np.abs(slope))
    value = wide * np.where(wide >= 0, 1, small) / (1 + small) * up
    return Expected(value, np.abs(value) * (1 + np.abs(slope)))


def sigmoid_mul(gate, up):
    """up / (1 + exp(-gate))."""
    wide = gate.astype(np.float64)
    small = np.exp(-np.abs(wide))
    value = np.where(wide >= 0, 1, small) / (1 + small) * up
    # A sigmoid near 0 may have an error of a float32's last place near 1.
    return Expected(value, np.abs(up).astype(np.float64))


def scale_rows(x, scale, cap=0.0):
    """x * scale, or cap * tanh(x * scale / cap)."""
    wide = x.astype(np.float64) * np.float32(scale)
    if not cap:
        return Expected(wide, np.abs(wide))
    value = cap * np.tanh(wide / cap)
    return Expected(value, np.full(value.shape, float(cap)))


def gelu(x):
    """x * (1 + erf(x / sqrt(2))) / 2; its sum of 1 and erf rounds like one of numbers near 1."""
    erf = np.array([math.erf(value) for value in x.ravel() / math.sqrt(2)]).reshape(x.shape)
    return Expected(x * (1 + erf) / 2, np.abs(x))


def embed(weight, token_ids):
    """Rows of W [vocab_size, dim]."""
    return weight[token_ids]


def mask_logits(logits, masks, rows):
    """A copy of logits, float32 [any, vocab_size], with minus infinity where a mask's bit is 0.

    Args:
        masks: uint32 [num_masks, ceil(vocab_size / 32)]; bit i of a word is token 32 * word + i.
        rows: the row of logits of each mask.
    """
    logits = logits.copy()
    for row, words in zip(rows, masks, strict=True):
        bits = [int(words[i // 32]) >> i % 32 & 1 for i in range(logits.shape[1])]
        logits[row, np.array(bits) == 0] = -np.inf
    return logits


def penalize(logits, entries, row):
    """Penalties and biases of one row of logits, float32 in the documented order.

    Args:
        logits: float32 [vocab_size].
        entries: (token_id, num_outputs, bias) of each token; num_outputs 0: only in the prompt,
            -1: not seen at all.
        row: mapping with repetition_penalty, frequency_penalty and presence_penalty.
    """
    logits = logits.copy()
    repetition, frequency, presence = (
        np.float32(row[f"{name}_penalty"]) for name in ("repetition", "frequency", "presence")
    )
    for token_id, num_outputs, bias in entries:
        x = logits[token_id]
        if num_outputs >= 0:
            x = x / repetition if x > 0 else x * repetition
        if num_outputs > 0:
            x = x - (np.float32(num_outputs) * frequency + presence)
        logits[token_id] = x + np.float32(bias)
    return logits


def distribution(logits, temperature=1.0, top_p=1.0, min_p=0.0, top_k=0):
    """Each token's probability, float64 [vocab_size]: temperature, min_p, top_k, top_p in turn.

    Args:
        temperature: 0 puts all on the lowest id among the largest logits.
        top_p: keep the fewest likeliest tokens whose share of what top_k left is at least this.
        min_p: keep tokens at least this likely, relative to the likeliest.
        top_k: keep this many; 0 is all. Among equals, lower ids first.
    """
    logits = logits.astype(np.float64)
    order = np.argsort(-logits, kind="stable")
    if temperature <= 0:
        return np.eye(len(logits))[order[0]]
    weights = np.exp((logits - logits[order[0]]) / temperature)
    weights[weights < min_p] = 0
    if top_k:
        weights[order[top_k:]] = 0
    cumulative = np.cumsum(weights[order])
    enough = int(np.argmax(cumulative >= min(top_p, 1 - 1e-12) * cumulative[-1]))
    weights[order[enough + 1 :]] = 0
    return weights / weights.sum()


def uniform(seed, position):
    """The draw in [0, 1) of a seed at a position: SplitMix64 (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return ((z ^ z >> 31) >> 11) * 2.0**-53


def rope_row_order(num_rows, num_heads):
    """The GGUF row of each half-split row: pairs (i, i + 1) become (i, i + head_dim / 2)."""
    pairs = np.arange(num_rows).reshape(num_heads, -1, 2)
    return pairs.transpose(0, 2, 1).reshape(-1)
