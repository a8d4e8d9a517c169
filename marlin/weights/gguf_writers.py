"""What some writers of GGUF files lay out or call otherwise, in the words of the others.

Owns three: gates and ups of all experts in one tensor (llama.cpp's converter when asked, rows of an
expert's gate first), a tensor for each expert (its converter before April 2024, of Mixtral), and
gpt-oss as Ollama writes it. Refuses to know what a model makes of it.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from marlin.errors import ModelFileError
from marlin.weights.gguf import GGUFFile
from marlin.weights.tensor_file import TensorInfo

# Bytes that are read at a time of a tensor in pieces.
SPAN_BYTES = 8 << 20
# Ollama's gpt-oss: `gptoss`, whose rows of gates and ups take turns.
OLLAMA = "gptoss"
_OLLAMA_NAMES = {
    "attn_out.weight": "attn_output.weight",
    "attn_out.bias": "attn_output.bias",
    "attn_sinks": "attn_sinks.weight",
    "ffn_norm.weight": "post_attention_norm.weight",
}
# Its MXFP4: a byte has two neighbouring columns, where ggml's has columns that are 16 apart.
PAIRS = "MXFP4_PAIRS"
_BLOCK_BYTES = 17
_SINGLE = re.compile(r"(blk\.[0-9]{1,6}\.ffn_(?:gate|up|down))\.([0-9]{1,6})\.weight", re.ASCII)
_FUSED = re.compile(r"(blk\.[0-9]{1,6}\.ffn_)gate_up_exps\.(weight|bias)", re.ASCII)


class Apart(TensorInfo):
    """A tensor that is no run of a file's bytes."""


