"""A tiny random Llama in each form a checkpoint comes in, and readers of what it became."""

import gguf
import numpy as np
from gguf_builder import build, f32
from pytorch import torch
from transformers import LlamaConfig, LlamaForCausalLM

from marlin.weights import ggml_types
from marlin.weights.formats import PackedWeight
from marlin.weights.kinds import KINDS, STEP_GROUPS
from marlin.weights.safetensors_file import SafetensorsFolder
from marlin.weights.tensor_file import read_bytes

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


def tiny_config(**changes):
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": 75,
        "max_position_embeddings": 128,
        "initializer_range": 0.05,
        "eos_token_id": 3,
        "bos_token_id": None,
    }
    return LlamaConfig(**(sizes | changes))


def save_model(folder, dtype=torch.float32, **changes):
    """Write a Hugging Face folder; returns {name: float32 array}."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(**changes)).to(dtype)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return {name: value.float().numpy() for name, value in model.state_dict().items()}


def load_packed(folder, name, num_rows, format=None):
    """The PackedWeight that a native folder holds under a name without `.weight`; format: what
    4 bits without a bias are, if not fp4, or the format of 5 or 6 bits."""
    tensors = SafetensorsFolder(folder).tensors

    def array(part, dtype):
        info = tensors.get(f"{name}.{part}")
        dtype = np.int8 if info and info.dtype == "I8" else dtype
        return info and read_bytes(info).view(dtype).reshape(info.shape)

    codes = array("codes", np.uint8 if tensors[f"{name}.codes"].dtype == "U8" else np.uint32)
    scales, biases = array("scales", np.float16), array("biases", np.float16)
    if codes.ndim == 4:
        format = "int8"
    format = format or ("int4" if biases is not None else "fp4")
    num_columns = codes.shape[1] * 32 // KINDS[format].bits
    steps = STEP_GROUPS if scales.dtype == np.int8 else 0
    group_size = num_columns // (scales.shape[1] - steps)
    return PackedWeight(format, (num_rows, num_columns), group_size, codes, scales, biases)


def load_dense(folder, name):
    """A tensor of a folder that is stored as it is, as float32."""
    info = SafetensorsFolder(folder).tensors[name]
    return ggml_types.dequantize(info.dtype, read_bytes(info), info.shape)


def interleave(array, num_heads):
    halves = array.reshape(num_heads, 2, HEAD_DIM // 2, -1)
    return halves.swapaxes(1, 2).reshape(array.shape)


def write_gguf(path, weights, extra=()):
    """The tiny Llama as a GGUF file: GGUF names, q and k rows permuted as its converter does."""
    metadata = [
        ("general.architecture", "str", "llama"),
        ("llama.block_count", "u32", 2),
        ("llama.context_length", "u32", 128),
        ("llama.embedding_length", "u32", 64),
        ("llama.feed_forward_length", "u32", 192),
        ("llama.attention.head_count", "u32", HEADS),
        ("llama.attention.head_count_kv", "u32", KV_HEADS),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-6),
        ("tokenizer.ggml.model", "str", "gpt2"),
        ("tokenizer.ggml.pre", "str", "smollm"),
        ("tokenizer.ggml.tokens", "arr:str", [chr(48 + i) for i in range(74)] + ["<|im_end|>"]),
        ("tokenizer.ggml.token_type", "arr:i32", [1] * 74 + [3]),
        ("tokenizer.ggml.merges", "arr:str", []),
        ("tokenizer.ggml.eos_token_id", "u32", 74),
        ("tokenizer.chat_template", "str", "{{ messages }}"),
    ]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    tensors = []
    for name, array in weights.items():
        if ".q_proj." in name or ".k_proj." in name:
            array = interleave(array, HEADS if ".q_proj." in name else KV_HEADS)
        name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        tensors.append((name, "F32", array.shape, f32(array)))
    path.write_bytes(build(metadata, [*tensors, *extra]))
