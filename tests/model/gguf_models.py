"""Writes transformers models as GGUF files with the `gguf` package, as the usual converters do, and
says what weights such a file holds. K blocks, which the package cannot write, are made here.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from reference_models import stores_less_one, tensors_of

# The package's own quantizers know these; `K_KINDS` rows are blocks of 256 weights.
DENSE_KINDS = ("F32", "F16", "BF16")
BLOCK_KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "NVFP4")
K_KINDS = ("Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0")


GGUF_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def encode(kind, values):
    """The rows of a matrix as a GGUF type stores them: uint8 [rows, bytes a row], or floats."""
    if kind in ("Q4_K", "Q5_K"):
        return _encode_k(values, 15 if kind == "Q4_K" else 31)
    if kind == "Q6_K":
        return _encode_q6_k(values)
    if kind == "NVFP4":
        return _encode_nvfp4(values)
    return gguf.quants.quantize(values, Kind[kind])


def decode(kind, values):
    """What is left of a matrix after it was stored; float32, by the package's own decoder."""
    return gguf.quants.dequantize(encode(kind, values), Kind[kind]).astype(np.float32)


def _encode_k(values, top):
    """Eight groups of 32 a block: w = d * scale * code - dmin * minimum; scale, minimum < 64."""
    groups = values.reshape(-1, 8, 32)
    low = np.minimum(groups.min(axis=2), 0)
    ranges = np.stack([(groups.max(axis=2) - low) / top, -low])
    factors = (ranges.max(axis=2) / 63).astype(np.float16)
    d, d_min = factors.astype(np.float32)[:, :, None]
    scales = np.rint(ranges[0] / d).clip(1, 63)
    minima = np.rint(ranges[1] / d_min).clip(0, 63)
    codes = (groups + (d_min * minima)[:, :, None]) / (d * scales)[:, :, None]
    codes = np.rint(codes).clip(0, top).astype(np.uint8)
    runs = codes.reshape(-1, 4, 2, 32)
    nibbles = runs[:, :, 0] & 15 | (runs[:, :, 1] & 15) << 4
    fifth = np.packbits(codes >> 4, axis=1, bitorder="little")[:, 0]
    parts = [_halves(factors), _pack_six_bits(scales, minima)]
    parts += [fifth, nibbles] if top == 31 else [nibbles]
    return _rows(parts, values)


def _pack_six_bits(scales, minima):
    """Eight pairs of six-bit numbers in 12 bytes: four whole each, then the rest cut in two."""
    scales, minima = scales.astype(np.uint8), minima.astype(np.uint8)
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = minima[:, :4] | minima[:, 4:] >> 4 << 6
    third = scales[:, 4:] & 15 | minima[:, 4:] << 4
    return np.concatenate([first, second, third], axis=1)


def _encode_q6_k(values):
    """Sixteen groups of 16 a block: w = d * scale * (code - 32), scale a signed byte."""
    groups = values.reshape(-1, 16, 16)
    largest = np.abs(groups).max(axis=2)
    d = (largest.max(axis=1, keepdims=True) / 32 / 127).astype(np.float16)
    scales = np.rint(largest / 32 / d).clip(1, 127)
    # Every other scale is negative, so that its sign counts.
    scales[:, ::2] *= -1
    codes = np.rint(groups / (d * scales)[:, :, None]).clip(-32, 31) + 32
    quarters = codes.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = np.bitwise_or.reduce(quarters >> 4 << shifts, axis=2)
    return _rows([low, high, scales.astype(np.int8).view(np.uint8), _halves(d.T)], values)


def _encode_nvfp4(values):
    """Four groups of 16 a block: w = scale * E2M1, scale an E4M3 byte."""
    groups = values.reshape(-1, 4, 16)
    bits = gguf.quants.NVFP4.fp32_to_ue4m3(np.abs(groups).max(axis=2) / 6)
    scales = 2 * gguf.quants.NVFP4.ue4m3_to_fp32(bits)[:, :, None]
    ratios = np.divide(np.abs(groups), scales, out=np.zeros_like(groups), where=scales > 0)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = np.abs(ratios[..., None] - grid).argmin(axis=3).astype(np.uint8)
    codes |= np.signbit(groups).astype(np.uint8) << 3
    return _rows([bits, codes[:, :, :8] | codes[:, :, 8:] << 4], values)


