#!/usr/bin/env python3
"""The shaders on an NVIDIA GPU, from their unmodified source: right or wrong, and how fast.

    gpu_shaders.py prepare   anywhere with clang-19: CUDA C++ of every kernel into build/gpu
    gpu_shaders.py run       with an NVIDIA GPU: the device tests, then the tables of gpu_times.py
    gpu_shaders.py check | time    one half of run

`run` needs an NVIDIA driver, NVRTC (of CUDA, PyTorch or the nvidia-cuda-nvrtc wheel), numpy and
pytest; where clang-19 is missing, build/gpu must have been carried along. CUDA stands in for Metal:
that the results are right says much about the shaders, the times say little about Apple's GPUs.
"""

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT), str(ROOT / "tests" / "metal")]

import gpu_device
import gpu_times
import pytest
from cuda_driver import Gpu
from msl.build import CLANG

FOLDER = ROOT / "build" / "gpu"
TESTS = (
    "attention",
    "dense",
    "indices",
    "linear",
    "repack",
    "rows",
    "sample",
    "experts",
    "fused",
    "state",
    "delta",
    "kv_write",
    "latent",
)


class GpuTests:
    """Pytest plugin: tests that ask for the simulated Metal device get the GPU's."""

    def __init__(self, kernels):
        self._kernels = kernels

    def open(self):
        return gpu_device.GpuDevice(self._kernels)

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.argname != "simulated_metal":
            return None
        fixturedef.cached_result = self, fixturedef.cache_key(request), None
        return self


def check(kernels):
    """Run the device tests of every kernel; whether all passed."""
    files = [str(ROOT / "tests" / "device" / f"test_{name}.py") for name in TESTS]
    options = ["-q", "-k", "metal", "--tb=short", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    return pytest.main([*files, *options], plugins=[GpuTests(kernels)]) == 0


def time(kernels):
    """Print the tables."""
    gpu = kernels.gpu
    timer = gpu_times.Timer(gpu, kernels)
    bandwidth = timer.bandwidth()
    print(f"\n{gpu.name}: a float sum over 4 GiB reads {bandwidth / 1e12:.2f} TB/s")
    tables = gpu_times.matvec_table, gpu_times.pairs_table, gpu_times.rows_table
    tables += (gpu_times.experts_table,)
    for table in (*tables, gpu_times.attention_table):
        print()
        for line in table(timer, bandwidth):
            print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["prepare", "run", "check", "time"])
    what = parser.parse_args().what
    if what == "prepare" or shutil.which(CLANG):
        gpu_device.translate_all(FOLDER)
    if what == "prepare":
        return 0
    kernels = gpu_device.Kernels(Gpu(), FOLDER)
    right = what == "time" or check(kernels)
    if what != "check":
        time(kernels)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
