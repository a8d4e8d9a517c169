"""Instructions that a weight costs in decode: counted in the innermost loop of the machine code
that NVIDIA's compiler makes of our matvec and of MLX's.

Owns the reading of nvdisasm's text. A loop's weights are known: each side's source takes 64 of them
a turn and lane, so many multiply-adds at least, and the compiler may unroll it a whole number of
times. Needs NVRTC, and nvdisasm on PATH or of the nvidia-cuda-nvdisasm wheel; no GPU.
"""

import glob
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu_device import constants_of
from msl import cuda

from marlin.device import abi

ARCHITECTURE = "sm_90"
WEIGHTS_A_TURN = 64
LABEL = re.compile(r"^\.(L_x_\d+):")
CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\d\s+)?([A-Z0-9_.]+)(.*)")
MULTIPLY_ADDS = ("FFMA", "HFMA2")
# name: (our kernel, group, flags, MLX's kernel)
PAIRS = {
    "int4, groups of 32": ("matvec_int4", 32, abi.WEIGHT_BIAS, "affine_fast_32"),
    "int4, groups of 64": ("matvec_int4", 64, abi.WEIGHT_BIAS, "affine_fast_64"),
    "mxfp4": ("matvec_fp4", 32, abi.SCALE_EXP, "mxfp4_fast"),
    "fp4, float16 scales": ("matvec_fp4", 32, 0, None),
}


def nvdisasm():
    folders = map(glob.escape, sys.path)
    found = [path for folder in folders for path in glob.glob(f"{folder}/nvidia/*/bin/nvdisasm")]
    return shutil.which("nvdisasm") or found[0]


def instructions(cubin):
    """[(address order, label or operation, operands)] of the kernel's code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [nvdisasm(), "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            found.append(("label", label[1]))
        elif code := CODE.search(line):
            found.append((code[2], code[3]))
    return found


def loops(code):
    """Each innermost loop's operations: from a label to a branch back to it, no other within."""
    places = {text: at for at, (what, text) in enumerate(code) if what == "label"}
    spans = []
    for at, (what, text) in enumerate(code):
        target = re.search(r"\((\.L_x_\d+)\)", text) if what.startswith("BRA") else None
        begin = places.get(target[1][1:]) if target else None
        if begin is not None and begin < at:
            spans.append((begin, at))
    for begin, end in spans:
        if not any(begin < b and e < end for b, e in spans):
            yield [what for what, _ in code[begin : end + 1] if what != "label"]


def a_weight(cubin):
    """(instructions, multiply-adds) a weight, of the loop with most multiply-adds."""

    def adds(loop):
        return sum(2 if what.startswith("HFMA2") else what.startswith("FFMA") for what in loop)

    hottest = max(loops(instructions(cubin)), key=adds)
    weights = max(1, adds(hottest) // WEIGHTS_A_TURN) * WEIGHTS_A_TURN
    return len(hottest) / weights, adds(hottest) / weights


def ours(folder, kernel, group, flags):
    params = {"group_size": group, "flags": flags}
    defines = [f"MSL_FC_{i}={v}" for i, v in enumerate(constants_of(kernel, params, 1, 8))]
    text = (folder / f"{kernel}.cu").read_text()
    return cuda.compile_text(text, ARCHITECTURE, [*defines, "MSL_CONSTANT_SLOT=12"]).cubin


def theirs(folder, kernel):
    text = (folder / f"mlx_{kernel}.cu").read_text()
    return cuda.compile_text(text, ARCHITECTURE, [f"MSL_FC_{i}=1" for i in (200, 201, 202)]).cubin


def table(folder):
    """Markdown lines; folder: what gpu_peers.prepare() wrote."""
    yield "| weights, one row | ours | MLX's |"
    yield "|---|---|---|"
    for name, (kernel, group, flags, peer) in PAIRS.items():
        cells = [a_weight(ours(folder, kernel, group, flags))]
        cells += [a_weight(theirs(folder, peer))] if peer else []
        texts = [f"{every:.2f}, {adds:.2f} of them multiply-adds" for every, adds in cells]
        yield f"| {name} | " + " | ".join([*texts, ""][:2]) + " |"
