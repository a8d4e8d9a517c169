#!/usr/bin/env python3
"""Writes a GGUF file of random weights in a published model's shape, to time what none can fetch.

    .venv/bin/python bench/make_model.py qwen3-30b-a3b OUT.gguf --layers 4 --type Q4_K
    .venv/bin/python bench/make_model.py gpt-oss-20b OUT.gguf --layers 3 --type MXFP4 --edge Q8_0
    .venv/bin/python bench/make_model.py gemma-3-4b OUT.gguf --layers 6 --type Q4_0
    .venv/bin/python bench/make_model.py qwen3.5-4b OUT.gguf --layers 8 --type Q4_K
    .venv/bin/python bench/make_model.py qwen3.5-4b OUT.gguf --layers 4 --width 256 --type Q8_0

Names and shapes are the family's own (marlin/models), so that llama.cpp reads the file, too; values
are random bits under scales that keep activations near 1. The vocabulary is learnt from this
checkout's own text, and filled up with tokens that no text has and that are text when they are
generated, so that each token of a stream is seen. `metal-marlin quantize OUT.gguf FOLDER` makes a
native folder of it. `--width` makes a narrow one, to count with and not to time.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import gguf_builder

from marlin.models.config import GGUF, SIZES
from marlin.models.config_delta import DeltaConfig
from marlin.models.config_experts import MixtureConfig
from marlin.models.registry import config_from_hf, family_of, spec_of
from marlin.weights import ggml_types
from marlin.weights.block_types import BLOCK_TYPES
from marlin.weights.tensor_file import num_tensor_bytes

ALIGNMENT = 32
CHUNK_BYTES = 32 << 20
# Merges to learn: more would be longer than this checkout's text.
NUM_MERGES = 6000
NARROW_VOCABULARY = 8192
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n"
    'Call: <tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>"
    "{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_NAMES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"),
)
# {model: (how its vocabulary is cut, _NAMES and what else its config.json says)}.
MODELS = {
    "qwen3-30b-a3b": (
        "qwen2",
        (48, 2048, 6144, 32, 4, 128, 151936, 40960),
        {"model_type": "qwen3_moe", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "num_experts": 128,
         "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
    ),
    "gpt-oss-20b": (
        "gpt-4o",
        (24, 2880, 2880, 64, 8, 64, 201088, 131072),
        {"model_type": "gpt_oss", "rms_norm_eps": 1e-5, "num_local_experts": 32,
         "num_experts_per_tok": 4},
    ),
    "qwen3.5-4b": (
        "qwen35",
        (32, 2560, 9216, 16, 4, 256, 248320, 262144),
        {"model_type": "qwen3_5_text", "rms_norm_eps": 1e-6, "rope_theta": 1e7,
         "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
         "linear_value_head_dim": 128, "full_attention_interval": 4, "tie_word_embeddings": True},
    ),
    "qwen2.5-3b": (
        "qwen2",
        (36, 2048, 11008, 16, 2, 128, 151936, 32768),
        {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
         "tie_word_embeddings": True},
    ),
    "gemma-3-4b": (
        "qwen2",
        (34, 2560, 10240, 8, 4, 256, 262208, 131072),
        {"model_type": "gemma3_text", "rms_norm_eps": 1e-6, "sliding_window": 1024,
         "tie_word_embeddings": True},
    ),
}  # fmt: skip


def config_of(model, **changes):
    """ModelConfig of a row of MODELS; changes are fields of config.json."""
    _, sizes, others = MODELS[model]
    values = dict(zip(_NAMES, sizes, strict=True)) | others | changes
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(values))
        return config_from_hf(folder)


def metadata_of(config, name, pre):
    """[(key, kind, value)] of the header."""
    family = family_of(config)
    shape = {row[GGUF]: ("u32", getattr(config, field)) for field, row in SIZES.items()}
    shape["attention.value_length"] = "u32", config.head_dim
    shape["attention.layer_norm_rms_epsilon"] = "f32", config.rms_norm_eps
    shape["rope.freq_base"] = "f32", config.rope_theta
    if any(config.windows):
        shape["attention.sliding_window"] = "u32", next(filter(None, config.windows))
    if config.rope_scaling.type == "yarn":
        scaling = config.rope_scaling
        shape["rope.scaling.type"] = "str", "yarn"
        shape["rope.scaling.factor"] = "f32", scaling.factor
        shape["rope.scaling.original_context_length"] = "u32", scaling.original_max_tokens
    if isinstance(config, DeltaConfig):
        shape |= _delta_metadata(config)
    if isinstance(config, MixtureConfig) and config.num_experts:
        shape["expert_count"] = "u32", config.num_experts
        shape["expert_used_count"] = "u32", config.num_slots
        shape["expert_feed_forward_length"] = "u32", config.expert_dim
    general = [
        ("general.architecture", "str", family.gguf_architecture),
        ("general.name", "str", f"{name}, random, {config.num_layers} layers"),
        ("general.alignment", "u32", ALIGNMENT),
    ]
    own = [(f"{family.gguf_architecture}.{key}", *value) for key, value in shape.items()]
    return general + own + tokenizer_of(config.vocab_size, pre)


def _delta_metadata(config):
    delta, turns = config.delta, config.rotary_dim // 2
    # Of text alone any sections turn alike: those of published files, for others as near.
    sections = [turns - 2 * (turns // 3), turns // 3, turns // 3, 0]
    return {
        "ssm.conv_kernel": ("u32", config.taps),
        "ssm.state_size": ("u32", delta.key_dim),
        "ssm.group_count": ("u32", delta.key_heads),
        "ssm.time_step_rank": ("u32", delta.value_heads),
        "ssm.inner_size": ("u32", delta.value_floats),
        "attention.recurrent_layers": ("arr:bool", list(config.linear_layers)),
        "rope.dimension_count": ("u32", config.rotary_dim),
        "rope.dimension_sections": ("arr:i32", sections),
    }


def tokenizer_of(vocab_size, pre, num_merges=NUM_MERGES):
    """[(key, kind, value)] of a byte-level vocabulary of so many tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(256 + num_merges, vocab_size - len(CONTROL)),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = (path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    trained.train_from_iterator(text, trainer)
    learnt = json.loads(trained.to_str())["model"]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].get)
    merges = [" ".join(pair) for pair in learnt["merges"]]
    types = [NORMAL_TOKEN] * len(tokens) + [CONTROL_TOKEN] * len(CONTROL)
    end = len(tokens) + CONTROL.index("<|im_end|>")
    tokens += CONTROL
    unused = [f"<|unused_{number}|>" for number in range(len(tokens), vocab_size)]
    return [
        ("tokenizer.ggml.model", "str", "gpt2"),
        ("tokenizer.ggml.pre", "str", pre),
        ("tokenizer.ggml.tokens", "arr:str", tokens + unused),
        ("tokenizer.ggml.token_type", "arr:i32", types + [NORMAL_TOKEN] * len(unused)),
        ("tokenizer.ggml.merges", "arr:str", merges),
        ("tokenizer.ggml.eos_token_id", "u32", end),
        ("tokenizer.ggml.padding_token_id", "u32", end),
        ("tokenizer.ggml.add_bos_token", "bool", False),
        ("tokenizer.chat_template", "str", TEMPLATE),
    ]


