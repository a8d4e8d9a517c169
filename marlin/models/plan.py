"""What both kinds of checkpoint check of a tensor when they plan it: there, of the shape and dtype
that its family says, and nothing left over.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from marlin.errors import ModelFileError
from marlin.models.plan_tables import with_held
from marlin.models.spec import ModelSpec, Tensor
from marlin.weights.tensor_file import TensorInfo

# RoPE's frequencies or its tables, which old versions of transformers and of llama.cpp's converter,
# and ColossalAI, stored beside the weights.
_COMPUTED = re.compile(
    r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.(inv_freq|(cos|sin)_cached)"
    r"|blk\.[0-9]+\.attn_rot_embd",
    re.ASCII,
)
# What multimodal checkpoints hold beside their language model, in folders and in GGUF files.
_TOWER = re.compile(
    r"(model\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|connector"
    r"|vision_adapter|vision_projection|vision_embedder"
    r"|embed_vision|embed_audio)\.|(v|a|mm)\.|(model\.)?image_newline\Z"
)
_LAYER = re.compile(r"(model\.layers|blk)\.([0-9]{1,6})\.", re.ASCII)

logger = logging.getLogger(__name__)


def check_found(
    path: str, tensor: Tensor, name: str, info: TensorInfo | None, dtypes: Collection[str]
) -> bool:
    """Whether a tensor is there, as its family describes it.

    Args:
        path: of the checkpoint, named when the tensor is missing.
        name: what this kind of file calls it.
        dtypes: those that can be read.

    Returns:
        False for an optional one that is absent.

    Raises:
        ModelFileError: it is missing, of another shape, or of another dtype.
    """
    if info is None and tensor.optional:
        return False
    if info is None:
        message = f"is missing; the config implies it, with shape {list(tensor.shape)}"
        raise ModelFileError(path, message, tensor=name)
    shape = info.shape
    if tensor.role == "conv":
        shape = tuple(size for size in shape if size != 1)
    if shape != tensor.shape:
        message = f"has shape {list(info.shape)}; the config implies {list(tensor.shape)}"
        raise ModelFileError(info.path, message, tensor=info.name)
    check_dtype(info, dtypes)
    return True


def check_dtype(info: TensorInfo, dtypes: Collection[str]) -> None:
    if info.dtype not in dtypes:
        message = f"is {info.dtype}, expected {' or '.join(dtypes)}"
        raise ModelFileError(info.path, message, tensor=info.name)


def split_fused(
    spec: ModelSpec, tensors: dict[str, TensorInfo], attribute: str
) -> dict[str, TensorInfo]:
    """A file's tensors with those cut up, by rows, that it holds as one.

    Args:
        attribute: "name" or "gguf", what this kind of file calls a Tensor.
    """
    found = dict(tensors)
    for fused in spec.fused:
        stem, _, end = getattr(fused, attribute).rpartition(".")
        ends = (end,) if end == "bias" else (end, "scales", "biases")
        names = [getattr(part, attribute).rpartition(".")[0] for part in fused.parts]
        rows = [part.shape[0] for part in fused.parts]
        for end in ends:
            info = tensors.get(f"{stem}.{end}")
            if info is None or not info.shape or info.shape[0] != sum(rows):
                continue
            del found[f"{stem}.{end}"]
            row_bytes, start = info.num_bytes // sum(rows), 0
            for name, count in zip(names, rows, strict=True):
                if f"{name}.{end}" in found:
                    message = f"holds {name}.{end}, which is there, too"
                    raise ModelFileError(info.path, message, tensor=info.name)
                found[f"{name}.{end}"] = replace(
                    info,
                    name=f"{name}.{end}",
                    shape=(count, *info.shape[1:]),
                    offset=info.offset + start * row_bytes,
                    num_bytes=count * row_bytes,
                )
                start += count
    return with_held(spec, found, attribute)


def check_leftovers(spec: ModelSpec, tensors: dict[str, TensorInfo], known: set[str]) -> None:
    """Refuse tensors that the model would leave out: its answers would be wrong without a word.

    Args:
        tensors: {name: TensorInfo}, all that the checkpoint holds.
        known: names that are used, or known to be of no use.

    Raises:
        ModelFileError: one may not be there, and is named.
    """
    skipped: Counter[str] = Counter()
    for name, info in tensors.items():
        if name in known:
            continue
        part = unused_part(spec, name)
        if part is None:
            message = (
                f"is not a tensor of this {spec.config.architecture} model, as its config and its "
                "first block describe it; answers that leave it out could be wrong"
            )
            raise ModelFileError(info.path, message, tensor=info.name)
        skipped[part] += 1
    if skipped:
        named = ", ".join(f"{part} ({count} tensors)" for part, count in skipped.items())
        logger.info("left unread, since no text is read with it: %s", named)


def unused_part(spec: ModelSpec, name: str) -> str | None:
    """What a tensor is of that published checkpoints hold although nothing reads it: the config
    says what is in it, it is the embedding again, or it is of a part that reads no text or guesses
    tokens ahead. None of any other tensor."""
    if spec.lm_head is spec.embedding and name == "lm_head.weight":
        return "lm_head, the embedding again"
    if _COMPUTED.fullmatch(name):
        return "RoPE's tables"
    if tower := _TOWER.match(name):
        return tower[0].rstrip(".")
    layer, first = _LAYER.match(name), spec.config.num_layers
    if layer and first <= int(layer[2]) < first + spec.config.num_prediction_layers:
        return f"{layer[0].rstrip('.')}, a layer that guesses tokens ahead"
    return next((prefix for prefix in spec.unused if name.startswith(prefix)), None)
