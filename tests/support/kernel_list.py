"""The rows of shaders/kernel_list.h, for tests of what follows from them."""

import re
from pathlib import Path
from typing import NamedTuple

SHADERS = Path(__file__).resolve().parents[2] / "shaders"


class KernelRow(NamedTuple):
    """One kernel's columns, as the header's head explains them."""

    name: str
    check: str
    weight: str
    params: str
    bindings: int
    units: str
    axes: int
    flags: str
    threads: int
    x: int
    y: int


def read_kernels(folder=SHADERS):
    """{name: KernelRow} in the list's order.

    Args:
        folder: of the header.
    """
    text = (folder / "kernel_list.h").read_text().partition("#define MARLIN_KERNELS(X)")[2]
    cells = [re.split(r",\s*", row) for row in re.findall(r"\bX\((.*?)\)", text)]
    typed = [[int(cell) if cell.isdigit() else cell for cell in row] for row in cells]
    return {row[0]: KernelRow(*row) for row in typed}
