"""docs/models.md: its table is what the sizes come to, and every family is in it."""

import re

import models_page
import pytest
from model.tiny_models import tiny_config

from marlin.engine import capacity
from marlin.engine.kv_cache import kv_token_bytes
from marlin.models.registry import FAMILIES, spec_of


def test_the_table_is_what_the_sizes_come_to():
    text = models_page.PAGE.read_text()
    assert models_page.page(text) == text, "run tests/support/models_page.py"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_family_has_a_row(family):
    rows = re.findall(r"^\| .* \|$", models_page.PAGE.read_text(), re.MULTILINE)
    words = {family.model_type.removesuffix("_text"), family.model_type}
    assert any(f"`{word}`" in row for row in rows for word in words)


def test_a_gpu_may_use_a_larger_share_of_a_larger_machine():
    assert capacity.gpu_bytes(36) == 24 << 30
    assert capacity.gpu_bytes(64) == 48 << 30


def test_a_context_fills_what_weights_and_activations_leave():
    spec = spec_of(tiny_config())
    longest, token = spec.config.max_context_tokens, kv_token_bytes(spec)
    assert capacity.context_that_fits(spec, 0, 1 << 30) == longest
    least = next(n for n in range(0, 1 << 24, 64) if capacity.context_that_fits(spec, 0, n))
    assert capacity.context_that_fits(spec, 0, least) == 16
    assert capacity.context_that_fits(spec, 1000 * token, least + 1032 * token) == 48
    assert capacity.context_that_fits(spec, 1 << 30, 1 << 30) == 0


def test_parameters_are_counted_once_where_they_are_tied():
    tied, untied = (spec_of(tiny_config(tie_embeddings=tie)) for tie in (True, False))
    # Two layers of q and o 64 x 64, k and v 32 x 64, three of 96 x 64 and two norms; the last norm.
    assert capacity.num_parameters(tied) == 97 * 64 + 2 * (64 * 192 + 3 * 96 * 64 + 128) + 64
    assert capacity.num_parameters(untied) - capacity.num_parameters(tied) == 97 * 64
