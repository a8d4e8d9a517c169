"""A checkpoint as the source of a conversion: a Hugging Face folder, or a GGUF file.

Owns what makes it up: config, tensors in Hugging Face names and row order, tokenizer files. Refuses
to know what the conversion makes of them. (checkpoint.py opens one to be run.)
"""

import json
import os
import shutil
from dataclasses import dataclass

from marlin.errors import ModelFileError
from marlin.files.strict_json import read_json_object
from marlin.models.config import ModelConfig, config_from_gguf, config_from_hf
from marlin.models.hf_config import hf_config
from marlin.models.tensors import check_gguf_leftovers, check_tensors, is_unused
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.weights.convert import SourceTensor
from marlin.weights.gguf import GGUFFile
from marlin.weights.names import ROPE_FACTORS, hf_name, rows_are_interleaved
from marlin.weights.safetensors_file import SafetensorsFolder

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
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

    def write_companions(self, folder, quantization):
        """Write config.json with a `quantization` object, and the tokenizer's files, into folder.

        Raises:
            ModelFileError: a GGUF file's tokenizer or config has no Hugging Face counterpart.
        """
        if os.path.isdir(self.path):
            config = read_json_object(os.path.join(self.path, "config.json"))
            for name in TOKENIZER_FILES:
                if os.path.isfile(os.path.join(self.path, name)):
                    shutil.copyfile(os.path.join(self.path, name), os.path.join(folder, name))
        else:
            config = hf_config(self.config)
            tokenizer_from_gguf(GGUFFile(self.path).metadata, self.path).save(folder)
        config["quantization"] = quantization
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=1)
        self._check_config(folder)

    def _check_config(self, folder):
        written = config_from_hf(folder)
        for field in self.config.__slots__:
            before, after = getattr(self.config, field), getattr(written, field)
            # The tokenizer may know more end tokens than the model's own file.
            if field != "eos_token_ids" and before != after:
                message = f"{field} is {before}, which config.json cannot say of this architecture"
                raise ModelFileError(self.path, f"{message} (read back as {after})")


def open_source(path):
    """Open a Hugging Face folder of safetensors, or a .gguf file.

    Raises:
        ModelFileError: it is neither, is quantized already, or its tensors are not the ones that
            its config implies.
    """
    path = os.fspath(path)
    return _open_folder(path) if os.path.isdir(path) else _open_gguf(path)


def _open_folder(path):
    config_path = os.path.join(path, "config.json")
    values = read_json_object(config_path)
    for field in ("quantization", "quantization_config"):
        if values.get(field) is not None:
            message = f"{field} says that the weights are quantized already; give the original"
            raise ModelFileError(config_path, message)
    config = config_from_hf(path)
    infos = {
        name: info
        for name, info in SafetensorsFolder(path).tensors.items()
        if not is_unused(config, name)
    }
    check_tensors(path, config, infos)
    return Source(path, config, [SourceTensor(name, info) for name, info in infos.items()])


def _open_gguf(path):
    file = GGUFFile(path)
    config = config_from_gguf(file)
    check_gguf_leftovers(config, file.tensors)
    infos = {
        hf_name(name) or name: info
        for name, info in file.tensors.items()
        if not is_unused(config, name)
    }
    check_tensors(path, config, infos, optional=(ROPE_FACTORS,))
    architecture = file.metadata["general.architecture"]
    tensors = []
    for name, info in infos.items():
        num_heads = 0
        if rows_are_interleaved(architecture, name):
            num_heads = config.num_heads if ".q_proj." in name else config.num_kv_heads
        tensors.append(SourceTensor(name, info, num_heads))
    return Source(path, config, tensors)