@dataclass(frozen=True, slots=True)
class Joined(Apart):
    """One below the other, tensors of equal dtype and shape.

    Attributes:
        parts: these, of one file or several.
    """

    parts: tuple[TensorInfo, ...]

    def read(self, start: int, num_bytes: int) -> np.ndarray:
        """As TensorInfo.read()."""
        size, end = self.parts[0].num_bytes, start + num_bytes
        found = [np.empty(0, np.uint8)]
        for index in range(start // size, -(-end // size)):
            first, last = max(start - index * size, 0), min(end - index * size, size)
            found.append(self.parts[index].read(first, last - first))
        return np.concatenate(found)


@dataclass(frozen=True, slots=True)
class Pieces(Apart):
    """A tensor that is equal pieces of another one's bytes.

    Attributes:
        piece_bytes: of each piece; the first one is at `offset`.
        stride: bytes from the beginning of a piece to that of the next.
        in_pairs: blocks are PAIRS, and are read as MXFP4.
    """

    piece_bytes: int
    stride: int
    in_pairs: bool = False

    def read(self, start: int, num_bytes: int) -> np.ndarray:
        """As TensorInfo.read(); a few pieces at a time, since others lie between them."""
        size, found = self.piece_bytes, []
        step = max(1, SPAN_BYTES // self.stride)
        for first in range(start // size, -(-(start + num_bytes) // size), step):
            count = min(step, -(-(start + num_bytes) // size) - first)
            span = (count - 1) * self.stride + size
            place = self.offset + first * self.stride
            whole = TensorInfo(self.name, self.dtype, self.shape, place, span, self.path)
            raw = np.zeros(count * self.stride, np.uint8)
            raw[:span] = whole.read(0, span)
            found.append(raw.reshape(count, self.stride)[:, :size].reshape(-1))
        at = start % size
        pieces = np.concatenate(found or [np.empty(0, np.uint8)])
        return (_from_pairs(pieces) if self.in_pairs else pieces)[at : at + num_bytes]


def _from_pairs(raw):
    """Blocks of PAIRS as ggml's: an exponent, and 16 bytes of columns 16 apart."""
    blocks = raw.reshape(-1, _BLOCK_BYTES)
    pairs = blocks[:, 1:]
    codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(blocks), 32)
    nibbles = codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate([blocks[:, :1], nibbles], axis=1).reshape(-1)


def in_usual_words(file: GGUFFile) -> None:
    """Change metadata and tensors of a file to what most writers write of the same model.

    Raises:
        ModelFileError: a tensor is there under both names.
    """
    _join_singles(file)
    is_ollama = file.metadata.get("general.architecture") == OLLAMA
    if is_ollama:
        _rename_ollama(file)
    for name, info in list(file.tensors.items()):
        if match := _FUSED.fullmatch(name):
            _split(file, info, match, takes_turns=is_ollama)
        elif name.endswith(".ffn_gate_inp_shexp.weight") and len(info.shape) == 1:
            file.tensors[name] = replace(info, shape=(1, *info.shape))
        elif info.dtype == PAIRS:
            row = info.num_bytes // int(np.prod(info.shape[:-1]))
            _put(file, name, name, _pieces(info, info.shape, 0, row, row))


def _join_singles(file):
    """Put the tensors of single experts in the place of the one that others write."""
    found: dict[str, dict[int, TensorInfo]] = {}
    for name, info in file.tensors.items():
        if match := _SINGLE.fullmatch(name):
            found.setdefault(match[1], {})[int(match[2])] = info
    for stem, experts in found.items():
        parts = []
        for expert in range(len(experts)):
            info, first = experts.get(expert), experts.get(0)
            if info is None or first is None:
                message = f"is missing beside those of {len(experts)} experts"
                raise ModelFileError(file.path, message, tensor=f"{stem}.{expert}.weight")
            if (info.dtype, info.shape) != (first.dtype, first.shape) or not info.num_bytes:
                message = f"is {info.dtype} {list(info.shape)}, and expert 0's {first.dtype} "
                raise ModelFileError(info.path, message + str(list(first.shape)), tensor=info.name)
            parts.append(info)
        for info in parts[1:]:
            del file.tensors[info.name]
        first, shape = parts[0], (len(parts), *parts[0].shape)
        place = (first.offset, len(parts) * first.num_bytes, first.path)
        joined = Joined(first.name, first.dtype, shape, *place, tuple(parts))
        _put(file, first.name, f"{stem}_exps.weight", joined)


def _rename_ollama(file):
    prefix, usual, metadata = f"{OLLAMA}.", "gpt-oss.", file.metadata
    for key in [key for key in metadata if key.startswith(prefix)]:
        metadata.setdefault(usual + key.removeprefix(prefix), metadata.pop(key))
    metadata["general.architecture"] = "gpt-oss"
    if f"{usual}feed_forward_length" in metadata:
        width = metadata[f"{usual}feed_forward_length"]
        metadata.setdefault(f"{usual}expert_feed_forward_length", width)
    if f"{usual}rope.scaling.factor" in metadata:
        metadata.setdefault(f"{usual}rope.scaling.type", "yarn")
    more = metadata.get("tokenizer.ggml.eos_token_ids")
    if isinstance(more, np.ndarray) and 0 < len(more) <= 3:
        for name, token_id in zip(("eos", "eot", "eom"), more.tolist(), strict=False):
            metadata[f"tokenizer.ggml.{name}_token_id"] = token_id
    for name, info in list(file.tensors.items()):
        block, _, end = name.rpartition("blk.")[2].partition(".")
        if name.startswith("blk.") and end in _OLLAMA_NAMES:
            _put(file, name, f"blk.{block}.{_OLLAMA_NAMES[end]}", info)


def _split(file, info, match, takes_turns):
    """Put gates and ups in the place of a tensor [experts, 2 * rows, ...] that holds both."""
    if len(info.shape) < 2 or info.shape[1] % 2:
        return  # no such tensor: refused by its name, as any that no model has
    count, rows, *columns = info.shape
    shape = (count, rows // 2, *columns)
    half = info.num_bytes // (2 * count)
    row = info.num_bytes // (count * rows)
    for part, word in enumerate(("gate", "up")):
        place = (part * row, row, 2 * row) if takes_turns else (part * half, half, 2 * half)
        name = f"{match[1]}{word}_exps.{match[2]}"
        _put(file, info.name, name, _pieces(info, shape, *place))


def _pieces(info, shape, start, size, stride):
    in_pairs = info.dtype == PAIRS
    num_bytes = info.num_bytes * int(np.prod(shape)) // int(np.prod(info.shape))
    dtype, place = "MXFP4" if in_pairs else info.dtype, info.offset + start
    return Pieces(info.name, dtype, shape, place, num_bytes, info.path, size, stride, in_pairs)


def _put(file, old, name, info):
    """A tensor under another name, in the place of the old one."""
    file.tensors.pop(old, None)
    if name in file.tensors:
        message = f"holds {name}, which is there, too"
        raise ModelFileError(info.path, message, tensor=old)
    file.tensors[name] = replace(info, name=name)
