"""Codes chosen for what a matrix does to the inputs that it was seen to have, not weight by weight.

What a code gets wrong of one column, later columns make good as far as their inputs go along with
it (GPTQ, arXiv 2210.17323); then every scale and every code is moved once more to where it is best
with all others as they are. Owns the mathematics; refuses to know where inputs come from.
"""

import numpy as np

from marlin.weights.formats import grouped, has_row_scales, pack, stored
from marlin.weights.rounding import TINY_FLOAT, decode, encode, fit, half_factors, levels
from marlin.weights.row_scales import numbers_of, snap, steps_of

# What is added to the diagonal, as a share of its mean. Inputs that calibration never saw apart
# come apart in use, so that more than the usual 0.01 is added.
DAMPING = 0.1
# Passes over all codes after the first choice; on random matrices a third gained about 1%.
SWEEPS = 2
# Columns whose effects on each other are worked out one by one; on others by matrix products.
RUN_COLUMNS = 8


# Columns of a matrix of moments that are factored at a time: a multiple of every group size.
BLOCK_COLUMNS = 128


class Moments:
    """The second moments of some columns of a matrix's inputs, and what feeds errors forward.

    Args:
        matrix: float32 [K, K], the mean of x x^T, which is taken over: one such matrix is all the
            memory that there is for both.
        trust: the share, 0 to 1, of the products of different columns that is believed.

    Attributes:
        diagonal: float32 [K], of the damped moments.
        feedback: float32 [K, K], whose upper triangle is U with U^T U the inverse of the damped
            moments; below its blocks lie the moments themselves.
    """

    def __init__(self, matrix, trust):
        self.diagonal = np.diagonal(matrix).copy()
        matrix *= np.float32(trust)
        self.diagonal += np.float32(DAMPING * (float(self.diagonal.mean()) or 1.0))
        np.fill_diagonal(matrix, self.diagonal)
        self._blocks = _blocks_of(len(matrix))
        self._near = [matrix[block, block].copy() for block in self._blocks]
        self.feedback = matrix
        self._factor()
        self._invert()

    def _factor(self):
        """Make of the upper triangle R, with R R^T the moments, from the last block on."""
        upper = self.feedback
        for number in range(len(self._blocks) - 1, -1, -1):
            block = self._blocks[number]
            root = np.linalg.cholesky(upper[block, block][::-1, ::-1])[::-1, ::-1]
            upper[block, block] = root
            above = upper[: block.start, block]
            above[...] = above @ np.linalg.inv(root).T
            for other in self._blocks[:number]:
                upper[: other.stop, other] -= above[: other.stop] @ above[other].T

    def _invert(self):
        """Make of R its inverse, from the first block on."""
        upper = self.feedback
        for number, block in enumerate(self._blocks):
            inverse = np.triu(np.linalg.inv(upper[block, block]))
            upper[block, block] = inverse
            above = upper[: block.start, block]
            for other in self._blocks[:number]:
                given = upper[other, other.start : block.start] @ above[other.start :]
                above[other] = -given @ inverse

    def among(self, group):
        """float32 [G, G], the moments of a group's columns."""
        number, start = divmod(group.start, BLOCK_COLUMNS)
        near = slice(start, start + group.stop - group.start)
        return self._near[number][near, near]

    def times(self, group, values):
        """The moments' columns of a group times values [G, N]: float32 [K, N]."""
        number = group.start // BLOCK_COLUMNS
        block = self._blocks[number]
        near = slice(group.start - block.start, group.stop - block.start)
        found = np.empty((len(self.diagonal), values.shape[1]), np.float32)
        np.matmul(self.feedback[group, : block.start].T, values, out=found[: block.start])
        np.matmul(self._near[number][:, near], values, out=found[block])
        np.matmul(self.feedback[block.stop :, group], values, out=found[block.stop :])
        return found


def _blocks_of(num_columns):
    starts = range(0, num_columns, BLOCK_COLUMNS)
    return [slice(start, min(start + BLOCK_COLUMNS, num_columns)) for start in starts]


def trust_of(first, second):
    """The share of the products of different columns that is there in other inputs, too, by least
    squares over products relative to the columns' own.

    Args:
        first, second: float32 [columns, columns], sums of x x^T over each half of what was seen.
    """
    sizes = np.sqrt(np.maximum(np.diagonal(first) + np.diagonal(second), np.float32(TINY_FLOAT)))
    pair = [np.triu(half / sizes / sizes[:, None], 1).ravel() for half in (first, second)]
    power = float(pair[0] @ pair[0] + pair[1] @ pair[1])
    agreed = max(0.0, 2 * float(pair[0] @ pair[1]) / power) if power else 0.0
    return 2 * agreed / (1 + agreed)  # both halves together have half the noise


def quantize_with_feedback(format, weights, group_size, moments, native=False):
    """Quantize rows so that their products with the inputs change least.

    Args:
        weights: float32 [N, K]; rows do not depend on each other.
        moments: Moments of the inputs' first columns, the next, and so on; of columns in different
            ones it is not known how they go together.

    Returns:
        PackedWeight with float16 scales, or with those that are native.

    Raises:
        ValueError: a weight is NaN, infinite or too large for a float16 scale.
    """
    groups = grouped(weights, group_size)
    columns = np.ascontiguousarray(groups.reshape(weights.shape).T)
    costs = np.concatenate([_costs(part.feedback, group_size) for part in moments])
    steps = steps_of(fit(format, groups, costs)) if native and has_row_scales(format) else None
    found, start = [], 0
    for part in moments:
        own = columns[start : start + len(part.diagonal)]
        codes, factors = _feed_forward(format, own, group_size, part.feedback, steps)
        for _ in range(SWEEPS):
            _sweep(format, own, group_size, part, codes, factors, steps)
        found.append((codes, factors))
        start += len(own)
    codes, factors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    factors = np.ascontiguousarray(factors.transpose(1, 2, 0))
    return pack(format, np.ascontiguousarray(codes.T), *stored(factors, steps))


