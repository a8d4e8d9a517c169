"""Published wheels that a test reads: downloaded once, into pytest's cache, and never imported.

Owns what happens where there is no way to get one: the test is skipped with the reason.
"""

import subprocess
import sys
from pathlib import Path

import pytest

DOWNLOAD_S = 600


def run_pip(package: str, *arguments: str, timeout_s: int = DOWNLOAD_S) -> None:
    """Run pip with these arguments and `package`; skips the test where that fails."""
    command = [sys.executable, "-m", "pip", *arguments, package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{package} was not downloaded within {timeout_s} s")
    if done.returncode != 0:
        pytest.skip(f"{package} cannot be downloaded: {done.stderr.strip()[-300:]}")


def wheel_of(folder: Path, package: str, *flags: str, timeout_s: int = DOWNLOAD_S) -> Path:
    """The wheel of a package in a folder of the cache, downloaded if it is not there."""
    if not list(folder.glob("*.whl")):
        download = "download", "--quiet", "--dest", str(folder)
        run_pip(package, *download, *flags, timeout_s=timeout_s)
    return sorted(folder.glob("*.whl"))[-1]
