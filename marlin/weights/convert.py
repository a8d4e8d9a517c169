"""Streams the weights of a checkpoint into a native folder, quantizing on the way.

Owns which tensors are quantized, and to what. Holds a few pieces of CHUNK_VALUES at a time,
whatever the model's size; refuses to know configs, tokenizers, and where names come from.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from marlin.errors import ModelFileError
from marlin.weights import ggml_types
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.formats import dequantize, quantize_native
from marlin.weights.kinds import GROUP_SIZES, KINDS, ROW_TILE
from marlin.weights.native import NativeEntry
from marlin.weights.rows import unpermute_rows
from marlin.weights.tensor_file import TensorInfo, num_tensor_bytes, read_bytes

# Values a worker holds at a time: 8 MB as float32, and about as much again three times over while
# they are quantized.
CHUNK_VALUES = 2 << 20
# The embedding and the output matrix take part in every token and suffer most from 4 bits, and in
# 4-bit files they are the usual exception: 8 bits in groups of 32.
EDGE_FORMAT, EDGE_GROUP_SIZE = "int8", 32


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a checkpoint.

    Attributes:
        name: its Hugging Face name.
        info: where it lies; its dtype is one that ggml_types decodes.
        role: "embedding", "lm_head", "attention", "mlp", or "router" and "other" for what is never
            quantized.
        num_heads: heads whose rows are to be put into Hugging Face's order; 0 if they are in it.
        excess: what its values are larger by than Hugging Face's.
        factor: what its values are to be multiplied by.
        foreign: of a matrix that another program has quantized, how it stored it.
    """

    name: str
    info: TensorInfo
    role: str
    num_heads: int = 0
    excess: float = 0.0
    factor: float = 1.0
    foreign: ForeignMatrix | None = None

    @property
    def shape(self):
        return self.info.shape if self.foreign is None else self.foreign.shape

    @property
    def num_values(self):
        return math.prod(self.shape)

    def rows(self, start, stop):
        """float32 [stop - start, ...] as Hugging Face stores them; whole heads where their order
        differs."""
        if self.foreign is not None:
            return self.foreign.values(start, stop)
        shape = (stop - start, *self.info.shape[1:])
        row_bytes = self.info.num_bytes // self.info.shape[0]
        raw = read_bytes(self.info, start * row_bytes, (stop - start) * row_bytes)
        try:
            values = ggml_types.dequantize(self.info.dtype, raw, shape)
        except ValueError as error:
            raise ModelFileError(self.info.path, str(error), tensor=self.info.name) from error
        if self.factor != 1.0:
            values *= np.float32(self.factor)
        if self.excess:
            values -= np.float32(self.excess)
        if not self.num_heads:
            return values
        head_dim = self.info.shape[0] // self.num_heads
        return unpermute_rows(values, (stop - start) // head_dim)

    def chunks(self):
        """[(start, stop)] of rows to convert at a time: whole tiles, and whole heads."""
        num_rows = self.shape[0]
        row_values = math.prod(self.shape[1:])
        unit = math.lcm(ROW_TILE, num_rows // self.num_heads if self.num_heads else 1)
        step = max(1, CHUNK_VALUES // (unit * row_values)) * unit
        return [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


@dataclass(slots=True)
class RoleError:
    """Squared error of one role of weight, and what it is relative to."""

    squared_error: float = 0.0
    squared_norm: float = 0.0

    @property
    def relative_rms(self):
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


def plan_entry(tensor, format, group_size):
    """The NativeEntry that a tensor becomes.

    Linear weights take the format asked for; embedding and output matrix take EDGE_FORMAT when that
    format has 4 bits; where the group size does not divide a matrix, the next smaller one that does
    is taken; the rest is F32.

    Raises:
        ModelFileError: no group size divides a matrix's columns.
    """
    shape = tensor.shape
    if tensor.role in ("router", "conv", "other"):
        return NativeEntry(tensor.name, shape, "F32")
    if tensor.role == "table":  # whose rows are read one by one
        return NativeEntry(tensor.name, shape, "F16")
    if tensor.role in ("embedding", "lm_head") and KINDS[format].bits < 8:
        format, group_size = EDGE_FORMAT, EDGE_GROUP_SIZE
    sizes = [size for size in GROUP_SIZES if size <= group_size and shape[1] % size == 0]
    if not sizes:
        message = f"has {shape[1]} columns, no multiple of {GROUP_SIZES[0]}: it cannot be packed"
        raise ModelFileError(tensor.info.path, message, tensor=tensor.name)
    return NativeEntry(tensor.name.removesuffix(".weight"), shape, format, max(sizes))


def convert(
    tensors, entries, writer, num_threads, progress, errors, pack=quantize_native, see=None
):
    """Convert every tensor and write it.

    Args:
        tensors, entries: SourceTensors and their NativeEntries, in the same order.
        writer: a NativeWriter of these entries.
        num_threads: pieces converted at a time.
        progress: called with the number of values done, after each piece, in this thread.
        pack: formats.quantize_native, or what takes and returns as much.
        see: called with (first row, float32 values) of what each piece became, from any thread.
        errors: {role: RoleError} of the tensors that were quantized, to which is added.

    Raises:
        ModelFileError: a weight is not finite or too large, or a file became shorter.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        for tensor, entry in zip(tensors, entries, strict=True):
            pieces = tensor.chunks()
            given = tensor, entry, writer, pack, see
            jobs = [pool.submit(_convert_piece, *given, *piece) for piece in pieces]
            try:
                for (start, stop), job in zip(pieces, jobs, strict=True):
                    squared_error, squared_norm = job.result()
                    if entry.group_size:
                        found = errors.setdefault(tensor.role, RoleError())
                        found.squared_error += squared_error
                        found.squared_norm += squared_norm
                    progress((stop - start) * math.prod(tensor.shape[1:]))
            finally:
                for job in jobs:
                    job.cancel()


def _convert_piece(tensor, entry, writer, pack, see, start, stop):
    """Convert rows [start, stop); returns (squared error, squared norm)."""
    weights = tensor.rows(start, stop)
    if not entry.group_size:
        _write_dense(tensor, entry, writer, start, weights)
        return 0.0, 0.0
    try:
        packed = pack(entry.format, weights, entry.group_size)
    except ValueError as error:
        message = f"{error} (rows {start} to {stop - 1})"
        raise ModelFileError(tensor.info.path, message, tensor=tensor.info.name) from error
    for part in ("codes", "scales", "biases"):
        if (array := getattr(packed, part)) is not None:
            tile_bytes = array.nbytes // array.shape[0]
            writer.write(f"{entry.name}.{part}", array, start // ROW_TILE * tile_bytes)
    values = dequantize(packed)
    if see is not None:
        see(start, values)
    difference = (values - weights).ravel()
    return float(difference @ difference), float(weights.ravel() @ weights.ravel())


def _write_dense(tensor, entry, writer, start, weights):
    if not np.isfinite(weights).all():
        raise ModelFileError(tensor.info.path, "holds NaN or infinity", tensor=tensor.info.name)
    row_bytes = num_tensor_bytes(entry.format, entry.shape) // entry.shape[0]
    stored = np.ascontiguousarray(weights, np.float32)
    writer.write(entry.name, stored, start * row_bytes)
