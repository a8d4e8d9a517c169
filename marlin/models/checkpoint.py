"""A model's tensors on a device, whatever file they come from.

A checkpoint plans each tensor once, when it is opened: the plan finds it, checks its shape and
dtype, and says how it will lie. Counting memory, loading and `quantize` (source.py) are readings of
that plan.
"""

import os
from typing import Protocol

from marlin.device.device import Device
from marlin.device.ops import Weight
from marlin.device.program import View
from marlin.models.checkpoint_folder import FolderCheckpoint
from marlin.models.checkpoint_gguf import GgufCheckpoint
from marlin.models.place import is_folder
from marlin.models.pooling import Pooling
from marlin.models.spec import ModelSpec
from marlin.text.tokenizer import Tokenizer
from marlin.weights.row_table import RowTable


class Checkpoint(Protocol):
    """A model that has been found, and can be loaded.

    Attributes:
        path: the file or folder.
        device: where it will be loaded.
        spec: the model, in its family's words.
        format: "gguf", "safetensors", a native folder's "fp4", "int4", "int8", or the name of the
            program that quantized a folder (weights/foreign).
        weight_bytes: device memory that load() will take.
        mapped_paths: files that are read from as long as the model is used.
    """

    path: str
    device: Device
    spec: ModelSpec
    format: str

    @property
    def weight_bytes(self) -> int: ...

    @property
    def mapped_paths(self) -> list[str]: ...

    def load(self) -> dict[str, Weight | View]:
        """{tensor name: Weight of a matrix, View of float32 otherwise}, on the device."""

    def row_table(self) -> RowTable | None:
        """ModelSpec.token_rows.table, where there is one."""

    def pooling(self) -> Pooling | None:
        """How vectors are made of texts, if the files say that the model is for that."""

    def load_tokenizer(self, allow_unknown_pretokenizer: bool = False) -> Tokenizer:
        """See text/folder_tokenizer.py; a GGUF file has no expressions of its own."""


def open_checkpoint(path, device: Device, slabs=None) -> Checkpoint:
    """Open a GGUF file, or a folder in Hugging Face or native form.

    Args:
        path: of the file or folder.
        slabs: device.slabs memory for what is repacked; None is memory of this process.

    Raises:
        ModelFileError: nothing is there, it is not one of the three, or its tensors are not those
            that its config implies.
    """
    path = os.fspath(path)
    if is_folder(path):
        return FolderCheckpoint(path, device, slabs)
    return GgufCheckpoint(path, device, slabs)
