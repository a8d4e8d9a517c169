"""The check on the check: Metal source that Apple's compiler is known to accept is accepted here.

The source is that of published packages: two small wheels and MLX's, which pip downloads into
pytest's cache, and llama.cpp's shaders if METAL_MARLIN_METAL_SOURCES names a folder
ggml/src/ggml-metal. None of it is ever part of this repository.

Accepted means no error. "unchecked" findings are allowed and are this tool's known gap: a struct or
a matrix copied into or out of device memory, which plain C++ cannot express. "style" findings are
this repository's taste.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from msl import build, check
from wheels import wheel_of

MISSING = build.compiler_missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

# (requirement, shader inside its wheel); 14 and 210 KB to download.
WHEELS = [
    ("fp4-fp8-for-torch-mps==1.0.3", "fp4_fp8_for_torch_mps/shaders/fp8_matmul.metal"),
    ("metal-treeshap==0.1.1", "metal_treeshap/treeshap.metal"),
]
# A Mac's wheel, whatever Python and system run the test.
FOR_A_MAC = "--platform macosx_13_0_arm64 --platform any --python-version 3.11".split()
DOWNLOAD_TIMEOUT_S = 60

MLX = "mlx-metal==0.32.4"
MLX_FLAGS = ("--no-deps", "--only-binary=:all:", "--platform", "macosx_15_0_arm64")
MLX_KERNELS = "mlx/include/mlx/backend/metal/kernels/"
# Each with the headers that it counts on.
MLX_HEADERS = (
    "quantized_utils steel/gemm/gemm quantized",
    "quantized_utils steel/gemm/gemm fp_quantized",
    "steel/gemm/gemm steel/gemm/kernels/steel_gemm_fused",
    "steel/attn/kernels/steel_attention",
    *("sdpa_vector", "softmax", "logsumexp", "gemv", "copy", "gated_delta_update"),
)

FOLDER_VARIABLE = "METAL_MARLIN_METAL_SOURCES"
# Every program of llama.cpp's that is no variant of another (fa_q4_1 of fa_q4_0, ...).
LLAMA_FILES = """argsort binbcast conv fa_aux fa_f16 fa_q4_0 fa_vec_f16 gated_delta_net misc mul_mm
mul_mv norm pool quantize reduce rope softmax solve_tri ssm tri unary upscale wkv""".split()


def download(requirement, folder):
    """The wheel of a requirement; skips where the package index cannot be reached."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", *FOR_A_MAC, "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirement}: no answer from the package index in {DOWNLOAD_TIMEOUT_S} s")
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"{requirement}: {done.stderr.strip() or 'pip downloaded nothing'}")
    return wheels[0]


def errors(path, includes=(), defines=()):
    found = check.check(path, includes, defines)
    return [str(diagnostic) for diagnostic in found if diagnostic.severity == "error"]


@pytest.mark.parametrize(("requirement", "inside"), WHEELS)
def test_the_shader_of_a_published_wheel_is_accepted(requirement, inside, request):
    folder = Path(request.config.cache.mkdir("metal_sources")) / requirement
    shader = folder / Path(inside).name
    if not shader.exists():
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(download(requirement, folder)) as wheel:
            shader.write_bytes(wheel.read(inside))
    assert errors(shader) == []


@pytest.fixture(scope="module")
def mlx(request, tmp_path_factory):
    """The include folder of MLX's wheel, but for what its bfloat takes from Apple's compiler by
    names that begin with __metal."""
    path = wheel_of(request.config.cache.mkdir("mlx-metal"), MLX, *MLX_FLAGS)
    folder = tmp_path_factory.mktemp("mlx")
    with zipfile.ZipFile(path) as archive:
        headers = [name for name in archive.namelist() if name.startswith(MLX_KERNELS)]
        archive.extractall(folder, headers)
    (folder / MLX_KERNELS / "bf16_math.h").write_text("")
    return folder / "mlx" / "include"


@pytest.mark.downloads
@pytest.mark.parametrize("headers", MLX_HEADERS)
def test_the_kernels_of_mlx_are_accepted(mlx, tmp_path, headers):
    names = ["utils", *headers.split()]
    lines = ["#include <metal_stdlib>", "#include <metal_simdgroup>"]
    lines += [f'#include "mlx/backend/metal/kernels/{name}.h"' for name in names]
    source = tmp_path / "kernels.metal"
    source.write_text("\n".join(lines) + "\n")
    assert errors(source, [mlx]) == []


@pytest.fixture(scope="module")
def llama():
    """llama.cpp's folder ggml/src/ggml-metal, beside which ggml-common.h lies."""
    if not os.environ.get(FOLDER_VARIABLE):
        pytest.skip(f"{FOLDER_VARIABLE} names no folder ggml/src/ggml-metal of llama.cpp")
    return Path(os.environ[FOLDER_VARIABLE])


@pytest.mark.slow
@pytest.mark.parametrize("name", LLAMA_FILES)
def test_a_shader_of_llama_cpp_is_accepted(llama, name):
    includes = [llama, llama.parent, llama.parent.parent / "include"]
    assert errors(llama / "kernels" / f"{name}.metal", includes, ["GGML_METAL_HAS_BF16=1"]) == []
