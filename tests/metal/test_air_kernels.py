"""The runtime is tested by Apple's compiler: kernels of MLX's library, as it left them in the
mlx-metal wheel, run on our threads, simdgroups and matrices and agree with numpy.

The wheel is downloaded into pytest's cache and read, never imported. A process of its own runs
them, one threadgroup at a time: its environment says so before the runtime starts.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from air.metallib import DISASSEMBLER
from msl import build
from test_air_builtins import PACKAGE, WHEEL_FLAGS
from wheels import wheel_of

MISSING = build.unavailable()
if MISSING is None and shutil.which(DISASSEMBLER) is None:
    MISSING = f"no {DISASSEMBLER}: apt-get install llvm-19"
pytestmark = [
    pytest.mark.downloads,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]
FOLDER = Path(__file__).parent


def test_kernels_of_apples_compiler_agree_with_numpy(request, checkout):
    wheel = wheel_of(request.config.cache.mkdir("mlx-metal"), PACKAGE, *WHEEL_FLAGS)
    cache = request.config.cache.mkdir("shaders")
    # Lanes that left a loop meet the others at the lowest line, as AIR has no lines.
    environment = {"MSL_THREADS": "1", "MSL_RELAXED": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(FOLDER / "air" / "cases.py"), str(wheel), str(cache)]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(" right") == 8, done.stdout
