"""Tiny random models on disk and on a device, for tests of whole models. Needs no torch.

Owns how a test opens a model and reads logits off the runner; knows nothing of the reference
(reference_models.py).
"""

import json
import os
import platform
import tempfile
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from dense_families import FAMILIES
from hybrid_families import HYBRIDS
from mixture_families import MIXTURES, small_config
from safetensors.numpy import save_file

from marlin.device import abi
from marlin.device.device import Device
from marlin.engine.kv_cache import Paging, state_bytes
from marlin.engine.request import Chunk, Request
from marlin.engine.runner import Runner
from marlin.engine.sampling import SamplingParams
from marlin.errors import DeviceError
from marlin.models.bert import BertConfig
from marlin.models.checkpoint import open_checkpoint
from marlin.models.config import ModelConfig
from marlin.models.gemma3 import Gemma3Config
from marlin.models.model import Model
from marlin.models.registry import config_from_hf, family_of, spec_of
from marlin.models.rope import RopeScaling
from marlin.models.spec import with_kv_dtype
from marlin.weights import formats, ggml_types
from marlin.weights.kinds import KINDS

_OF_MACHINE = {"x86_64": ("avx512", "avx2"), "AMD64": ("avx512", "avx2")}
# Each machine's, best first; "scalar" is everywhere.
INSTRUCTION_SETS = (*_OF_MACHINE.get(platform.machine(), ("i8mm", "neon")), "scalar")
GREEDY = SamplingParams(temperature=0.0)


def tiny_config(**changes):
    """ModelConfig of a Llama model that runs in milliseconds."""
    values = {
        "architecture": "llama",
        "num_layers": 2,
        "hidden_dim": 64,
        "intermediate_dim": 96,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 97,
        "max_context_tokens": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": RopeScaling(),
        "tie_embeddings": False,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "eos_token_ids": (),
    }
    values |= changes
    return ModelConfig(**{"windows": (None,) * values["num_layers"]} | values)


def tiny_gemma3_config(**changes):
    """Gemma3Config of a model as small; of its layers every other one sees 24 tokens."""
    tiny = tiny_config(
        architecture="gemma3_text", num_layers=4, windows=(24, None) * 2, qk_norm=True
    )
    own = {"local_rope_theta": 1000.0, "query_pre_attn_scalar": 24.0}
    return Gemma3Config(**{f.name: getattr(tiny, f.name) for f in fields(tiny)} | own | changes)


def tiny_bert_config(**changes):
    """BertConfig of an encoder as small."""
    tiny = tiny_config(num_kv_heads=4)
    return BertConfig(**{f.name: getattr(tiny, f.name) for f in fields(tiny)} | changes)


def tiny_family_config(model_type):
    """The config of a model as small of a dense family or a mixture, or of the others'."""
    if model_type not in FAMILIES | MIXTURES | HYBRIDS:
        own = {"gemma3_text": tiny_gemma3_config}
        own |= dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), tiny_bert_config)
        said = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}.get(model_type, {})
        return own.get(model_type, tiny_config)(architecture=model_type, **said)
    values = small_config(model_type)[1] | {"model_type": model_type}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(values))
        return config_from_hf(folder)


def random_tensor(name, shape, rng):
    """float32 values that let every part of the model show in the logits, which come out near 1:
    norm weights differ from 1, biases from 0, and attention is not uniform."""
    if name.endswith(".bias"):
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith("A_log"):  # a state that lasts
        return (0.5 * rng.standard_normal(shape) - 2.5).astype(np.float32)
    if len(shape) == 1:
        return (1 + 0.25 * rng.standard_normal(shape)).astype(np.float32)
    return (shape[1] ** -0.5 * rng.standard_normal(shape)).astype(np.float32)


def random_tensors(config, seed):
    """{Hugging Face name: float32 array} of a whole model."""
    rng = np.random.default_rng(seed)
    return {
        tensor.name: random_tensor(tensor.name, tensor.shape, rng) - np.float32(tensor.plus)
        for tensor in spec_of(config).tensors
        if not tensor.optional
    }


def gguf_names(config):
    """{Hugging Face name: GGUF name} of every tensor."""
    return {tensor.name: tensor.gguf for tensor in spec_of(config).tensors}


def write_folder(folder, config, tensors):
    """Write a Hugging Face folder without a tokenizer; returns its path as a string."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(family_of(config).hf_config(config), file)
    save_file(tensors, os.path.join(folder, "model.safetensors"))
    return str(folder)


def random_tokens(count, vocab_size, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def open_device(isa, num_threads=2):
    """A Device; skips the test, with the library's reason, where the CPU lacks the set."""
    try:
        return Device(num_threads, isa, kind="cpu")
    except DeviceError as error:
        if isa is None:
            raise
        pytest.skip(str(error))


