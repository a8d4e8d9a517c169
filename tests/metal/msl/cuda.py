"""Unmodified .metal files for NVIDIA GPUs, through NVRTC; compiling needs no GPU.

Every kernel becomes `extern "C" __global__ void msl_NAME(const __grid_constant__ msl_launch)`: one
argument table by value, indexed by Metal's buffer slots (include/msl/cuda.h). What setBytes: would
pass lies in device memory and its address in the table; [[threadgroup(n)]] memory is dynamic shared
memory at tg_offset[n]. A function constant is a macro, MSL_FC_<index>, so each set of values is one
compilation, as it is one pipeline in Metal. A SIMD-group is a warp, a threadgroup a block.
"""

import ctypes
import glob
import os
import sys
from pathlib import Path
from typing import NamedTuple

from msl.build import CLANG
from msl.source import INCLUDE_FOLDER, SourceError
from msl.unit import Unit

CONSTANT_PREFIX = "MSL_FC_"
# Declared and not used, constexpr and host code, deprecated: true of generated code, and harmless.
SUPPRESSED = "-diag-suppress=1444,20014,177,550,186,68"


class Translation(NamedTuple):
    """CUDA C++ of a .metal file, its kernels' host names, and the macros it is compiled with."""

    text: str
    kernels: list
    defines: list


class Image(NamedTuple):
    """What NVRTC made: PTX and cubin, and its messages."""

    ptx: bytes
    cubin: bytes
    log: str


def nvrtc():
    """The NVRTC library, from a Python wheel (nvidia-cuda-nvrtc-cu12) or a CUDA toolkit.

    Raises:
        SourceError: there is none.
    """
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [glob.escape(folder) for folder in sys.path if folder]
    wheels = [f"{folder}/nvidia/*/lib/libnvrtc.so.*" for folder in folders]
    for pattern in (*wheels, f"{glob.escape(toolkit)}/lib64/libnvrtc.so*"):
        for path in sorted(glob.glob(pattern)):
            if "alt" in Path(path).name or "builtins" in Path(path).name:
                continue
            for builtins in Path(path).parent.glob("libnvrtc-builtins.so.*"):
                if "alt" not in builtins.name:
                    # NVRTC opens it by its name alone, which finds a library that is loaded.
                    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    raise SourceError("no libnvrtc: pip install nvidia-cuda-nvrtc-cu12")


def translate(path, includes=(), defines=(), only=None):
    """CUDA C++ of a .metal file. A function constant without a value among `defines` is 0.

    Raises:
        SourceError: the source breaks a rule of Metal's.
    """
    constants = [define for define in defines if define.startswith(CONSTANT_PREFIX)]
    others = [define for define in defines if not define.startswith(CONSTANT_PREFIX)]
    unit = Unit(path, CLANG, includes, others)
    unit.refuse_errors()
    given = {define.split("=")[0] for define in constants}
    names = [CONSTANT_PREFIX + constant.index for constant in unit.constants]
    missing = [f"{name}=0" for name in names if name not in given]
    kernels = [entry.host_name for entry in unit.selected(only)]
    macros = [define for define in others if define.startswith("MSL_")]
    return Translation(unit.cuda_text(only), kernels, [*constants, *missing, *macros])


def compile_text(text, arch="sm_90", defines=(), flags=()):
    """Compile what translate() gave.

    Raises:
        SourceError: NVRTC refuses it; its log is the message.
    """
    library, program = nvrtc(), ctypes.c_void_p()
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"kernels.metal.cu", 0, None, None
    )
    if made != 0:
        raise SourceError(f"nvrtcCreateProgram: error {made}")
    options = [f"-arch={arch}", "-std=c++17", "-default-device", "-DMSL_CUDA=1", SUPPRESSED]
    options += [f"-I{INCLUDE_FOLDER / 'msl'}", *(f"-D{define}" for define in defines), *flags]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = library.nvrtcCompileProgram(program, len(options), array)
    try:
        log = _output(library, program, "ProgramLog").rstrip(b"\0").decode()
        if failed:
            raise SourceError(log)
        ptx, cubin = (_output(library, program, what) for what in ("PTX", "CUBIN"))
        return Image(ptx.rstrip(b"\0"), cubin, log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _output(library, program, what):
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(1, size.value))
    getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw[: size.value]
