"""A model's tensors on a device, by their Hugging Face names, whatever file they come from.

Owns what is used in place (mapped), what is repacked once (GGUF blocks) and what is copied (norms
and biases, as float32). Knows no layer order: that is models/llama.py.
"""

import os
from dataclasses import dataclass

import numpy as np

from marlin.device import abi, ops
from marlin.device.ops import Weight
from marlin.device.program import Recorder, View
from marlin.device.slabs import PrivateSlabs
from marlin.errors import ModelFileError
from marlin.files.strict_json import read_json_object
from marlin.models.config import config_from_gguf, config_from_hf
from marlin.models.tensors import (
    check_gguf_leftovers,
    check_leftovers,
    is_unused,
    tensor_shapes,
)
from marlin.weights import ggml_types, names
from marlin.weights.formats import GROUP_SIZES
from marlin.weights.gguf import GGUFFile
from marlin.weights.native import PADDING_PREFIX
from marlin.weights.safetensors_file import SafetensorsFolder
from marlin.weights.tensor_file import read_bytes

# Bytes of a file that are mapped at once while blocks are repacked: keeps start-up from holding the
# file and its repacked copy in memory together.
REPACK_BATCH_BYTES = 16 << 20

# Repacked weights share buffers of this size: a huge page is 2 MiB, most matrices are smaller.
SLAB_BYTES = 32 << 20
# Where a packed weight's codes, scales and biases must begin: kernels load whole vectors of them.
PACKED_ALIGNMENT = 16

_DENSE_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


