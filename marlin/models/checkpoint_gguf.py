"""A GGUF file's tensors on a device: used in place, copied, repacked, or put in another order.

Blocks are repacked on the device, and RoPE rows are put in Hugging Face's order, into slabs: large
buffers whose places the plan has given out.
"""

import math

import numpy as np

from marlin.device import ops
from marlin.device.device import Device
from marlin.device.ops import Weight
from marlin.device.program import Recorder, View
from marlin.device.slabs import PrivateSlabs
from marlin.models.checkpoint_slabs import SlabWeights, of_experts
from marlin.models.plan_gguf import plan_gguf
from marlin.models.pooling import Pooling, pooling_of_gguf
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.tokenizer import Tokenizer
from marlin.weights import ggml_types
from marlin.weights.block_types import DENSE_KINDS
from marlin.weights.gguf_parts import read_gguf
from marlin.weights.gguf_writers import Pieces
from marlin.weights.kinds import Form
from marlin.weights.row_table import RowTable
from marlin.weights.rows import unpermute_rows
from marlin.weights.tensor_file import read_bytes

# Bytes of a file that are mapped at once while blocks are repacked: keeps start-up from holding the
# file and its repacked copy in memory together.
REPACK_BATCH_BYTES = 16 << 20


class GgufCheckpoint:
    """One GGUF model on a device.

    Args:
        slabs: device.slabs memory for what is repacked; None is memory of this process.
    """

    format = "gguf"

    def __init__(self, path: str, device: Device, slabs=None):
        self.path = path
        self.device = device
        self._file = read_gguf(path)
        self.spec, self.plan, self._slab_bytes = plan_gguf(self._file)
        self._slabs = SlabWeights(slabs or PrivateSlabs(device), self._slab_bytes)

    @property
    def weight_bytes(self) -> int:
        """What is mapped in place, copied, and in slabs."""
        outside = [at for at in self.plan if at.slab < 0 and not at.tensor.is_table]
        return sum(self._slab_bytes) + sum(
            planned.info.num_bytes
            if planned.tensor.is_matrix
            else 4 * math.prod(planned.tensor.shape)
            for planned in outside
        )

    @property
    def mapped_paths(self) -> list[str]:
        in_place = (at for at in self.plan if at.tensor.is_matrix and at.slab < 0)
        tables = (at for at in self.plan if at.tensor.is_table)
        return sorted({at.info.path for at in (*in_place, *tables)})

    def load(self) -> dict[str, Weight | View]:
        weights, pending, num_bytes = {}, [], 0
        for planned in self.plan:
            if planned.tensor.is_table:
                continue
            weight = weights[planned.tensor.name] = self._load(planned)
            if planned.form is None or self._slabs.filled:
                continue
            pending.append((planned, weight))
            num_bytes += planned.info.num_bytes
            if num_bytes >= REPACK_BATCH_BYTES:
                self._repack(pending)
                pending, num_bytes = [], 0
        self._repack(pending)
        return weights

    def row_table(self) -> RowTable | None:
        found = [RowTable(at.info) for at in self.plan if at.tensor.is_table]
        return found[0] if found else None

    def pooling(self) -> Pooling | None:
        return pooling_of_gguf(self._file)

    def load_tokenizer(self, allow_unknown_pretokenizer: bool = False) -> Tokenizer:
        """Read the header's vocabulary, and forget it: it is larger than all else there."""
        tokenizer = tokenizer_from_gguf(self._file.metadata, self.path)
        self._file.metadata.clear()
        return tokenizer

    def _load(self, planned):
        tensor, info = planned.tensor, planned.info
        if not tensor.is_matrix:
            values = ggml_types.dequantize(info.dtype, read_bytes(info), info.shape)
            if tensor.rope_heads:
                values = unpermute_rows(values, tensor.rope_heads)
            return View.of(self.device.create_from(values.astype(np.float32)))
        return of_experts(self._load_matrix(planned), tensor)

    def _load_matrix(self, planned):
        tensor, info, form = planned.tensor, planned.info, planned.form
        n, k = tensor.rows
        if planned.slab < 0:
            view = View.of(self._slabs.map(info.path, info.offset, info.num_bytes))
            return Weight(DENSE_KINDS[info.dtype], n, k, view)
        place = planned.slab, planned.offset
        if form is not None:
            return self._slabs.weight(form.form, n, k, *place)
        weight = self._slabs.weight(Form(DENSE_KINDS[info.dtype]), n, k, *place)
        if not self._slabs.filled:
            rows, view = read_bytes(info).reshape(n, -1), weight.data
            if tensor.rope_heads:
                rows = unpermute_rows(rows, tensor.rope_heads)
            view.buffer.array(np.uint8, rows.shape, view.offset)[...] = rows
        return weight

    def _repack(self, pending):
        """Fill weights from their blocks."""
        if not pending:
            return
        recorder = Recorder(self.device)
        sources = []
        for planned, weight in pending:
            info = planned.info
            if isinstance(info, Pieces):
                source = self.device.create_from(read_bytes(info))
            else:
                source = self.device.map(info.path, info.offset, info.num_bytes)
            sources.append(source)
            more = planned.form.number, planned.tensor.rope_heads, planned.factor
            ops.repack(recorder, View.of(source), weight, *more)
        program = recorder.finish()
        program.run()
        program.close()
        for source in sources:
            source.release()
