"""What mlx-lm has done to the tensors of a folder beside quantizing them.

Where convolutions and norms that multiply by 1 + w meet (Qwen3-Next and its line), its converter
has put a convolution's taps before its 1, and has added the 1 to the norms: the order of the one
tells of the other. In a folder without convolutions nothing was added.
"""

from dataclasses import replace


def without_plus(plan: list) -> list:
    """The same StoredTensors, of which nothing is to be added to any where that has been done."""
    convolutions = [at.info for at in plan if at.tensor.role == "conv"]
    if not any(info.shape[-1] == 1 < info.shape[-2] for info in convolutions):
        return plan
    return [replace(at, tensor=replace(at.tensor, plus=0.0)) for at in plan]
