"""Every shader is also a CUDA program: a second compiler's opinion, and what GPU runs start from.

NVRTC needs no GPU. It comes with a CUDA toolkit or with `pip install nvidia-cuda-nvrtc-cu12`.
"""

import pytest
from msl import build, cuda
from msl.source import SHADER_FOLDER, SourceError

SHADERS = sorted(SHADER_FOLDER.glob("*.metal"))
# ROWS, GROUP_SIZE, FLAGS, HEAD_DIM, HEADS_PER_KV, SIMDGROUPS, KV_F32, LATENT_DIM
# (shaders/common.h), as a model might have them.
CONSTANTS = [f"MSL_FC_{index}={value}" for index, value in enumerate((4, 32, 0, 64, 3, 8, 0, 0))]


def missing():
    """Why nothing here can run, None if it can."""
    if build.compiler_missing():
        return build.compiler_missing()
    try:
        cuda.nvrtc()
    except SourceError as error:
        return str(error)
    return None


MISSING = missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.mark.parametrize("path", SHADERS, ids=lambda path: path.stem)
def test_a_shader_compiles_for_an_h200(path):
    translated = cuda.translate(path, defines=CONSTANTS)
    image = cuda.compile_text(translated.text, "sm_90", translated.defines)
    for kernel in translated.kernels:
        assert f".entry msl_{kernel}(".encode() in image.ptx
    assert image.cubin.startswith(b"\x7fELF")


def test_what_nvrtc_refuses_is_an_error_at_the_line_of_the_metal_file(tmp_path):
    path = tmp_path / "wrong.metal"
    path.write_text(
        "#include <metal_stdlib>\n"
        "using namespace metal;\n"
        "kernel void wrong(device float *out [[buffer(0)]])\n"
        "{\n"
        "    out[0] = absent(1.0f);\n"
        "}\n"
    )
    translated = cuda.translate(path)
    with pytest.raises(SourceError, match=r"wrong\.metal\(5\): error: identifier \"absent\""):
        cuda.compile_text(translated.text, defines=translated.defines)
