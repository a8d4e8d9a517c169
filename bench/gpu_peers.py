#!/usr/bin/env python3
"""Our shaders beside MLX's, both from their Metal source, on one NVIDIA GPU.

    gpu_peers.py prepare [WHEEL]   anywhere with clang-19: CUDA C++ of both into build/gpu
    gpu_peers.py run               with an NVIDIA GPU: MLX's kernels checked, then the tables
    gpu_peers.py count             with NVRTC and nvdisasm, no GPU: instructions a weight

MLX's source is the headers of PyPI's mlx-metal wheel, which pip downloads where WHEEL names none.
They are read through the same stand-in for Metal's library as ours and compiled by the same NVRTC,
so that a ratio is one of two algorithms. It says nothing of Apple's compiler.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT), str(ROOT / "tests" / "metal")]

import gpu_device
import gpu_instructions
import gpu_peer_times
from cuda_driver import Gpu
from msl import cuda

FOLDER = ROOT / "build" / "gpu"
PACKAGE = "mlx-metal==0.32.4"
PLATFORM = ("--no-deps", "--only-binary=:all:", "--platform", "macosx_15_0_arm64")
HEADERS = "mlx/include/mlx/backend/metal/kernels/"

# In the place of MLX's utils.h, whose tables for bfloat and complex numbers are constants that
# NVRTC cannot compute; none of them is used here.
UTILS = """#pragma once
#include <metal_stdlib>
#include "mlx/backend/metal/kernels/bf16.h"
#include "mlx/backend/metal/kernels/defines.h"
using namespace metal;
typedef half float16_t;
struct complex64_t {
    float real, imag;
};
template <typename U> struct Limits;
template <> struct Limits<float> {
    static constexpr constant float finite_max = 3.4028234663852886e38f;
    static constexpr constant float finite_min = -3.4028234663852886e38f;
};
template <> struct Limits<half> : Limits<float> {};
// Of batches of matrices, which are none here.
inline long elem_to_loc(uint element, constant const int *, constant const int64_t *, int)
{
    return element;
}
"""
QUANTIZED = ("utils", "quantized_utils", "steel/gemm/gemm")
# file: (headers, {kernel: template and arguments}), as MLX's own library has them.
SOURCES = {
    "mlx_affine": (
        (*QUANTIZED, "quantized"),
        {
            **{f"affine_fast_{g}": f"affine_qmv_fast, half, {g}, 4, false" for g in (32, 64)},
            **{
                f"affine_wide_{g}_{rows}": f"affine_qmv_wide, half, {g}, 4, {rows}, 8, false"
                for g in (32, 64)
                for rows in (2, 4, 5)
            },
            **{f"affine_qmm_{g}": f"affine_qmm_t, half, {g}, 4, true, false" for g in (32, 64)},
        },
    ),
    "mlx_mxfp4": (
        (*QUANTIZED, "fp_quantized"),
        {
            "mxfp4_fast": "fp_qmv_fast, half, 32, 4, false",
            "mxfp4_any": "fp_qmv, half, 32, 4, false",
            **{
                f"mxfp4_wide_{rows}": f"fp_qmv_wide, half, 32, 4, {rows}, 16, false"
                for rows in (2, 4, 5)
            },
            "mxfp4_qmm": "fp_qmm_t, half, 32, 4, true, false",
        },
    ),
    "mlx_decode": (
        ("utils", "sdpa_vector"),
        {
            "sdpa_first": "sdpa_vector_2pass_1, half, 128, 128",
            "sdpa_second": "sdpa_vector_2pass_2, half, 128",
        },
    ),
    "mlx_prefill": (
        ("utils", "steel/attn/kernels/steel_attention"),
        {"steel_attention": "attention, half, 32, 16, 128, 128, 4, 1, half, float"},
    ),
}


def wheel():
    """The path of MLX's wheel, downloaded beside build/gpu."""
    folder = FOLDER.parent / "mlx"
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *PLATFORM]
        subprocess.run([*command, PACKAGE], check=True)
    return sorted(folder.glob("*.whl"))[-1]


def prepare(path):
    """Write build/gpu: our kernels, and MLX's of the wheel at `path`."""
    gpu_device.translate_all(FOLDER)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        utils = folder / "own" / "mlx" / "backend" / "metal" / "kernels" / "utils.h"
        utils.parent.mkdir(parents=True)
        utils.write_text(UTILS)
        with zipfile.ZipFile(path) as archive:
            headers = [entry for entry in archive.namelist() if entry.startswith(HEADERS)]
            archive.extractall(folder, headers)
        includes = [str(folder / "own"), str(folder / "mlx" / "include")]
        for file, (included, kernels) in SOURCES.items():
            lines = ["#include <metal_stdlib>", "#include <metal_simdgroup>"]
            lines += [f'#include "mlx/backend/metal/kernels/{header}.h"' for header in included]
            lines += [f'instantiate_kernel("{k}", {text})' for k, text in kernels.items()]
            source = folder / f"{file}.metal"
            source.write_text("\n".join(lines) + "\n")
            for kernel in kernels:
                text = cuda.translate(source, includes, only=f"^{kernel}$").text
                # What clang's pragma asks for, in NVIDIA's words.
                text = text.replace("#pragma clang loop unroll(full)", "#pragma unroll")
                (FOLDER / f"mlx_{kernel}.cu").write_text(text)


def run():
    """Print what was checked and timed; whether MLX's kernels were right."""
    gpu, right = Gpu(), True
    timer = gpu_peer_times.PeerTimer(gpu, gpu_device.Kernels(gpu, FOLDER), FOLDER)
    for line in timer.check():
        print(line, flush=True)
        right = right and gpu_peer_times.WRONG not in line
    print(f"\n{gpu.name}: a float sum over 4 GiB reads {timer.bandwidth() / 1e12:.2f} TB/s")
    tables = gpu_peer_times.matvec_table, gpu_peer_times.rows_table
    for table in (*tables, gpu_peer_times.decode_table, gpu_peer_times.prefill_table):
        print()
        for line in table(timer):
            print(line, flush=True)
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["prepare", "run", "count"])
    parser.add_argument("wheel", nargs="?", help="MLX's, for prepare")
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.wheel or wheel())
    if arguments.what == "count":
        for line in gpu_instructions.table(FOLDER):
            print(line, flush=True)
    return 0 if arguments.what != "run" or run() else 1


if __name__ == "__main__":
    sys.exit(main())
