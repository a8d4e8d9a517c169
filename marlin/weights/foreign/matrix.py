"""A matrix as a foreign writer stored it, and how it is repacked: in pieces of rows, once.

Owns the choice of its scales' type, and that what is repacked is the same numbers: scales and
biases are float16 where float16 holds all of them, and float32 otherwise. Refuses to know which
writer it was, models and devices.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from marlin.errors import ModelFileError
from marlin.weights import formats
from marlin.weights.kinds import EXPONENTS, KINDS, ROW_TILE, Form
from marlin.weights.tensor_file import TensorInfo

# Values converted at a time: 2 MB of codes, and some times that of temporaries.
CHUNK_VALUES = 2 << 20
# Columns that may share a scale on a device.
_GROUP_SIZES = (128, 64, 32, 16)
# Their scales are any floats, and always float32: all experts of a layer are then of one form.
FLOAT_KINDS = ("fp8", "nf4")
_SCALE_TYPES = {2: np.float16, 4: np.float32}

Factors = tuple[np.ndarray, np.ndarray | None]


def _quiet(read):
    """Without numpy's warnings: what is no finite number is refused by name."""

    def run(start, stop):
        with np.errstate(all="ignore"):
            return read(start, stop)

    return run


def chunks(n: int, k: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of rows to convert at a time: whole tiles."""
    step = max(1, CHUNK_VALUES // (ROW_TILE * max(1, k))) * ROW_TILE
    return ((start, min(start + step, n)) for start in range(0, n, step))


@dataclass(frozen=True, slots=True)
class ForeignMatrix:
    """One matrix.

    Attributes:
        shape: (N, K); of stacked matrices N is that of all of them.
        parts: the tensors that it is stored as.
        form: what it becomes.
        values: values(start, stop) is float32 [stop - start, K], what its rows stand for.
        arrays: arrays(start, stop) is what these rows are on the device: codes, scales and biases
            (of whole tiles, if `stop` is no multiple of one), or the values of a dense form.
    """

    shape: tuple[int, int]
    parts: tuple[TensorInfo, ...]
    form: Form
    values: Callable[[int, int], np.ndarray]
    arrays: Callable[[int, int], tuple[np.ndarray, ...]]

    @property
    def info(self) -> TensorInfo:
        """Its largest tensor, which names it in messages."""
        return self.parts[0]

    def sliced(self, first: int, n: int) -> "ForeignMatrix":
        """n of its rows; `first` is a multiple of a tile."""
        assert first % ROW_TILE == 0 and first + n <= self.shape[0], (first, n, self.shape)

        def moved(read):
            return lambda start, stop: read(first + start, first + stop)

        shape = (n, self.shape[1])
        return ForeignMatrix(shape, self.parts, self.form, moved(self.values), moved(self.arrays))


def packed(
    kind: str,
    shape: tuple[int, ...],
    parts: tuple[TensorInfo, ...],
    codes: Callable[[int, int], np.ndarray],
    factors: Callable[[int, int], Factors],
    group_size: int,
) -> ForeignMatrix:
    """A matrix that becomes one of the packed kinds, losing nothing. Its scales are read at once.

    Args:
        shape: outermost first; all but the last are rows.
        codes: codes(start, stop) is uint8 [stop - start, K]: nibbles, or for int8 the value + 128.
        factors: factors(start, stop) is (scales, biases or None), float32 [stop - start, groups].
        group_size: columns that share a scale, as the file has it.

    Raises:
        ModelFileError: columns or groups that no kernel reads, or a scale that is no number.
    """
    (n, k), info, factors = (math.prod(shape[:-1]), shape[-1]), parts[0], _quiet(factors)
    fitting = [size for size in _GROUP_SIZES if group_size % size == 0 and _is_held(kind, size)]
    if k % 32 or k % group_size or not fitting:
        message = f"has {k} columns in groups of {group_size}; {kind} holds multiples of 32"
        raise ModelFileError(info.path, message, tensor=info.name)
    repeats = group_size // fitting[0]

    def spread(start, stop):
        found = factors(start, stop)
        return [part if part is None else np.repeat(part, repeats, axis=1) for part in found]

    scale_bytes, has_bias = _scale_type(factors, n, k // group_size, parts)
    form = Form(kind, fitting[0], 4 if kind in FLOAT_KINDS else scale_bytes, has_bias)

    @_quiet
    def arrays(start, stop):
        dtype = _SCALE_TYPES[form.scale_bytes]
        stored = [part if part is None else part.astype(dtype) for part in spread(start, stop)]
        made = formats.pack(kind, codes(start, stop), *stored)
        return tuple(part for part in (made.codes, made.scales, made.biases) if part is not None)

    @_quiet
    def values(start, stop):
        return formats.dequantize(formats.pack(kind, codes(start, stop), *spread(start, stop)))

    return ForeignMatrix((n, k), parts, form, values, arrays)


def exponential(
    kind: str,
    shape: tuple[int, ...],
    parts: tuple[TensorInfo, ...],
    codes: Callable[[int, int], np.ndarray],
    exponents: Callable[[int, int], np.ndarray],
) -> ForeignMatrix:
    """Codes times 2^(e - 127) of 32 columns, which stay bytes; arguments and errors as packed()'s.

    Args:
        exponents: (start, stop) to uint8 [stop - start, K / 32].
    """

    def factors(start, stop):
        return formats.E8M0[exponents(start, stop)], None

    def arrays(start, stop):
        made = formats.pack(kind, codes(start, stop), exponents(start, stop))
        return made.codes, made.scales

    found = packed(kind, shape, parts, codes, factors, 32)
    return replace(found, form=Form(kind, 32, EXPONENTS), arrays=arrays)


def integers(
    bits: int,
    shape: tuple[int, ...],
    parts: tuple[TensorInfo, ...],
    codes: Callable[[int, int], np.ndarray],
    scales: Callable[[int, int], np.ndarray],
    zeros: Callable[[int, int], np.ndarray] | None,
    group_size: int,
) -> ForeignMatrix:
    """A matrix of scale * (code - zero), codes from 0 to 2^bits - 1.

    Args:
        scales, zeros: (start, stop) to float32 [stop - start, groups]; zeros of None are all half
            of 2^bits.
    """
    half = 1 << (bits - 1)
    if bits <= 4:
        kind, moved, own_zero = "int4", 0, None
    else:  # codes of fewer bits are put in the middle of 256
        kind, moved, own_zero = "int8", 128 - half, half

    def factors(start, stop):
        scale = scales(start, stop)
        if zeros is None and own_zero is not None:
            return scale, None
        zero = np.float32(half) if zeros is None else zeros(start, stop)
        return scale, scale * ((own_zero or 0) - zero)

    def stored(start, stop):
        return codes(start, stop) + np.uint8(moved)

    return packed(kind, shape, parts, stored, factors, group_size)


def ordered(
    bits: int,
    shape: tuple[int, ...],
    parts: tuple[TensorInfo, ...],
    codes: Callable[[int, int], np.ndarray],
    scales: Callable[[int, int], np.ndarray],
    zeros: np.ndarray | None,
    order: np.ndarray,
) -> ForeignMatrix:
    """integers() whose groups lie in any order. Where each has whole runs of columns, scales are
    put in the order of the columns; where groups are scattered, the matrix becomes float16.

    Args:
        zeros: float32 [N, groups], or None: all half of 2^bits.
        order: integers [K], the group of each column.
    """
    half = np.float32(1 << (bits - 1))
    if zeros is not None and (zeros == half).all():
        zeros = None
    run = _run(order)
    if run is None:

        def values(start, stop):
            zero = half if zeros is None else zeros[start:stop][:, order]
            return scales(start, stop)[:, order] * (codes(start, stop) - zero)

        return dense("f16", shape, parts, values)
    at = order[::run]

    def in_order(start, stop):
        return scales(start, stop)[:, at]

    if zeros is None:
        return integers(bits, shape, parts, codes, in_order, None, run)
    known = zeros
    return integers(bits, shape, parts, codes, in_order, lambda i, j: known[i:j][:, at], run)


def _run(order):
    """The most columns, of _GROUP_SIZES, that always share a group; None where fewer do."""
    for size in _GROUP_SIZES:
        if len(order) % size == 0 and (order.reshape(-1, size).T == order[::size]).all():
            return size
    return None


def _is_held(kind, size):
    return size >= KINDS[kind].least_group


def _scale_type(factors, n, num_groups, parts):
    """(bytes of a scale, whether there are biases); every one of them is looked at."""
    num_bytes, has_bias = 2, False
    for start, stop in chunks(n, num_groups):
        for index, part in enumerate(factors(start, stop)):
            if part is None:
                continue
            has_bias |= index > 0
            if not np.isfinite(part).all():
                row = start + int(np.argwhere(~np.isfinite(part))[0][0])
                named = parts[min(1 + index, len(parts) - 1)]
                message = f"makes a scale or bias of row {row} that is no finite number"
                raise ModelFileError(named.path, message, tensor=named.name)
            with np.errstate(over="ignore"):
                if (part.astype(np.float16).astype(np.float32) != part).any():
                    num_bytes = 4
    return num_bytes, has_bias


def dense(
    kind: str,
    shape: tuple[int, ...],
    parts: tuple[TensorInfo, ...],
    values: Callable[[int, int], np.ndarray],
) -> ForeignMatrix:
    """A matrix that no packed kind holds: bf16, where that is exact, or f16, the nearest ones.

    Args:
        values: values(start, stop) is float32 [stop - start, K].
    """
    info, read = parts[0], _quiet(values)

    def checked(start, stop):
        found = read(start, stop)
        if not np.isfinite(found).all():
            row = start + int(np.argwhere(~np.isfinite(found))[0][0])
            message = f"holds a value in row {row} that is no finite number"
            raise ModelFileError(info.path, message, tensor=info.name)
        return found

    def arrays(start, stop):
        found = checked(start, stop)
        if kind == "bf16":
            stored = (found.view(np.uint32) >> 16).astype(np.uint16)
            is_held = not (found.view(np.uint32) & 0xFFFF).any()
        else:
            with np.errstate(over="ignore"):
                stored = found.astype(np.float16)
            is_held = np.isfinite(stored).all()
        if not is_held:
            message = f"holds a value in rows {start} to {stop - 1} that {kind} does not"
            raise ModelFileError(info.path, message, tensor=info.name)
        return (stored,)

    return ForeignMatrix((math.prod(shape[:-1]), shape[-1]), parts, Form(kind), checked, arrays)