@dataclass(frozen=True, slots=True)
class _Repacked:
    """What a GGUF block type becomes: weight kind, bits, group size, scale bytes, with a bias."""

    kind: str
    bits: int
    group_size: int
    scale_bytes: int
    has_bias: bool

    def part_bytes(self, n, k):
        """Bytes of the codes, scales and biases (0 without) of a weight [n, k]."""
        rows = -(-n // abi.ROW_TILE) * abi.ROW_TILE
        scale_bytes = rows * (k // self.group_size) * self.scale_bytes
        return rows * k * self.bits // 8, scale_bytes, scale_bytes if self.has_bias else 0


_REPACKED = {
    "Q4_0": _Repacked("int4", 4, 32, 2, True),
    "Q4_1": _Repacked("int4", 4, 32, 2, True),
    "Q4_K": _Repacked("int4", 4, 32, 4, True),
    "Q5_0": _Repacked("int8", 8, 32, 2, False),
    "Q5_1": _Repacked("int8", 8, 32, 2, True),
    "Q5_K": _Repacked("int8", 8, 32, 4, True),
    "Q6_K": _Repacked("int8", 8, 16, 4, False),
    "Q8_0": _Repacked("int8", 8, 32, 2, False),
}


def open_checkpoint(path, device, slabs=None):
    """Open a GGUF file, or a folder in Hugging Face or native form.

    Args:
        path: of the file or folder.
        device: an opened Device.
        slabs: device.slabs memory for what is repacked; None is memory of this process. Folders
            are used in place and need none.

    Returns:
        Checkpoint; its weights are on the device only when asked for.

    Raises:
        ModelFileError: nothing is there, or it is not one of the three.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return FolderCheckpoint(path, device)
    if os.path.isfile(path):
        return GgufCheckpoint(path, device, slabs)
    raise ModelFileError(path, "no such file or folder; expected a .gguf file or a model folder")


class GgufCheckpoint:
    """Tensors of one GGUF file. Block types are repacked; RoPE rows are put in Hugging Face's
    order."""

    def __init__(self, path, device, slabs=None):
        self.path = path
        self.device = device
        self.file = GGUFFile(path)
        self.config = config_from_gguf(self.file)
        check_gguf_leftovers(self.config, self.file.tensors)
        self.architecture = self.file.metadata["general.architecture"]
        self.format = "gguf"
        self._pending = []
        self._pending_bytes = 0
        self._slabs = slabs or PrivateSlabs(device)
        self._slab = None, 0

    @property
    def weight_bytes(self):
        """Device memory that the weights will take, in place and repacked."""
        in_place = slabs = 0
        for name, info in self.file.tensors.items():
            form = _REPACKED.get(info.dtype)
            if form is not None and len(info.shape) == 2:
                slabs += sum(form.part_bytes(*info.shape))
            elif names.rows_are_interleaved(self.architecture, names.hf_name(name) or name):
                slabs += info.num_bytes
            else:
                in_place += info.num_bytes
        return in_place + -(-slabs // SLAB_BYTES) * SLAB_BYTES

    def rope_factors(self):
        """float32 [head_dim / 2] divisors of the RoPE frequencies, or None."""
        if names.ROPE_FACTORS not in self.file.tensors:
            return None
        return self._read_dense(self._info(names.ROPE_FACTORS, (self.config.head_dim // 2,)))

    def _info(self, name, shape):
        gguf = names.gguf_name(name) or name
        info = self.file.tensors.get(gguf)
        if info is None:
            raise ModelFileError(self.path, "missing", tensor=gguf)
        if info.shape != shape:
            raise ModelFileError(self.path, f"has shape {info.shape}, not {shape}", tensor=gguf)
        return info

    def _read_dense(self, info):
        if info.dtype not in _DENSE_KINDS:
            raise ModelFileError(
                self.path, f"is {info.dtype}, expected F32, F16 or BF16", tensor=info.name
            )
        return ggml_types.dequantize(info.dtype, read_bytes(info), info.shape)

    def vector(self, name, size, num_heads=0):
        """float32 [size] on the device; num_heads: its rows' heads, if RoPE pairs them."""
        values = self._read_dense(self._info(name, (size,)))
        if num_heads and names.rows_are_interleaved(self.architecture, name):
            values = names.unpermute_rows(values, num_heads)
        return View.of(self.device.create_from(values.astype(np.float32)))

    def matrix(self, name, n, k, num_heads=0):
        """Weight [n, k]; call finish() before it is read."""
        info = self._info(name, (n, k))
        interleaved = num_heads and names.rows_are_interleaved(self.architecture, name)
        if info.dtype in _DENSE_KINDS:
            kind = _DENSE_KINDS[info.dtype]
            if not interleaved:
                view = View.of(self.device.map(self.path, info.offset, info.num_bytes))
                return Weight(kind, n, k, view)
            return Weight(kind, n, k, self._unpermuted(info, n, num_heads))
        if info.dtype not in _REPACKED:
            raise ModelFileError(self.path, f"is {info.dtype}, not a weight type", tensor=info.name)
        weight = self._allocate(_REPACKED[info.dtype], n, k)
        self._pending.append((info, weight, num_heads if interleaved else 0))
        self._pending_bytes += info.num_bytes
        if self._pending_bytes >= REPACK_BATCH_BYTES:
            self.finish()
        return weight

    def _unpermuted(self, info, n, num_heads):
        buffer, start = self._take(info.num_bytes)
        if not self._slabs.filled:
            rows = names.unpermute_rows(read_bytes(info).reshape(n, -1), num_heads)
            buffer.array(np.uint8, rows.shape, start)[...] = rows
        return View(buffer, start, info.num_bytes)

    def _allocate(self, form, n, k):
        code_bytes, scale_bytes, bias_bytes = form.part_bytes(n, k)
        buffer, start = self._take(code_bytes + scale_bytes + bias_bytes)
        flags = abi.WEIGHT_BIAS if form.has_bias else 0
        if form.scale_bytes == 4:
            flags |= abi.SCALE_F32
        return Weight(
            form.kind,
            n,
            k,
            View(buffer, start, code_bytes),
            form.group_size,
            flags,
            View(buffer, start + code_bytes, scale_bytes),
            View(buffer, start + code_bytes + scale_bytes, bias_bytes) if form.has_bias else None,
        )

    def _take(self, num_bytes):
        """(buffer, offset) of num_bytes new bytes, side by side in slabs that huge pages can
        back."""
        slab, used = self._slab
        if slab is None or used + num_bytes > slab.num_bytes:
            slab, used = self._slabs.new(max(SLAB_BYTES, num_bytes)), 0
        self._slab = slab, used + -(-num_bytes // 64) * 64
        return slab, used

    def finish(self):
        """Repack what matrix() has promised so far, unless another process has done so."""
        if self._slabs.filled:
            self._pending, self._pending_bytes = [], 0
        if not self._pending:
            return
        recorder = Recorder(self.device)
        sources = []
        for info, weight, permute_heads in self._pending:
            source = self.device.map(self.path, info.offset, info.num_bytes)
            sources.append(source)
            ops.repack(recorder, View.of(source), weight, info.dtype, permute_heads)
        program = recorder.finish()
        program.run()
        program.close()
        for source in sources:
            source.release()
        self._pending, self._pending_bytes = [], 0


class FolderCheckpoint:
    """Tensors of a folder with config.json and safetensors: Hugging Face's, or native packed ones.

    Files are mapped once each and never copied, but for norms and biases: whole, or tensor by
    tensor where a file is longer than the device's largest buffer.
    """

    def __init__(self, path, device):
        self.path = path
        self.device = device
        self.folder = SafetensorsFolder(path)
        self.config = config_from_hf(path)
        self.quantization = read_quantization(path)
        self.format = self.quantization["format"] if self.quantization else "safetensors"
        check_leftovers(self.config, self.folder.tensors, self._known_names())
        limits = device.info()
        self._max_buffer_bytes = limits["max_buffer_bytes"]
        self._page_bytes = limits["page_bytes"]
        self._mapped = {}

    @property
    def weight_bytes(self):
        """Device memory that the weights will take, at most: whole files, a page more for each
        tensor that is mapped by itself, and norms and biases once more."""
        tensors = self.folder.tensors.values()
        sizes = {info.path: os.path.getsize(info.path) for info in tensors}
        # Neighbours that begin and end within a page each have it mapped.
        num_shared = sum(sizes[info.path] > self._max_buffer_bytes for info in tensors)
        copies = sum(4 * info.shape[0] for info in tensors if len(info.shape) == 1)
        return sum(sizes.values()) + num_shared * self._page_bytes + copies

    def rope_factors(self):
        """As GgufCheckpoint's: a folder that was quantized from GGUF keeps the tensor."""
        if names.ROPE_FACTORS not in self.folder.tensors:
            return None
        return self._read_dense(self._info(names.ROPE_FACTORS, (self.config.head_dim // 2,)))

    def _known_names(self):
        """Names of the tensors that the model reads, and of those known to be of no use."""
        tensors = self.folder.tensors
        known = {name for name in tensors if is_unused(self.config, name)} | {names.ROPE_FACTORS}
        if self.quantization:
            known |= {name for name in tensors if name.startswith(PADDING_PREFIX)}
        for name, shape in tensor_shapes(self.config).items():
            stem = name.removesuffix(".weight")
            codes = tensors.get(f"{stem}.codes")
            if codes is None or len(shape) != 2:
                known.add(name)
                continue
            known |= {codes.name, f"{stem}.scales"}
            if codes.dtype == "U8" or self.format != "fp4":
                known.add(f"{stem}.biases")
        return known

    def _read_dense(self, info):
        return ggml_types.dequantize(info.dtype, read_bytes(info), info.shape).astype(np.float32)

    def _info(self, name, shape=None, dtypes=tuple(_DENSE_KINDS)):
        info = self.folder.tensors.get(name)
        if info is None:
            raise ModelFileError(self.path, "missing", tensor=name)
        if shape is not None and info.shape != shape:
            raise ModelFileError(info.path, f"has shape {info.shape}, not {shape}", tensor=name)
        if info.dtype not in dtypes:
            raise ModelFileError(
                info.path, f"is {info.dtype}, expected {' or '.join(dtypes)}", tensor=name
            )
        return info

    def _view(self, info, alignment):
        """The tensor in its mapped file; copied only if it lies where its elements cannot be
        read."""
        if info.offset % alignment:
            return View.of(self.device.create_from(read_bytes(info)))
        start, num_bytes = 0, os.path.getsize(info.path)
        if num_bytes > self._max_buffer_bytes:
            start, num_bytes = info.offset, info.num_bytes
        place = info.path, start
        if place not in self._mapped:
            self._mapped[place] = self.device.map(info.path, start, num_bytes)
        return View(self._mapped[place], info.offset - start, info.num_bytes)

    def vector(self, name, size, num_heads=0):
        """float32 [size] on the device."""
        return View.of(self.device.create_from(self._read_dense(self._info(name, (size,)))))

    def matrix(self, name, n, k, num_heads=0):
        """Weight [n, k]."""
        stem = name.removesuffix(".weight")
        if f"{stem}.codes" in self.folder.tensors:
            return self._packed(stem, n, k)
        info = self._info(name, (n, k))
        alignment = 4 if info.dtype == "F32" else 2
        return Weight(_DENSE_KINDS[info.dtype], n, k, self._view(info, alignment))

    def _packed(self, stem, n, k):
        codes = self.folder.tensors[f"{stem}.codes"]
        scales = self._info(f"{stem}.scales", dtypes=("F16", "F32"))
        tiles = -(-n // abi.ROW_TILE)
        kind = self._packed_kind(codes, tiles, k)
        shapes = {(tiles, k // size, abi.ROW_TILE): size for size in GROUP_SIZES if k % size == 0}
        group_size = shapes.get(scales.shape)
        if group_size is None:
            raise ModelFileError(
                scales.path,
                f"has shape {scales.shape}, expected one of {list(shapes)}",
                tensor=scales.name,
            )
        biases = None
        if kind == "int4" or (kind == "int8" and f"{stem}.biases" in self.folder.tensors):
            biases = self._info(f"{stem}.biases", scales.shape, (scales.dtype,))
        flags = (abi.SCALE_F32 if scales.dtype == "F32" else 0) | (abi.WEIGHT_BIAS if biases else 0)
        return Weight(
            kind,
            n,
            k,
            self._view(codes, PACKED_ALIGNMENT),
            group_size,
            flags,
            self._view(scales, PACKED_ALIGNMENT),
            biases and self._view(biases, PACKED_ALIGNMENT),
        )

    def _packed_kind(self, codes, tiles, k):
        eight_bits = codes.dtype == "U8"
        wanted = (tiles, k // 4, 16, 4) if eight_bits else (tiles, k // 8, 16)
        if codes.dtype not in ("U8", "U32") or codes.shape != wanted:
            raise ModelFileError(
                codes.path,
                f"is {codes.dtype} {codes.shape}, expected U32 {(tiles, k // 8, 16)} "
                f"or U8 {(tiles, k // 4, 16, 4)}",
                tensor=codes.name,
            )
        if not eight_bits and self.format not in ("fp4", "int4"):
            raise ModelFileError(
                codes.path, f"is 4-bit in a folder of format {self.format}", tensor=codes.name
            )
        return "int8" if eight_bits else self.format

    def finish(self):
        """Nothing is pending: files are used in place."""


def read_quantization(folder):
    """The "quantization" object of a native folder's config.json, or None for a plain checkpoint.

    Raises:
        ModelFileError: it is of a version or format that this package does not know, or another
            program's quantized checkpoint.
    """
    path = os.path.join(folder, "config.json")
    config = read_json_object(path)
    if "quantization_config" in config:
        method = config["quantization_config"]
        raise ModelFileError(
            path,
            f"quantization_config {method!r:.80} cannot be read; expected a "
            "plain checkpoint or one that `metal-marlin quantize` wrote",
        )
    quantization = config.get("quantization")
    if quantization is None:
        return None
    known = isinstance(quantization, dict) and quantization.get("version") == 1
    if not known or quantization.get("format") not in ("fp4", "int4", "int8"):
        raise ModelFileError(
            path,
            f"quantization {quantization!r:.80} is not version 1 of a native "
            "format; write it again with `metal-marlin quantize`",
        )
    return quantization
