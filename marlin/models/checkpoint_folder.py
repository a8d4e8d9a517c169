"""A folder's tensors on a device: which are mapped, copied, and repacked from another program's
form.
"""

import logging
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from marlin.device.device import Device
from marlin.device.ops import Weight, weight_flags
from marlin.device.program import View
from marlin.device.slabs import PrivateSlabs
from marlin.models.checkpoint_slabs import SlabWeights, of_experts
from marlin.models.plan_folder import plan_folder
from marlin.models.pooling import Pooling, pooling_of_folder
from marlin.text.folder_tokenizer import load_tokenizer
from marlin.text.tokenizer import Tokenizer
from marlin.weights import ggml_types
from marlin.weights.foreign.matrix import chunks
from marlin.weights.native import SCALE_BYTES
from marlin.weights.row_table import RowTable
from marlin.weights.tensor_file import read_bytes

logger = logging.getLogger(__name__)


class FolderCheckpoint:
    """A folder with config.json and safetensors: Hugging Face's, or native packed ones.

    Files are mapped once each and never copied, but for norms and biases: whole, or tensor by
    tensor where a file is longer than the device's largest buffer, or has a table in it that no
    buffer holds. Matrices of other programs are repacked, once.

    Args:
        slabs: device.slabs memory for what is repacked; None is memory of this process.
    """

    def __init__(self, path: str, device: Device, slabs=None):
        self.path = path
        self.device = device
        self.spec, format, self.plan, self._slab_bytes = plan_folder(path)
        self.format = format or "safetensors"
        self._slabs = SlabWeights(slabs or PrivateSlabs(device), self._slab_bytes)
        limits = device.info()
        self._max_buffer_bytes = limits["max_buffer_bytes"]
        self._page_bytes = limits["page_bytes"]
        self._mapped = {}
        tables = (stored for stored in self.plan if stored.tensor.is_table)
        self._with_table = {info.path for stored in tables for info in stored.parts}

    @property
    def weight_bytes(self) -> int:
        """Files or tensors that are mapped, each once, what is copied, and slabs."""
        ranges, copied = set(), sum(self._slab_bytes)
        for stored in self.plan:
            if stored.tensor.is_table:
                continue
            if stored.foreign is not None:
                copied += 0 if stored.slab >= 0 else 4 * math.prod(stored.foreign.shape)
                continue
            for info in stored.parts:
                if self._is_copied(stored, info):
                    copied += info.num_bytes if stored.kind else 4 * math.prod(info.shape)
                else:
                    ranges.add(self._range(info))
        return copied + sum(self._mapped_bytes(*place) for place in ranges)

    @property
    def mapped_paths(self) -> list[str]:
        in_place = [stored for stored in self.plan if stored.slab < 0]
        infos = [(stored, info) for stored in in_place for info in stored.parts]
        tables = {info.path for stored, info in infos if stored.tensor.is_table}
        mapped = {info.path for stored, info in infos if not self._is_copied(stored, info)}
        return sorted(tables | mapped)

    def load(self) -> dict[str, Weight | View]:
        kinds = Counter(at.foreign.form.kind for at in self.plan if at.foreign and at.kind)
        if kinds:
            named = ", ".join(f"{count} as {kind}" for kind, count in kinds.items())
            logger.info("matrices that are repacked from %s: %s", self.format, named)
        with ThreadPoolExecutor(max(1, self.device.info()["num_threads"])) as pool:
            loaded = [stored for stored in self.plan if not stored.tensor.is_table]
            return {stored.tensor.name: self._load(stored, pool) for stored in loaded}

    def row_table(self) -> RowTable | None:
        found = [RowTable(at.info, at.foreign) for at in self.plan if at.tensor.is_table]
        return found[0] if found else None

    def pooling(self) -> Pooling | None:
        return pooling_of_folder(self.path)

    def load_tokenizer(self, allow_unknown_pretokenizer: bool = False) -> Tokenizer:
        return load_tokenizer(self.path, allow_unknown_pretokenizer=allow_unknown_pretokenizer)

    def _load(self, stored, pool):
        info = stored.info
        if stored.slab >= 0:
            return of_experts(self._repack(stored, pool), stored.tensor)
        if stored.foreign is not None:
            return View.of(
                self.device.create_from(stored.foreign.values(0, stored.foreign.shape[0]))
            )
        if stored.kind is None:
            values = ggml_types.dequantize(info.dtype, read_bytes(info), info.shape)
            values = values.astype(np.float32)
            if stored.tensor.plus:
                values += np.float32(stored.tensor.plus)
            return View.of(self.device.create_from(values))
        views = [self._view(stored, part) for part in stored.parts]
        scale_bytes = SCALE_BYTES[stored.scales.dtype] if stored.scales is not None else 2
        flags = weight_flags(scale_bytes, stored.biases is not None)
        data, scales, biases, *_ = [*views, None, None]
        n, k = stored.tensor.rows
        weight = Weight(stored.kind, n, k, data, stored.group_size, flags, scales, biases)
        return of_experts(weight, stored.tensor)

    def _repack(self, stored, pool):
        foreign = stored.foreign
        form, (n, k) = foreign.form, foreign.shape
        weight = self._slabs.weight(form, n, k, stored.slab, stored.offset)
        if self._slabs.filled:
            return weight
        rows = form.padded_rows(n)
        views = [view for view in (weight.data, weight.scales, weight.biases) if view is not None]

        def convert(start, stop):
            for view, array in zip(views, foreign.arrays(start, stop), strict=True):
                raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
                at = view.offset + start * (view.num_bytes // rows)
                view.buffer.array(np.uint8, raw.shape, at)[...] = raw

        for job in [pool.submit(convert, *piece) for piece in chunks(n, k)]:
            job.result()
        return weight

    def _view(self, stored, info):
        if self._is_copied(stored, info):
            return View.of(self.device.create_from(read_bytes(info)))
        place = path, start, num_bytes = self._range(info)
        if place not in self._mapped:
            self._mapped[place] = self._slabs.map(path, start, num_bytes)
        return View(self._mapped[place], info.offset - start, info.num_bytes)

    def _is_copied(self, stored, info):
        """Norms and biases, and what lies where its elements cannot be read."""
        return stored.kind is None or info.offset % stored.alignment != 0

    def _range(self, info):
        """(path, start, bytes) that are mapped for a tensor."""
        num_bytes = os.path.getsize(info.path)
        if num_bytes > self._max_buffer_bytes or info.path in self._with_table:
            return info.path, info.offset, info.num_bytes
        return info.path, 0, num_bytes

    def _mapped_bytes(self, _path, start, num_bytes):
        if start == 0:
            return num_bytes
        # Neighbours that begin and end within a page each have it mapped.
        end = -(-(start + num_bytes) // self._page_bytes)
        return (end - start // self._page_bytes) * self._page_bytes
