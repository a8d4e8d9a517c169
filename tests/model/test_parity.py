"""Whole models against transformers, from the files that transformers writes."""

import numpy as np
import pytest
import torch
from reference_models import build, logits_of
from tiny_models import logits_by_chunks, logits_of_positions, random_tokens, running

# Logits are near 1. What differs from the reference is the order of float32 sums and the float16
# KV cache: 2^-11 of a key or value, which averages out to some 1e-4 of a logit.
TOLERANCE = 1e-3
# A part that is left out or misplaced changes logits by far more than the tolerance; each model
# is checked to be such.
SENSITIVITY = 0.05

CASES = {
    "llama": ("llama", {}),
    "llama, linear rope": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.5}, "rope_theta": 500.0},
    ),
    "llama, llama3 rope": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}
