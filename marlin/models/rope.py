"""Rotary position embedding: the frequency of each pair of dimensions, and its scaling rules.

Owns the formulas; refuses to know where the numbers were read from and how the rotation is applied.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How a model stretches RoPE past the context it was first trained with.

    Attributes:
        type: None (no scaling), "linear", "llama3", "yarn", "longrope" or "proportional". The other
            fields belong to the types named; a type's own are never None but for attention_factor.
        factor: all but longrope: how much longer the context becomes, >= 1.
        num_turning: proportional: the first pairs, which turn; the others do not.
        original_max_tokens: llama3, yarn, longrope: the context before stretching.
        low_freq_factor, high_freq_factor: llama3: rotations within the original context below which
            a frequency is divided by factor, and above which it is kept.
        beta_fast, beta_slow: yarn: the same two bounds, in the other order.
        truncate: yarn: round those bounds outwards to whole dimensions.
        attention_factor: yarn, longrope: what cos and sin are multiplied by.
        short_factors, long_factors: longrope: what each frequency is divided by in contexts up to
            original_max_tokens, and in longer ones.
    """

    type: str | None = None
    factor: float = 1.0
    original_max_tokens: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool = True
    attention_factor: float = 1.0
    num_turning: int = 0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


def rope_inv_freq(head_dim, theta, scaling, factors=None, context_tokens=None):
    """Angles per position of the rotated pairs.

    Pair i is dimensions i and i + head_dim / 2 of a head (Hugging Face's order of rows).

    Args:
        head_dim, theta: pair i turns theta^(-2i / head_dim) radians a position without scaling.
        scaling: RopeScaling.
        factors: float [head_dim / 2] that divide the frequencies, the tensor `rope_freqs.weight`
            of a GGUF file, or None.
        context_tokens: the longest context that will be asked for; None is longer than any original
            one. Only longrope asks: a choice for each sequence would change the keys of its first
            tokens when it grows.

    Returns:
        (float32 [head_dim / 2] radians per position, float that cos and sin are multiplied by).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    inv_freq = theta**-exponents
    if scaling.type == "linear":
        inv_freq = inv_freq / scaling.factor
    elif scaling.type == "llama3":
        inv_freq = _llama3(inv_freq, scaling)
    elif scaling.type == "yarn":
        inv_freq = _yarn(inv_freq, scaling, head_dim, theta)
    elif scaling.type == "proportional":
        inv_freq = inv_freq / scaling.factor
        inv_freq[scaling.num_turning :] = 0.0
    elif scaling.type == "longrope":
        is_short = context_tokens is not None and context_tokens <= scaling.original_max_tokens
        chosen = scaling.short_factors if is_short else scaling.long_factors
        inv_freq = inv_freq / np.asarray(chosen, np.float64)
    if factors is not None:
        inv_freq = inv_freq / np.asarray(factors, np.float64)
    return inv_freq.astype(np.float32), float(scaling.attention_factor)


def yarn_attention_factor(factor, mscale=None, mscale_all_dim=None):
    """What YaRN multiplies cos and sin by when the model states no number of its own.

    Source: YaRN (arXiv 2309.00071), equation 22; mscale and mscale_all_dim are DeepSeek's ratio.
    """

    def grown(weight):
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale and mscale_all_dim:
        return grown(mscale) / grown(mscale_all_dim)
    return grown(1.0)


def longrope_attention_factor(factor, original_max_tokens):
    """What LongRoPE multiplies cos and sin by when the model states no number of its own.

    Source: LongRoPE (arXiv 2402.13753), as its authors' models have it.
    """
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_max_tokens))


def _llama3(inv_freq, scaling):
    rotations = scaling.original_max_tokens * inv_freq / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    return inv_freq * (kept + (1 - kept) / scaling.factor)


def _yarn(inv_freq, scaling, head_dim, theta):
    # Source: YaRN (arXiv 2309.00071), section 3.2: dimensions that rotate more than beta_fast times
    # in the original context are kept, those under beta_slow are interpolated, between them a ramp.
    def dimension_of(rotations):
        wavelengths = scaling.original_max_tokens / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelengths) / (2 * math.log(theta))

    first, last = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    # Equal bounds are a step; the small width only keeps the division defined.
    width = last - first if last != first else 0.001
    interpolated = np.clip((np.arange(head_dim // 2) - first) / width, 0, 1)
    return inv_freq * (1 - interpolated + interpolated / scaling.factor)
