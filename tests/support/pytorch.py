"""PyTorch, the reference of model tests. A file that imports it skips where it is not installed."""

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here; bin/test without --light installs it")
