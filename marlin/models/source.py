"""A checkpoint as the source of a conversion: a Hugging Face folder, or a GGUF file.

Owns what makes it up: config, tensors in Hugging Face names and row order, tokenizer files. Refuses
to know what the conversion makes of them. (checkpoint.py opens one to be run.)
"""

import json
import os
import shutil
from dataclasses import dataclass, fields

from marlin.errors import ModelFileError
from marlin.files.snapshot import TEMPLATE_FOLDER
from marlin.files.strict_json import read_json_object
from marlin.models.config import ModelConfig
from marlin.models.place import is_folder
from marlin.models.plan_folder import plan_folder
from marlin.models.plan_gguf import plan_gguf
from marlin.models.pooling import pooling_of_folder, pooling_of_gguf, write_pooling
from marlin.models.registry import config_from_hf, family_of
from marlin.text.folder_tokenizer import load_tokenizer
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.tokenizer import Tokenizer
from marlin.weights.convert import SourceTensor
from marlin.weights.formats import FORMATS
from marlin.weights.gguf_parts import read_gguf
from marlin.weights.native import MIXED

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class Source:
    """What there is to convert.

    Attributes:
        path: the folder or .gguf file.
        config: ModelConfig.
        tensors: SourceTensors, checked against config; an output matrix that is only the embedding
            again is left out.
    """

    path: str
    config: ModelConfig
    tensors: list[SourceTensor]

    @property
    def num_bytes(self):
        return sum(tensor.info.num_bytes for tensor in self.tensors)

    def load_tokenizer(self) -> Tokenizer:
        """Raises ModelFileError where there is none that can be read."""
        if os.path.isdir(self.path):
            return load_tokenizer(self.path)
        return tokenizer_from_gguf(read_gguf(self.path).metadata, self.path)

    def write_companions(self, folder, quantization):
        """Write config.json with a `quantization` object, and the tokenizer's files, into folder.

        Raises:
            ModelFileError: a GGUF file's tokenizer or config has no Hugging Face counterpart.
        """
        if os.path.isdir(self.path):
            config = read_json_object(os.path.join(self.path, "config.json"))
            config.pop("quantization_config", None)  # what another program has made of them
            _copy_tokenizer(self.path, folder)
            pooling = pooling_of_folder(self.path)
        else:
            pooling = pooling_of_gguf(read_gguf(self.path))
            config = family_of(self.config).hf_config(self.config)
            tokenizer_from_gguf(read_gguf(self.path).metadata, self.path).save(folder)
        if pooling is not None:
            write_pooling(folder, pooling)
        config["quantization"] = quantization
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=1)
        self._check_config(folder)

    def _check_config(self, folder):
        written = config_from_hf(folder)
        for field in (field.name for field in fields(self.config)):
            before, after = getattr(self.config, field), getattr(written, field)
            # The tokenizer may know more end tokens than the model's own file.
            if field != "eos_token_ids" and before != after:
                message = f"{field} is {before}, which config.json cannot say of this architecture"
                raise ModelFileError(self.path, f"{message} (read back as {after})")


def _copy_tokenizer(source, folder):
    names = list(TOKENIZER_FILES)
    templates = os.path.join(source, TEMPLATE_FOLDER)
    if os.path.isdir(templates):
        os.mkdir(os.path.join(folder, TEMPLATE_FOLDER))
        names += [os.path.join(TEMPLATE_FOLDER, name) for name in os.listdir(templates)]
    for name in names:
        if os.path.isfile(os.path.join(source, name)):
            shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))


def open_source(path) -> Source:
    """Open a Hugging Face folder of safetensors, or a .gguf file.

    Raises:
        ModelFileError: it is neither, is quantized already, or its tensors are not the ones that
            its config implies.
    """
    path = os.fspath(path)
    return _open_folder(path) if is_folder(path) else _open_gguf(path)


def _open_folder(path):
    spec, format, plan, _ = plan_folder(path)
    if format in (*FORMATS, MIXED):
        message = "quantization says that the weights are quantized already; give the original"
        raise ModelFileError(os.path.join(path, "config.json"), message)
    found = [
        SourceTensor(at.tensor.name, at.info, at.tensor.role, foreign=at.foreign) for at in plan
    ]
    return _in_file_order(path, spec, found)


def _open_gguf(path):
    spec, plan, _ = plan_gguf(read_gguf(path))
    found = [
        SourceTensor(
            *(at.tensor.name, at.info, at.tensor.role, at.tensor.rope_heads, at.tensor.plus),
            factor=at.factor,
        )
        for at in plan
    ]
    return _in_file_order(path, spec, found)


def _in_file_order(path, spec, found):
    found.sort(key=lambda tensor: (tensor.info.path, tensor.info.offset))
    return Source(path, spec.config, found)
