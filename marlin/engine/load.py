"""From a model's path to a running engine: device, weights, tokenizer, KV cache."""

import logging
import os
from dataclasses import dataclass

from marlin.device.device import Device
from marlin.device.ops import KvLayout
from marlin.engine.engine import Engine
from marlin.engine.runner import Runner
from marlin.errors import ConfigError
from marlin.models.checkpoint import GgufCheckpoint, open_checkpoint
from marlin.models.config import ModelConfig
from marlin.models.llama import LlamaModel
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

# Tokens of a prefill step. A step reads the weights once; this many hide that read behind arithmetic
# (docs/performance.md), keep activations in the second-level cache, and let an abort be noticed soon.
PREFILL_STEP_TOKENS = 256
# The KV cache may take this share of the machine's memory when the user names no context.
MAX_KV_MEMORY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to serve.

    Attributes:
        model_id: what API calls name it by: the path's last component, without .gguf.
        format: "gguf", "safetensors", or a native folder's "fp4", "int4", "int8".
    """

    model_id: str
    engine: Engine
    tokenizer: Tokenizer
    config: ModelConfig
    format: str


def load_engine(path, num_threads=None, max_context_tokens=None, isa=None):
    """Open a model and start its engine.

    Args:
        path: a .gguf file, or a folder in Hugging Face or native form.
        num_threads: CPU workers; None is as many cores as the process may use.
        max_context_tokens: KV cache length; None is the model's own context, or what a quarter of
            the machine's memory holds.
        isa: CPU instruction set; None is the best here.

    Raises:
        ModelFileError: the model cannot be read.
        ConfigError: max_context_tokens is more than the model is made for, or less than 16.
        DeviceError: the device cannot be opened or its memory does not suffice.
    """
    device = Device(num_threads, isa)
    checkpoint = open_checkpoint(path, device)
    config = checkpoint.config
    context = _context_tokens(config, device, max_context_tokens)
    model = LlamaModel(checkpoint)
    layout = KvLayout(1, context, 1, config.num_kv_heads, config.head_dim)
    runner = Runner(device, model, layout, min(PREFILL_STEP_TOKENS, context), max_sequences=1)
    if isinstance(checkpoint, GgufCheckpoint):
        tokenizer = tokenizer_from_gguf(checkpoint.file.metadata, checkpoint.path)
        checkpoint.file.metadata.clear()
    else:
        tokenizer = load_tokenizer(path)
    eos_token_ids = tokenizer.eos_token_ids | set(config.eos_token_ids)
    name = os.path.basename(os.path.abspath(path)).removesuffix(".gguf")
    return LoadedModel(name, Engine(runner, eos_token_ids), tokenizer, config, checkpoint.format)


def _context_tokens(config, device, wanted):
    """Length of the KV cache: a multiple of 16, the key tile."""
    token_bytes = config.num_layers * config.num_kv_heads * config.head_dim * 4
    memory_bytes = device.info()["memory_bytes"]
    own = config.max_context_tokens
    if wanted is not None:
        if not 16 <= wanted <= own:
            raise ConfigError(f"the context is {wanted} tokens; this model takes 16 to {own}")
        if wanted * token_bytes > memory_bytes:
            raise ConfigError(
                f"a context of {wanted} tokens takes {wanted * token_bytes >> 20} MiB of KV cache; "
                f"the machine has {memory_bytes >> 20} MiB"
            )
        return wanted // 16 * 16
    fits = int(memory_bytes * MAX_KV_MEMORY_SHARE / token_bytes)
    if fits < own:
        logger.warning(
            "context limited to %d of the model's %d tokens, a quarter of the memory; "
            "--max-context sets it",
            fits // 16 * 16,
            own,
        )
    return max(16, min(own, fits) // 16 * 16)
