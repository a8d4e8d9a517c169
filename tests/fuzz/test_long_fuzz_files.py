"""A minute of each fuzzer of the files that come as such (test_fuzz.py)."""

import pytest
from test_fuzz import FILES, LONG_S, fuzz


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_a_minute_of_changed_input_is_answered_or_refused(name, tmp_path):
    fuzz(name, LONG_S, tmp_path)
