"""From a model's path to a running engine: device, weights, tokenizer, KV cache."""

import logging
import os
from dataclasses import dataclass

from marlin.device.device import Device, usable_cores
from marlin.device.ops import KvLayout
from marlin.device.slabs import SharedSlabs
from marlin.engine.engine import Engine
from marlin.engine.runner import Runner
from marlin.errors import ConfigError
from marlin.models.checkpoint import GgufCheckpoint, open_checkpoint
from marlin.models.config import ModelConfig
from marlin.models.llama import LlamaModel
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

# Tokens of a prefill step. A step reads the weights once; this many hide that read behind
# arithmetic, keep activations in the second-level cache, and let an abort be noticed soon
# (docs/performance.md).
PREFILL_STEP_TOKENS = 256
# KV caches may take this share of the machine's memory when the user names no context.
MAX_KV_MEMORY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to serve.

    Attributes:
        model_id: what API calls name it by: the path's last component, without .gguf.
        format: "gguf", "safetensors", or a native folder's "fp4", "int4", "int8".
        isa: instruction set that the device uses.
    """

    model_id: str
    engine: Engine
    tokenizer: Tokenizer
    config: ModelConfig
    format: str
    isa: str


@dataclass(frozen=True, slots=True)
class Batching:
    """A paged KV cache that requests share.

    Attributes:
        num_blocks, block_size: blocks in all, and tokens a block (a multiple of 16).
        max_sequences: requests that may run at once.
    """

    num_blocks: int
    block_size: int
    max_sequences: int


def load_engine(
    path, num_threads=None, max_context_tokens=None, isa=None, batching=None, share=None
):
    """Open a model and start its engine.

    Args:
        path: a .gguf file, or a folder in Hugging Face or native form.
        num_threads: CPU workers; None is as many cores as the process may use.
        max_context_tokens: prompt and output together; None is the model's own context, or what a
            quarter of the machine's memory holds.
        isa: CPU instruction set; None is the best here.
        batching: Batching; None runs one request at a time over one contiguous cache.
        share: engine.share.Share, when other processes serve the model, too.

    Raises:
        ModelFileError: the model cannot be read.
        ConfigError: a context or a KV cache that the model or the machine cannot have.
        DeviceError: the device cannot be opened or its memory does not suffice.
    """
    num_processes = share.num_processes if share else 1
    device = Device(num_threads or max(1, usable_cores() // num_processes), isa)
    slabs = share and SharedSlabs(device, share.weights_fd, filled=not share.writes_weights)
    checkpoint = open_checkpoint(path, device, slabs)
    config = checkpoint.config
    if batching is None:
        memory_share = MAX_KV_MEMORY_SHARE / num_processes
        context = _context_tokens(config, device, max_context_tokens, memory_share)
        layout = KvLayout(1, context, 1, config.num_kv_heads, config.head_dim)
        max_sequences = 1
    else:
        context = min(max_context_tokens or config.max_context_tokens, config.max_context_tokens)
        layout = _paged_layout(config, device, batching, context)
        max_sequences = min(batching.max_sequences, batching.num_blocks)
    step_tokens = max(PREFILL_STEP_TOKENS, max_sequences)
    runner = Runner(device, LlamaModel(checkpoint), layout, step_tokens, max_sequences)
    tokenizer = _load_tokenizer(checkpoint)
    eos_token_ids = tokenizer.eos_token_ids | set(config.eos_token_ids)
    name = os.path.basename(os.path.abspath(path)).removesuffix(".gguf")
    engine = Engine(runner, eos_token_ids, context)
    isa = device.info()["isa"]
    return LoadedModel(name, engine, tokenizer, config, checkpoint.format, isa)


def _load_tokenizer(checkpoint):
    if not isinstance(checkpoint, GgufCheckpoint):
        return load_tokenizer(checkpoint.path)
    tokenizer = tokenizer_from_gguf(checkpoint.file.metadata, checkpoint.path)
    checkpoint.file.metadata.clear()
    return tokenizer


def _kv_token_bytes(config):
    return config.num_layers * config.num_kv_heads * config.head_dim * 4


def _paged_layout(config, device, batching, context):
    num_tokens = batching.num_blocks * batching.block_size
    num_bytes = num_tokens * _kv_token_bytes(config)
    memory_bytes = device.info()["memory_bytes"]
    if num_bytes > memory_bytes:
        raise ConfigError(
            f"{batching.num_blocks} KV blocks of {batching.block_size} tokens take "
            f"{num_bytes >> 20} MiB; the machine has {memory_bytes >> 20} MiB"
        )
    table_stride = min(batching.num_blocks, -(-context // batching.block_size))
    return KvLayout(
        batching.num_blocks,
        batching.block_size,
        table_stride,
        config.num_kv_heads,
        config.head_dim,
    )


def _context_tokens(config, device, wanted, memory_share):
    """Length of the contiguous KV cache: a multiple of 16, the key tile."""
    token_bytes = _kv_token_bytes(config)
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
    fits = int(memory_bytes * memory_share / token_bytes)
    if fits < own:
        logger.warning(
            "context limited to %d of the model's %d tokens, %g%% of the memory; "
            "--max-context sets it",
            fits // 16 * 16,
            own,
            memory_share * 100,
        )
    return max(16, min(own, fits) // 16 * 16)
