"""Which families there are, and from which words of a file each is known.

The only list of architectures: a new family is a file and a row here.
"""

import os

from marlin.files.fields import file_fields
from marlin.files.strict_json import read_json_object
from marlin.models.bert import ROBERTAS, Bert
from marlin.models.config import ModelConfig
from marlin.models.deepseek_v3 import DeepseekV3, Glm4MoeLite
from marlin.models.exaone4 import Exaone4
from marlin.models.gemma2 import Gemma2
from marlin.models.gemma3 import Gemma3
from marlin.models.gemma4 import Gemma4, Gemma4Unified
from marlin.models.glm4 import Glm4
from marlin.models.glm4_moe import Glm4Moe
from marlin.models.gpt_oss import GptOss
from marlin.models.granite import Granite
from marlin.models.lfm2 import Lfm2
from marlin.models.lfm2_moe import Lfm2Moe
from marlin.models.llama import Llama
from marlin.models.ministral3 import Ministral3
from marlin.models.mistral import Mistral
from marlin.models.mixtral import Mixtral
from marlin.models.muse_glimmer import MuseGlimmer
from marlin.models.olmo2 import Olmo2, Olmo3
from marlin.models.phi3 import Phi3
from marlin.models.qwen2 import Qwen2
from marlin.models.qwen2_moe import Qwen2Moe
from marlin.models.qwen3 import Qwen3
from marlin.models.qwen3_5 import Qwen35, Qwen35Moe
from marlin.models.qwen3_moe import Qwen3Moe
from marlin.models.qwen3_next import Qwen3Next
from marlin.models.smollm3 import SmolLM3
from marlin.models.spec import Family, ModelSpec
from marlin.models.wrappers import MODEL_TYPES, text_part
from marlin.weights.gguf import GGUFFile

FAMILIES = (
    *(Llama(), Mistral(), Qwen2(), Qwen3(), Gemma3(), Qwen3Moe(), Mixtral(), Glm4Moe(), Qwen2Moe()),
    *(SmolLM3(), Granite(), Olmo2(), Olmo3(), Phi3(), Gemma2(), Ministral3(), Exaone4(), Glm4()),
    *(MuseGlimmer(), GptOss(), Lfm2(), Qwen3Next(), Qwen35(), Qwen35Moe(), Bert(), *ROBERTAS),
    *(Gemma4(), Gemma4Unified(), DeepseekV3(), Glm4MoeLite(), Lfm2Moe()),
)

_BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
_BY_GGUF = {
    family.gguf_architecture: family for family in FAMILIES if family.gguf_architecture is not None
}


def family_of(config: ModelConfig) -> Family:
    return _BY_MODEL_TYPE[config.architecture]


def spec_of(config: ModelConfig) -> ModelSpec:
    """The model that a config describes, in its family's words."""
    return family_of(config).spec(config)


def config_from_hf(folder) -> ModelConfig:
    """Read `config.json`, and the end tokens of `generation_config.json` where there is one.

    Raises:
        ModelFileError: no family knows the model_type, a field is missing or wrong, or the model
            needs what is not supported.
    """
    path = os.path.join(folder, "config.json")
    fields = file_fields(path, read_json_object(path))
    model_type = fields.choice("model_type", (*_BY_MODEL_TYPE, *MODEL_TYPES))
    if model_type in MODEL_TYPES:
        model_type, fields = text_part(fields, model_type)
    return _BY_MODEL_TYPE[model_type].config_from_hf(fields)


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """Read the hyperparameters out of a GGUF header; raises as config_from_hf()."""
    general = file_fields(file.path, file.metadata)
    if general.raw("general.architecture") == "clip":
        general.fail("general.architecture", "a language model: this file reads images for one")
    architecture = general.choice("general.architecture", tuple(_BY_GGUF))
    return _BY_GGUF[architecture].config_from_gguf(file)
