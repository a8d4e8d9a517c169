"""A minute of each fuzzer of what is text: settings, templates, HTTP and bodies (test_fuzz.py)."""

import pytest
from test_fuzz import LONG_S, TEXTS, fuzz


@pytest.mark.long
@pytest.mark.parametrize("name", TEXTS)
def test_a_minute_of_changed_input_is_answered_or_refused(name, tmp_path):
    fuzz(name, LONG_S, tmp_path)
