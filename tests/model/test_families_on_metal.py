"""A prompt of each family of kernels on the simulated Metal, from a file to logits: mixtures of
each way to choose experts, sinks, windows, and states of convolutions and delta rules. A GPU's
activations are float32, so that its logits are those of transformers up to the cache's float16."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import logits_by_chunks, logits_of_positions, running

DATA = Path(__file__).parents[1] / "data"
# {folder or file: of the logits' deviation, what rounding keys and values may change}.
MODELS = {
    "families/qwen3_moe.gguf": 2.5e-3,
    "families/qwen2_moe.gguf": 2.5e-3,
    "families/glm4_moe.gguf": 2.5e-3,
    "families/glm4_moe_lite.gguf": 2.5e-3,
    "families/deepseek_v3.gguf": 2.5e-3,
    "families/gpt_oss_mxfp4.gguf": 2.5e-3,
    "families/lfm2.gguf": 2.5e-3,
    "families/lfm2_moe.gguf": 2.5e-3,
    "families/gemma4_text.gguf": 2.5e-3,
    "families/gemma4_text_moe.gguf": 2.5e-3,
    "families/qwen3_next.gguf": 2.5e-3,
    "families/qwen3_5_moe_wrapped.gguf": 2.5e-3,
    "mlx_hybrid/lfm2_moe": 2.5e-3,
    "mlx_hybrid/glm4_moe_lite": 2.5e-3,
    "mlx_hybrid/gemma4_text": 2.5e-3,
    "mlx_hybrid/gemma4_text_moe": 2.5e-3,
    "mlx_hybrid/qwen3_next": 2.5e-3,
    "mlx_hybrid/qwen3_5_moe_wrapped": 2.5e-3,
    "mlx/gemma3_text": 2.5e-3,
    "mlx_experts/qwen3_moe": 2.5e-3,
}
# Prefill, in a step that a window ends within, and the rest token by token.
CHUNKS = [11, 1]


def reference(path):
    """(token ids, logits): of transformers, or of mlx-lm for a folder of its."""
    names = [path / f"{part}.npy" if path.is_dir() else path.with_suffix(f".{part}.npy")
             for part in ("ids", "logits")]  # fmt: skip
    token_ids, logits = (np.load(name) for name in names)
    token_ids = token_ids.reshape(-1)
    return token_ids.tolist(), logits.reshape(len(token_ids), -1)


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_gives_the_logits_of_the_program_that_runs_them_elsewhere(simulated_metal, name):
    token_ids, expected = reference(DATA / name)
    with running(DATA / name, sequences=4, device=simulated_metal.open()) as runner:
        found = logits_by_chunks(runner, token_ids, CHUNKS)
    assert sorted(found) == list(range(10, len(token_ids)))
    worst = max(np.abs(found[at] - expected[at]).max() for at in found)
    assert worst < MODELS[name] * expected.std()


@pytest.mark.parametrize("name", ["families/qwen2_moe.gguf", "families/gpt_oss_mxfp4.gguf"])
def test_tokens_side_by_side_give_the_bits_of_each_alone(simulated_metal, name):
    token_ids, _ = reference(DATA / name)
    token_ids = token_ids[:8]
    with running(DATA / name, sequences=4, device=simulated_metal.open()) as runner:
        together = logits_of_positions(runner, token_ids)
        alone = logits_by_chunks(runner, token_ids, [1])
    np.testing.assert_array_equal(together, np.stack([alone[at] for at in range(8)]))
