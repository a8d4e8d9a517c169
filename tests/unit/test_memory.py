"""Whether a model fits its device: what is counted, what is refused, and in which words."""

import pytest
from model.tiny_models import tiny_config

from marlin.engine.kv_cache import Paging, kv_token_bytes
from marlin.engine.memory import MemoryBudget, activation_bytes, check_memory
from marlin.errors import ConfigError
from marlin.models.layers import StepSizes
from marlin.models.registry import spec_of

MIB = 1 << 20
# 2 layers, 2 KV heads of 16: a token's keys and values are 2 * 2 * 2 * 16 float16.
SPEC = spec_of(tiny_config(max_context_tokens=1 << 20))
TOKEN_BYTES = 256


def test_a_token_takes_a_key_and_a_value_in_every_layer():
    assert kv_token_bytes(SPEC) == TOKEN_BYTES


def test_activations_grow_with_tokens_logits_and_splits():
    one = activation_bytes(SPEC, StepSizes(1, 1, max_splits=1))
    # hidden, normed, delta, q, attended: 64 each; k, v: 32; gate, up: 96; rope: 16; a partial of 18
    # for each of 4 heads; sums of squares of 4 tiles; last: 64; logits: 97, and both for 16 rows of
    # scores.
    assert one == 4 * (5 * 64 + 2 * 32 + 2 * 96 + 16 + 4 * 18 + 4 + (1 + 16) * (64 + 97))
    assert activation_bytes(SPEC, StepSizes(1, 1, max_splits=2)) == one + 4 * 4 * 18
    assert activation_bytes(SPEC, StepSizes(2, 1, max_splits=1)) > one


def test_a_context_may_take_a_quarter_of_the_memory():
    budget = MemoryBudget(64 * MIB, weight_bytes=16 * MIB)
    assert budget.context_that_fits(SPEC, 1 * MIB) == 16 * MIB // TOKEN_BYTES


def test_a_context_may_take_no_more_than_weights_and_activations_leave():
    budget = MemoryBudget(64 * MIB, weight_bytes=56 * MIB)
    assert budget.context_that_fits(SPEC, 4 * MIB) == 4 * MIB // TOKEN_BYTES
    assert budget.context_that_fits(SPEC, 9 * MIB) == 0


def test_processes_share_weights_and_nothing_else():
    budget = MemoryBudget(64 * MIB, weight_bytes=32 * MIB, num_processes=4)
    assert budget.context_that_fits(SPEC, 6 * MIB) == 2 * MIB // TOKEN_BYTES
    budget.check("of 16 tokens", 2 * MIB, 6 * MIB)
    with pytest.raises(ConfigError, match="for each of 4 processes, 68 MiB in all"):
        budget.check("of 16 tokens", 3 * MIB, 6 * MIB)


def test_what_just_fits_is_taken_and_a_byte_more_is_refused():
    MemoryBudget(10 * MIB, 4 * MIB).check("of 16 tokens", 5 * MIB, MIB)
    with pytest.raises(ConfigError):
        MemoryBudget(10 * MIB - 1, 4 * MIB).check("of 16 tokens", 5 * MIB, MIB)


def test_a_refusal_names_what_everything_takes_and_what_there_is():
    paging = Paging(4096, 16, 32)
    with pytest.raises(ConfigError) as caught:
        check_memory(MemoryBudget(12 * MIB, 5 * MIB), SPEC, paging, 256, 8)
    assert caught.value.message == (
        "the model does not fit: its weights take 5 MiB, a KV cache of 4096 blocks of 16 tokens "
        "16 MiB and a step's activations 1 MiB, 22 MiB in all; the device has 12 MiB"
    )
