"""How a model makes one vector of a text: what its files say of it, or its operator.

Reads `modules.json` and the folder of its pooling module, as sentence-transformers writes them, and
a GGUF header's `pooling_type`. Refuses to know how states are computed and pooled
(engine/pooler.py).
"""

import json
import os
from dataclasses import dataclass
from typing import Any

from marlin.config import POOLINGS
from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.files.regular import read_regular
from marlin.files.strict_json import MAX_FILE_BYTES, JsonError, parse_json, read_json_object
from marlin.models.config_gguf import fields_of
from marlin.weights.gguf import GGUFFile

# The last token's state, the mean of all, the first one's; and the score of a reranker that answers
# yes or no.
LAST, MEAN, CLS, RANK = POOLINGS

_TYPES = "sentence_transformers.models."
_MODULES, _SENTENCE_CONFIG = "modules.json", "sentence_bert_config.json"
_POOLED_BY_MODE = {
    "pooling_mode_cls_token": CLS,
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_lasttoken": LAST,
}
# Other ways, which a folder may say that it does not use.
_OTHER_MODES = (
    *("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    "pooling_mode_weightedmean_tokens",
)
# llama.cpp's enum llama_pooling_type: 0 is none, 4 a head of a reranker, which is not read.
_POOLED_BY_TYPE = {0: None, 1: MEAN, 2: CLS, 3: LAST}


@dataclass(frozen=True, slots=True)
class Pooling:
    """Attributes:
    kind: one of config.POOLINGS.
    normalised: vectors have length 1.
    is_declared: the model's files say so, and it is made for nothing else.
    max_tokens: of a text, as the files say; None is the model's context.
    lowers_case: vectors are of texts in lower case.
    """

    kind: str
    normalised: bool = True
    is_declared: bool = False
    max_tokens: int | None = None
    lowers_case: bool = False


def pooling_of_folder(folder: str) -> Pooling | None:
    """What a folder declares, or None without `modules.json`.

    Raises:
        ModelFileError: a file is wrong, or a module is not one of a transformer, a pooling and a
            normalization.
    """
    path = os.path.join(folder, _MODULES)
    if not os.path.exists(path):
        return None
    modules = file_fields(path, {"modules": _modules(path)}).elements("modules")
    found, normalised = None, False
    for place in modules.values:
        module = modules.object(place)
        name = module.text("type").rpartition(".")[2]
        if name == "Pooling" and found is None:
            found = _pooled(os.path.join(folder, _inside(module, path), "config.json"))
        elif name == "Normalize" and found is not None:
            normalised = True
        elif name != "Transformer" or found is not None:
            raise ModelFileError(
                path,
                f"{place} is a module {name:.40}; expected Transformer, Pooling and Normalize, "
                "each once and in this order",
            )
    if found is None:
        raise ModelFileError(path, "has no pooling module")
    _refuse_prompt(os.path.join(folder, "config_sentence_transformers.json"))
    return Pooling(found, normalised, True, *_of_texts(folder))


def _inside(module, path):
    """The path of a module, which lies in the model's folder."""
    inside = module.text("path")
    if os.path.isabs(inside) or ".." in inside.replace("\\", "/").split("/"):
        raise ModelFileError(path, f"names a module outside the model's folder: {inside:.80}")
    return inside


def _pooled(path: str) -> str:
    fields = file_fields(path, read_json_object(path))
    if fields.raw("pooling_mode") is not None:  # how version 5 of its writer says it
        named = {"cls": CLS, "mean": MEAN, "lasttoken": LAST}
        return named[fields.choice("pooling_mode", tuple(named))]
    chosen = [kind for name, kind in _POOLED_BY_MODE.items() if fields.flag(name, False)]
    for name in _OTHER_MODES:
        if fields.flag(name, False):
            fields.fail(name, "false, and one of " + ", ".join(_POOLED_BY_MODE))
    if len(chosen) != 1:
        raise ModelFileError(path, "must set one of " + ", ".join(_POOLED_BY_MODE))
    if not fields.flag("include_prompt", True):
        fields.fail("include_prompt", "true: all tokens of a text are pooled")
    return chosen[0]


def _refuse_prompt(path: str) -> None:
    """A prompt that is meant to stand before every text, which clients would not know of."""
    fields = file_fields(path, read_json_object(path, {}))
    name = fields.text("default_prompt_name", None)
    if name is not None and fields.of_type(dict, "prompts", {}).get(name):
        fields.fail("default_prompt_name", "null: texts are embedded as they are sent")


def _of_texts(folder: str) -> tuple[int | None, bool]:
    """Pooling.max_tokens and lowers_case."""
    path = os.path.join(folder, _SENTENCE_CONFIG)
    if not os.path.exists(path):
        return None, False
    fields = file_fields(path, read_json_object(path))
    return fields.count("max_seq_length", None), fields.flag("do_lower_case", False)


def _modules(path: str) -> Any:
    """An array alone, which no other model file is."""
    try:
        return parse_json(read_regular(path, MAX_FILE_BYTES) or b"")
    except JsonError as error:
        raise ModelFileError(path, str(error)) from None


def pooling_of_gguf(file: GGUFFile) -> Pooling | None:
    """What a GGUF header declares, or None. Raises ModelFileError, as above."""
    architecture = file_fields(file.path, file.metadata).text("general.architecture")
    fields = fields_of(file, architecture)
    number = fields.count("pooling_type", 0, minimum=0)
    if number not in _POOLED_BY_TYPE:
        fields.fail("pooling_type", "1 (mean), 2 (cls) or 3 (last)")
    kind = _POOLED_BY_TYPE[number]
    return None if kind is None else Pooling(kind, is_declared=True)


def write_pooling(folder: str, pooling: Pooling) -> None:
    """Write what pooling_of_folder() reads back to the same declaration."""
    modules = ["Transformer", "Pooling", *["Normalize"] * pooling.normalised]
    (mode,) = (name for name, kind in _POOLED_BY_MODE.items() if kind == pooling.kind)
    os.mkdir(os.path.join(folder, "1_Pooling"))
    written: dict[str, Any] = {
        _MODULES: [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{name}" if i else "",
                "type": f"{_TYPES}{name}",
            }
            for i, name in enumerate(modules)
        ],
        os.path.join("1_Pooling", "config.json"): {mode: True},
    }
    if pooling.max_tokens is not None or pooling.lowers_case:
        of_texts = {"max_seq_length": pooling.max_tokens, "do_lower_case": pooling.lowers_case}
        written[_SENTENCE_CONFIG] = of_texts
    for name, value in written.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
