"""Where the built native libraries lie. Loads nothing, so that anyone may ask."""

import sys
from pathlib import Path


def library_path(kind: str = "cpu") -> Path:
    """Path of the native library of a device kind, whether or not it exists."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    return Path(__file__).with_name(f"libmarlin_{kind}.{suffix}")