@contextmanager
def running(
    path,
    *,
    isa=None,
    num_threads=2,
    max_step_tokens=64,
    context=512,
    sequences=1,
    blocks=None,
    windows=(),
    states=0,
    drafts=0,
    device=None,
    kv_dtype="float16",
):
    """A Runner of the model at `path`.

    Args:
        context: tokens of the contiguous cache.
        blocks: (number, tokens each) of a paged cache instead; a sequence may hold all of them.
        windows: (length, blocks) of windows that give blocks back.
        states: slots of states, of a model that has some; 0: one.
        drafts: guesses a step may hold.
        device: one that is closed at the end, in place of a CPU.
        kv_dtype: of the cache.
    """
    device = device or open_device(isa, num_threads)
    try:
        num_blocks, block_size = blocks or (1, context)
        checkpoint = open_checkpoint(path, device)
        checkpoint.spec = with_kv_dtype(checkpoint.spec, kv_dtype)
        model = Model(checkpoint, num_blocks * block_size)
        num_states = (states or 1) if state_bytes(model.spec) else 0
        paging = Paging(num_blocks, block_size, num_blocks, windows, num_states)
        runner = Runner(device, model, paging, max_step_tokens, sequences, drafts)
        try:
            yield runner
        finally:
            runner.close()
    finally:
        device.close()


def greedy_chunk(token_ids, start, block_table=(0,)):
    """A Chunk whose last token's logits are computed."""
    prompt = [0] * start + list(token_ids)
    request = Request("tiny", prompt, GREEDY, seed=0, block_ids=list(block_table))
    request.state_runs = [(0, len(token_ids), 0 if start else -1, 0)]
    return Chunk(request, start, len(token_ids))


def logits_by_chunks(runner, token_ids, sizes, start=0):
    """Compute tokens in chunks of the given sizes, the last size repeated to the end.

    Returns:
        {position: float32 [vocab_size]} for the last position of each chunk.
    """
    sizes = iter(sizes)
    found, size = {}, None
    while start < len(token_ids):
        size = next(sizes, size)
        end = min(start + size, len(token_ids))
        runner.step([greedy_chunk(token_ids[start:end], start)])
        found[end - 1] = runner.logits[0].copy()
        start = end
    return found


def logits_of_positions(runner, token_ids, start=0):
    """Decode logits of each position from `start`, as many at a time as the runner has sequences.

    One sequence's tokens, each a chunk of its own: all of a step's keys are written before any is
    read, so a token sees those before it in the same step.

    Returns:
        float32 [len(token_ids) - start, vocab_size].
    """
    rows = []
    for first in range(start, len(token_ids), runner.max_sequences):
        part = token_ids[first : first + runner.max_sequences]
        runner.step([greedy_chunk([token], first + i) for i, token in enumerate(part)])
        rows.append(runner.logits[: len(part)].copy())
    return np.concatenate(rows)


def weight_values(weight):
    """What a Weight stands for, read back from its buffers: float32 [n, k]."""
    codes, *factors = (
        None if view is None else view.buffer.array(np.uint8, (view.num_bytes,), view.offset)
        for view in (weight.data, weight.scales, weight.biases)
    )
    size = weight.n, weight.k
    if weight.kind in ("f32", "f16", "bf16"):
        return ggml_types.dequantize(weight.kind.upper(), codes, size)
    kind = KINDS[weight.kind]
    codes = codes.view({"U8": np.uint8, "U32": np.uint32}[kind.code_dtype])
    codes = codes.reshape(kind.code_shape(*size))
    if weight.flags & abi.SCALE_BLOCK:
        scale_type, a_tile = formats.block_scales(weight.group_size), (-1,)
    else:
        scale_type, a_tile = np.float32 if weight.flags & abi.SCALE_F32 else np.float16, (-1, 16)
        scale_type = np.uint8 if weight.flags & abi.SCALE_EXP else scale_type
        scale_type = np.int8 if weight.flags & abi.SCALE_ROW else scale_type
    factors = [
        None if part is None else part.view(scale_type).reshape(len(codes), *a_tile)
        for part in factors
    ]
    return formats.dequantize(
        formats.PackedWeight(weight.kind, size, weight.group_size, codes, *factors)
    )


def prefill(runner, token_ids, block_table=(0,)):
    """Compute tokens from position 0 in as large steps as the runner takes; no logits."""
    request = Request("tiny", [*token_ids, 0], GREEDY, seed=0, block_ids=list(block_table))
    for start in range(0, len(token_ids), runner.max_step_tokens):
        count = min(runner.max_step_tokens, len(token_ids) - start)
        runner.step([Chunk(request, start, count)])