def _costs(feedback, group_size):
    """float32 [K/G, G], what an error of a column costs once later ones have made good what they
    can, as a share of its group's most."""
    costs = 1 / np.square(np.diagonal(feedback)).reshape(-1, group_size)
    return costs / costs.max(axis=1, keepdims=True)


def _feed_forward(format, columns, group_size, feedback, steps):
    """(codes uint8 [K, N], factors float32 [K/G, 1 or 2, N])."""
    costs = _costs(feedback, group_size)
    left = columns.copy()
    codes, chosen = np.empty(columns.shape, np.uint8), []
    for start in range(0, len(left), group_size):
        group = slice(start, start + group_size)
        block, passed = left[group], feedback[group, group]
        given, cost = block.T[:, None], costs[start // group_size][None]
        factors = fit(format, given, cost)
        if steps is not None:
            factors = snap(format, given, cost, factors, steps)
        errors = np.empty_like(block)
        for run in _runs(group_size):
            for at in range(run.start, run.stop):
                codes[start + at], value = _round(format, block[at], factors)
                errors[at] = (block[at] - value) / passed[at, at]
                block[at + 1 : run.stop] -= passed[at, at + 1 : run.stop, None] * errors[at]
            block[run.stop :] -= passed[run, run.stop :].T @ errors[run]
        left[group.stop :] -= feedback[group, group.stop :].T @ errors
        chosen.append(factors[:, :, 0])
    return codes, np.stack(chosen)


def _round(format, column, factors):
    """(codes, values) of one column [N]."""
    codes = encode(format, column[:, None, None], factors)
    return codes[:, 0, 0], decode(format, codes, factors)[:, 0, 0]


def _sweep(format, columns, group_size, moments, codes, factors, steps):
    """Move codes and factors in place, a group at a time, so that no row's output error grows."""
    values = np.concatenate(
        [
            _values(format, codes[start : start + group_size], parts)
            for start, parts in zip(range(0, len(codes), group_size), factors, strict=True)
        ]
    )
    groups = [slice(start, start + group_size) for start in range(0, len(columns), group_size)]
    pull = np.zeros_like(values)  # minus half the gradient by the values
    for block in _blocks_of(len(columns)):
        pull += moments.times(block, columns[block] - values[block])
    for index, group in enumerate(groups):
        within = moments.among(group)
        local, before = pull[group].copy(), values[group].copy()
        _move_codes(format, within, local, values[group], codes[group], factors[index])
        _move_factors(format, within, local, values[group], codes[group], factors[index], steps)
        pull -= moments.times(group, values[group] - before)


def _values(format, codes, factors):
    """float32 [G, N] of codes [G, N] of one group and its factors [1 or 2, N]."""
    return decode(format, codes.T[:, None], factors[:, :, None])[:, 0].T


def _runs(num_columns):
    return [slice(start, start + RUN_COLUMNS) for start in range(0, num_columns, RUN_COLUMNS)]


def _move_codes(format, within, pull, values, codes, factors):
    before, given = values.copy(), pull.copy()
    for run in _runs(len(codes)):
        for at in range(run.start, run.stop):
            wanted = values[at] + pull[at] / within[at, at]
            codes[at], value = _round(format, wanted, factors[:, :, None])
            pull[at + 1 : run.stop] -= within[at + 1 : run.stop, at, None] * (value - values[at])
            values[at] = value
        pull[run.stop :] -= within[run.stop :, run] @ (values[run] - before[run])
    pull[:] = given - within @ (values - before)


def _rounded(factors, steps):
    """Factors [1 or 2, N] as they can be stored."""
    if steps is None:
        return half_factors(factors)
    return numbers_of(factors, steps[:, :, 0]) * steps[:, :, 0]


def _move_factors(format, within, pull, values, codes, factors, steps):
    """Least squares for the factors, where the result is better once they are rounded, too."""
    slopes = levels(format, codes)
    through = within @ slopes
    power, cross = (slopes * through).sum(axis=0), (slopes * pull).sum(axis=0)
    moved = factors.copy()
    if len(factors) == 1:
        moved[0] += cross / np.maximum(power, np.float32(1e-30))
    else:
        shared, total = through.sum(axis=0), within.sum()
        rest, cross_bias = power * total - shared * shared, pull.sum(axis=0)
        rest = np.where(rest > 1e-6 * power * total, rest, np.float32(np.inf))
        moved[0] += (cross * total - cross_bias * shared) / rest
        moved[1] += (cross_bias * power - cross * shared) / rest
    moved = _rounded(moved, steps)
    changed = _values(format, codes, moved)
    change = changed - values
    gain = (change * (2 * pull - within @ change)).sum(axis=0)
    better = (gain > 0) & (moved[0] * factors[0] > 0)
    factors[:, better] = moved[:, better]
    values[:, better] = changed[:, better]
