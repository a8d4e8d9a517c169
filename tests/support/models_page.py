"""Writes the table of docs/models.md: what the Macs that people have can hold.

    python3 tests/support/models_page.py

Sizes are those of published config.json files; weights are counted at 4.5 bits, which is a 4-bit
value and its share of a scale and a bias, or of Q4_K_M's mixture.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from marlin.engine import capacity
from marlin.models.registry import config_from_hf, spec_of

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- made by tests/support/models_page.py -->", "<!-- to here -->"
BITS = 4.5
NAMES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"),
)
TIED = {"tie_word_embeddings": True}


def _ministral(original):
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "mscale": 1.0}
    rope |= {"mscale_all_dim": 1.0, "original_max_position_embeddings": original}
    return {"rope_parameters": rope | {"llama_4_scaling_beta": 0.1}, "sliding_window": None}


def _gemma4(shared_layers, row, global_kv_heads):
    """Sizes that its config says beside NAMES: heads of full layers, and rows for each layer."""
    others = {"global_head_dim": 512, "num_kv_shared_layers": shared_layers, **TIED}
    others |= {"num_global_key_value_heads": global_kv_heads, "enable_moe_block": False}
    others |= {"hidden_size_per_layer_input": row, "vocab_size_per_layer_input": 262144}
    return others | {"attention_k_eq_v": global_kv_heads is not None, "sliding_window": 1024}


_DELTA = {
    **{"linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16},
    **{"full_attention_interval": 4, "rope_theta": 1e7},
}
_LATENT = {
    **{"q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64},
    **{"v_head_dim": 256, "n_routed_experts": 64, "num_experts_per_tok": 4, "n_shared_experts": 1},
    **{"moe_intermediate_size": 1536, "first_k_dense_replace": 1, "routed_scaling_factor": 1.8},
    **{"norm_topk_prob": True, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1},
}
# (model, model_type, its NAMES, what else its config.json says).
MODELS = (
    ("SmolLM3 3B", "smollm3", (36, 2048, 11008, 16, 4, 128, 128256, 65536), TIED),
    ("Granite 3.3 8B", "granite", (40, 4096, 12800, 32, 8, 128, 49159, 131072), TIED),
    ("Llama 3.1 8B", "llama", (32, 4096, 14336, 32, 8, 128, 128256, 131072), {}),
    ("Llama 3.3 70B", "llama", (80, 8192, 28672, 64, 8, 128, 128256, 131072), {}),
    ("Mistral Small 3 24B", "mistral", (40, 5120, 32768, 32, 8, 128, 131072, 131072),
     {"sliding_window": None}),
    ("Ministral 3 8B", "ministral3", (34, 4096, 14336, 32, 8, 128, 131072, 262144),
     _ministral(16384)),
    ("Qwen2.5 7B", "qwen2", (28, 3584, 18944, 28, 4, 128, 152064, 32768), {}),
    ("Qwen3 4B", "qwen3", (36, 2560, 9728, 32, 8, 128, 151936, 40960), TIED),
    ("Qwen3 14B", "qwen3", (40, 5120, 17408, 40, 8, 128, 151936, 40960), {}),
    ("Qwen3 32B", "qwen3", (64, 5120, 25600, 64, 8, 128, 151936, 40960), {}),
    ("Gemma 2 9B", "gemma2", (42, 3584, 14336, 16, 8, 256, 256000, 8192), {}),
    ("Gemma 3 4B", "gemma3_text", (34, 2560, 10240, 8, 4, 256, 262208, 131072),
     {"sliding_window": 1024}),
    ("Gemma 3 12B", "gemma3_text", (48, 3840, 15360, 16, 8, 256, 262208, 131072),
     {"sliding_window": 1024}),
    ("Gemma 3 27B", "gemma3_text", (62, 5376, 21504, 32, 16, 128, 262208, 131072),
     {"sliding_window": 1024, "query_pre_attn_scalar": 168}),
    ("Gemma 4 E4B", "gemma4_text", (42, 2560, 10240, 8, 2, 256, 262144, 131072),
     _gemma4(18, 256, None) | {"sliding_window": 512}),
    ("Gemma 4 12B", "gemma4_unified_text", (48, 3840, 15360, 16, 8, 256, 262144, 262144),
     _gemma4(0, 0, 1)),
    ("Gemma 4 31B", "gemma4_text", (60, 5376, 21504, 32, 16, 256, 262144, 262144),
     _gemma4(0, 0, 4)),
    ("OLMo 2 7B", "olmo2", (32, 4096, 11008, 32, 32, 128, 100352, 4096), {}),
    ("Olmo 3 7B", "olmo3", (32, 4096, 11008, 32, 32, 128, 100278, 65536), {}),
    ("Phi-4 14B", "phi3", (40, 5120, 17920, 40, 10, 128, 100352, 16384), {}),
    ("EXAONE 4 32B", "exaone4", (64, 5120, 27392, 40, 8, 128, 102400, 131072), {}),
    ("GLM-4 9B", "glm4", (40, 4096, 13696, 32, 2, 128, 151552, 32768), {}),
    ("Muse Glimmer 30B", "muse_glimmer_text", (52, 6656, 19968, 32, 2, 128, 202048, 131072), {}),
    ("Qwen3.5 4B", "qwen3_5_text", (32, 2560, 9216, 16, 4, 256, 248320, 262144),
     _DELTA | TIED | {"linear_num_value_heads": 32}),
    ("Qwen3.5 27B", "qwen3_5_text", (64, 5120, 17408, 24, 4, 256, 248320, 262144),
     _DELTA | {"linear_num_value_heads": 48}),
    ("Qwen3.5 35B-A3B", "qwen3_5_moe_text", (40, 2048, 512, 16, 2, 256, 248320, 262144),
     _DELTA | {"linear_num_value_heads": 32, "num_experts": 256, "num_experts_per_tok": 8,
               "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}),
    ("LFM2 1.2B", "lfm2", (16, 2048, 12288, 32, 8, 64, 65536, 128000),
     {"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256,
      "conv_L_cache": 3, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "norm_eps": 1e-6, **TIED}),
    ("GLM-4.5-Air", "glm4_moe", (46, 4096, 10944, 96, 8, 128, 151552, 131072),
     {"n_routed_experts": 128, "num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 1,
      "topk_group": 1, "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
      "routed_scaling_factor": 1.0, "attention_bias": True, "use_qk_norm": False,
      "num_nextn_predict_layers": 1}),
    ("Mixtral 8x7B", "mixtral", (32, 4096, 14336, 32, 8, 128, 32000, 32768),
     {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}),
    ("GLM-4.7-Flash", "glm4_moe_lite", (47, 2048, 10240, 20, 20, 64, 154880, 202752), _LATENT),
    ("Qwen3 30B-A3B", "qwen3_moe", (48, 2048, 6144, 32, 4, 128, 151936, 40960),
     {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}),
    ("gpt-oss 20B", "gpt_oss", (24, 2880, 2880, 64, 8, 64, 201088, 131072),
     {"num_local_experts": 32, "num_experts_per_tok": 4}),
    ("gpt-oss 120B", "gpt_oss", (36, 2880, 2880, 64, 8, 64, 201088, 131072),
     {"num_local_experts": 128, "num_experts_per_tok": 4}),
)  # fmt: skip


def _spec(model_type, sizes, others):
    values = {
        "model_type": model_type,
        "rms_norm_eps": 1e-6,
        **dict(zip(NAMES, sizes, strict=True)),
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(values | others))
        return spec_of(config_from_hf(folder))


def _cell(tokens, longest):
    return "-" if not tokens else "all" if tokens == longest else f"{tokens:,}"


def table():
    """The table's text."""
    sizes = capacity.MAC_GIGABYTES
    heads = ["model", "parameters", "at 4.5 bits", "KV cache a token", "context"]
    lines = ["| " + " | ".join([*heads, *(f"{size} GB" for size in sizes)]) + " |"]
    lines.append("|---" * (len(heads) + len(sizes)) + "|")
    for name, model_type, dims, others in MODELS:
        spec = _spec(model_type, dims, others)
        count, longest = capacity.num_parameters(spec), spec.config.max_context_tokens
        weights = int(count * BITS / 8)
        fits = [
            capacity.context_that_fits(spec, weights, capacity.gpu_bytes(size)) for size in sizes
        ]
        cells = [name, f"{count / 1e9:.1f} B", f"{weights / 1e9:.1f} GB"]
        token_bytes, window_bytes = capacity.kv_growth(spec)
        kept = f"{token_bytes / 1024:g} KiB"
        kept += f" + {-(-window_bytes >> 20)} MiB" if window_bytes else ""
        cells += [kept, f"{longest:,}"]
        lines.append("| " + " | ".join([*cells, *(_cell(n, longest) for n in fits)]) + " |")
    return "\n".join(lines)


def page(text):
    """docs/models.md with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