class Values:
    """Random values of one kind.

    Args:
        dtype: a key of ggml_types.DECODERS, of blocks with a scale each.
        deviation: of the values, about 0.
    """

    def __init__(self, dtype, deviation):
        self._layout, decode = ggml_types.DECODERS[dtype]
        self._scales = {}
        if "e" in (self._layout.names or ()):
            sample = self._blocks(1 << 10, {"e": 127})
            exponent = 127 + round(float(np.log2(deviation / decode(sample).std())))
            self._scales = {"e": exponent}
            return
        names = [name for name in ("d", "dmin", "m") if name in (self._layout.names or ())]
        self._scales = dict.fromkeys(names, 0.0) | {"d": 1.0}
        if len(names) == 2:
            # The mean that codes have under a scale is taken away by the other factor.
            mean = float(decode(self._blocks(1 << 10, self._scales)).mean())
            other = self._scales | {"d": 0.0, names[1]: 1.0}
            step = float(decode(self._blocks(1 << 10, other)).mean())
            self._scales[names[1]] = -mean / step
        size = float(decode(self._blocks(1 << 10, self._scales)).std())
        self._scales = {name: value * deviation / size for name, value in self._scales.items()}

    def _blocks(self, count, scales, rng=None):
        rng = rng or np.random.default_rng(0)
        raw = np.frombuffer(rng.bytes(count * self._layout.itemsize), np.uint8).copy()
        blocks = raw.view(self._layout)
        for name, value in scales.items():
            blocks[name] = value
        return blocks

    def write(self, file, num_bytes, rng):
        """So many bytes of them."""
        size = self._layout.itemsize
        for start in range(0, num_bytes, CHUNK_BYTES // size * size):
            part = min(CHUNK_BYTES // size * size, num_bytes - start)
            file.write(self._blocks(part // size, self._scales, rng).tobytes())


def dtype_of(tensor, type, edge):
    """What a tensor is stored as; a matrix whose rows a type's blocks do not fill is Q8_0."""
    if not tensor.is_matrix or tensor.role == "router":
        return "F32"
    wanted = type if tensor.role == "mlp" else edge
    return wanted if tensor.shape[-1] % BLOCK_TYPES[wanted].values == 0 else "Q8_0"


def _write_tensor(file, tensor, dtype, rng):
    if dtype != "F32":
        num_bytes = num_tensor_bytes(dtype, tensor.shape)
        Values(dtype, tensor.shape[-1] ** -0.5).write(file, num_bytes, rng)
        return
    values = rng.standard_normal(tensor.shape, np.float32)
    if tensor.is_matrix:
        values *= tensor.shape[-1] ** -0.5
    elif tensor.gguf.endswith("norm.weight"):
        values = 1 + 0.1 * values
    elif tensor.gguf.endswith("ssm_a"):  # a decay: states must not grow
        values = -np.exp(values)
    else:
        values *= 0.1
    file.write(values.astype("<f4").tobytes())


def write(path, config, name, pre, type, edge, seed=0):
    """Write the file; returns its bytes."""
    tensors = [(tensor, dtype_of(tensor, type, edge)) for tensor in spec_of(config).tensors]
    tensors = [(tensor, dtype) for tensor, dtype in tensors if not tensor.optional]
    metadata, entries, offset = metadata_of(config, name, pre), b"", 0
    for tensor, dtype in tensors:
        number = BLOCK_TYPES[dtype].number
        entries += gguf_builder.tensor_entry(tensor.gguf, tensor.shape, number, offset)
        offset += -(-num_tensor_bytes(dtype, tensor.shape) // ALIGNMENT) * ALIGNMENT
    head = gguf_builder.head(len(tensors), metadata) + entries
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGNMENT))
        for tensor, dtype in tensors:
            _write_tensor(file, tensor, dtype, rng)
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
        return file.tell()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("path")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--width", type=int, help="of hidden states, instead of the model's")
    parser.add_argument("--type", default="Q4_K", help="of feed-forwards and experts")
    parser.add_argument("--edge", help="of all other matrices; the same as --type")
    arguments = parser.parse_args()
    changes = {"num_hidden_layers": arguments.layers} if arguments.layers else {}
    if arguments.width:
        changes |= dict.fromkeys(("hidden_size", "intermediate_size"), arguments.width)
        changes |= {"vocab_size": NARROW_VOCABULARY}
    config = config_of(arguments.model, **changes)
    kinds = arguments.type, arguments.edge or arguments.type
    known = [
        name
        for name, (layout, _) in ggml_types.DECODERS.items()
        if BLOCK_TYPES[name].number is not None and {"d", "e"} & {*(layout.names or ())}
    ]
    for kind in kinds:
        if kind not in known:
            parser.error(f"{kind} is none of {', '.join(known)}")
    size = write(arguments.path, config, arguments.model, MODELS[arguments.model][0], *kinds)
    print(f"{arguments.path}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
