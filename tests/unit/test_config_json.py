"""What a converted model's config.json says of RoPE, and which layers of SmolLM3 turn."""

import pytest

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.models.config_json import _rope_scaling_values
from marlin.models.rope import RopeScaling
from marlin.models.smollm3 import _turns

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
YARN["attention_factor"] = 1.25


@pytest.mark.parametrize(
    ("scaling", "values"),
    [
        (RopeScaling(), None),
        (RopeScaling("linear", 2.0), {"rope_type": "linear", "factor": 2.0}),
        (
            RopeScaling("llama3", original_max_tokens=8192, **LLAMA3),
            {"rope_type": "llama3", "original_max_position_embeddings": 8192, **LLAMA3},
        ),
        (
            RopeScaling("yarn", original_max_tokens=4096, **YARN),
            {"rope_type": "yarn", "original_max_position_embeddings": 4096, **YARN},
        ),
    ],
)
def test_a_scaling_is_written_with_what_its_type_has(scaling, values):
    assert _rope_scaling_values(scaling) == values


@pytest.mark.parametrize(
    ("values", "turns"),
    [
        ({}, "1110"),
        ({"no_rope_layer_interval": 2}, "1010"),
        ({"no_rope_layer_interval": 1}, "0000"),
        ({"no_rope_layer_interval": 9}, "1111"),
        ({"no_rope_layers": [0, 1, 0, 1], "no_rope_layer_interval": 9}, "0101"),
    ],
)
def test_layers_turn_but_for_each_fourth_or_as_is_said(values, turns):
    found = _turns(file_fields("config.json", values), 4)
    assert found == tuple(turn == "1" for turn in turns)


@pytest.mark.parametrize(
    "stated", [[1, 1, 1], [1] * 5, [1, 1, 1, 2], [1, 1, 1, True], [1, 1, 1, -1], [], 5, "1111"]
)
def test_layers_that_no_list_of_ones_and_zeros_names_are_refused(stated):
    with pytest.raises(ModelFileError, match="no_rope_layers is .*; expected 4 of 1 .RoPE. and 0"):
        _turns(file_fields("config.json", {"no_rope_layers": stated}), 4)