def _halves(factors):
    """float16 [n, num_blocks] as bytes [num_blocks, 2n]."""
    return np.ascontiguousarray(factors.T).view(np.uint8)


def _rows(parts, values):
    blocks = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    return np.ascontiguousarray(blocks).reshape(len(values), -1)


def interleave_rows(values, num_heads):
    """Hugging Face's rows (half 0 and half 1 of a head) in the order of GGUF's llama files, where a
    pair that RoPE rotates is two adjacent rows."""
    head_dim = len(values) // num_heads
    order = np.arange(head_dim).reshape(2, -1).T.ravel()
    heads = values.reshape(num_heads, head_dim, *values.shape[1:])
    return heads[:, order].reshape(values.shape)


def write_gguf(
    path,
    model,
    kind_of,
    metadata=None,
    rope_factors=None,
    has_tokenizer=False,
    factors=None,
    **split,
):
    """Write a transformers model.

    Args:
        kind_of: callable(Hugging Face name) -> GGUF type name, for matrices.
        metadata: {key without the architecture: number, string or list}, besides the usual.
        rope_factors: float32 [head_dim / 2] for rope_freqs.weight, or None.
        has_tokenizer: add a vocabulary of characters, which `quantize` wants.
        factors: {GGUF name without its suffix: number} of NVFP4 matrices, for `NAME.scale`.
        split: how GGUFWriter cuts the model into files; their names are made of path's.

    Returns:
        {Hugging Face name: float32 array}, the weights that the file stands for.
    """
    config = model.config
    architecture = GGUF_ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(str(path), architecture, **split)
    _add_metadata(writer, config, metadata or {})
    if has_tokenizer:
        _add_tokenizer(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_hidden_layers
    )
    stored = {}
    for name, values in tensors_of(model).items():
        kind = kind_of(name) if values.ndim == 2 else "F32"
        if stores_less_one(model, name):
            values = values + np.float32(1)
        stored[name] = decode(kind, values) - np.float32(stores_less_one(model, name))
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            is_query = ".q_proj." in name
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            values = interleave_rows(values, heads)
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(gguf_name, encode(kind, values), raw_dtype=Kind[kind])
        stored[name] = stored[name] * _add_factor(writer, gguf_name, factors or {})
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _add_factor(writer, name, factors):
    """The number that a matrix is multiplied by, which `.scale` beside it says; `.input_scale` is
    for programs that round activations."""
    stem = name.removesuffix(".weight")
    factor = np.array([factors.get(stem, 1)], np.float32)
    if stem in factors:
        writer.add_tensor(f"{stem}.scale", factor)
        writer.add_tensor(f"{stem}.input_scale", factor)
    return factor


def _add_metadata(writer, config, metadata):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    # transformers 5 says rope_parameters, 4 says rope_theta.
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    if config.model_type == "gemma3_text":
        metadata = _gemma3_metadata(config) | metadata
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    head_dim = getattr(config, "head_dim", None)
    if head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    adders = {
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        adders[type(value)](f"{writer.arch}.{key}", value)


def _add_tokenizer(writer, vocab_size):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*(chr(33 + i) for i in range(vocab_size - 1)), "ab"])
    writer.add_token_types([1] * vocab_size)
    writer.add_token_merges(["a b"])


def _gemma3_metadata(config):
    """What the file must say of windows, scale and RoPE; converters leave out what is usual."""
    full, local = (config.rope_parameters[f"{kind}_attention"] for kind in ("full", "sliding"))
    metadata = {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config.layer_types
        ],
        "attention.scale": config.query_pre_attn_scalar**-0.5,
        "rope.freq_base_swa": local["rope_theta"],
    }
    if full["rope_type"] == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
    return metadata
