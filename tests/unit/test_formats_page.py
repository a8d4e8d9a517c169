"""docs/formats.md beside the readers: a key that one of them knows stands in the page's tables."""

import re

import pytest

from marlin.models.config import GGUF, HF, SIZES
from marlin.text.folder_tokenizer import _NEUTRAL
from marlin.text.special_tokens import NAMES

PAGE = "docs/formats.md"


@pytest.fixture(scope="module")
def keys(request):
    """Every name in backquotes, a prefix of the architecture or the vocabulary taken away."""
    text = (request.config.rootpath / PAGE).read_text()
    names = re.findall(r"`([A-Za-z_.]+)`", text)
    return {name.removeprefix("A.") for name in names}


@pytest.mark.parametrize("name", sorted(_NEUTRAL))
def test_what_is_refused_of_generation_config_is_in_the_table(keys, name):
    assert name in keys


@pytest.mark.parametrize("row", SIZES.values(), ids=SIZES)
def test_sizes_are_in_both_tables(keys, row):
    assert row[HF] in keys
    assert row[GGUF] in keys


@pytest.mark.parametrize("name", NAMES)
def test_named_tokens_are_in_the_table(keys, name):
    assert name in keys
