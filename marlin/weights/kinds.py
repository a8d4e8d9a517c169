"""The kinds of weights that kernels read, a row each.

Owns what a kind is made of; docs/formats.md has the layout of the packed ones. Refuses to know
files and devices. shaders/block_types.h tells C and Metal the same, and a test holds the two
together.
"""

from dataclasses import dataclass

# Rows of a packed weight that are interleaved.
ROW_TILE = 16
# Columns that share a scale in the project's own folders.
GROUP_SIZES = (32, 64, 128)
NEVER, MAY, MUST = range(3)


@dataclass(frozen=True, slots=True)
class WeightKind:
    """
    Attributes:
        bits: of a value, or of a packed kind's code.
        least_group: the fewest columns that may share a scale; 0: a dense kind, which has none.
        bias: whether a bias a group comes with the scales: NEVER, MAY or MUST.
    """

    name: str
    bits: int
    least_group: int
    bias: int

    @property
    def code_dtype(self) -> str:
        """The element type that safetensors stores a packed kind's codes as."""
        return "U8" if self.bits == 8 else "U32"

    def code_shape(self, n: int, k: int) -> tuple[int, ...]:
        """Elements of code_dtype of a packed weight [n, k]."""
        words = (-(-n // ROW_TILE), k * self.bits // 32, ROW_TILE)
        return (*words, 4) if self.bits == 8 else words


KINDS = {
    kind.name: kind
    for kind in (
        WeightKind("f32", 32, 0, NEVER),
        WeightKind("f16", 16, 0, NEVER),
        WeightKind("bf16", 16, 0, NEVER),
        WeightKind("fp4", 4, 32, NEVER),
        WeightKind("int4", 4, 32, MUST),
        WeightKind("int8", 8, 16, MAY),
    )
}
PACKED_KINDS = tuple(name for name, kind in KINDS.items() if kind.least_group)
