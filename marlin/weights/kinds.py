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
# Columns whose int8 scales share a float16.
BLOCK_COLUMNS = 256
# Form.scale_bytes of scales that are bytes e of 2^(e - 127), and of those that are int8 numbers
# times a bfloat16 of a row.
EXPONENTS, OF_ROWS = -1, -2
# Those bfloat16 of a tile lie where the numbers of so many groups more would.
STEP_GROUPS = 2


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
        WeightKind("fp4", 4, 16, NEVER),
        WeightKind("int4", 4, 16, MUST),
        WeightKind("int8", 8, 16, MAY),
        WeightKind("int5", 5, 32, MUST),
        WeightKind("int6", 6, 16, NEVER),
        WeightKind("iq4", 4, 32, NEVER),
        WeightKind("fp8", 8, 32, NEVER),
        WeightKind("nf4", 4, 32, NEVER),
    )
}


@dataclass(frozen=True, slots=True)
class Form:
    """What a matrix of a file becomes on a device.

    Attributes:
        kind: a key of KINDS.
        group_size, scale_bytes, has_bias: of a packed kind; 0, 0 and False of a dense one.
            scale_bytes of 1: int8 numbers, times a float16 of a row's BLOCK_COLUMNS; EXPONENTS;
            OF_ROWS.
    """

    kind: str
    group_size: int = 0
    scale_bytes: int = 0
    has_bias: bool = False

    def padded_rows(self, n: int) -> int:
        """Rows that a matrix of n rows takes: whole tiles of a packed kind."""
        return -(-n // ROW_TILE) * ROW_TILE if self.group_size else n

    def part_bytes(self, n: int, k: int) -> tuple[int, int, int]:
        """Bytes of the codes or values, scales and biases (0 without) of a matrix [n, k]."""
        rows = self.padded_rows(n)
        code_bytes = rows * k * KINDS[self.kind].bits // 8
        if not self.group_size:
            return code_bytes, 0, 0
        if self.scale_bytes == OF_ROWS:
            scale_bytes = rows * (k // self.group_size + STEP_GROUPS)
            return code_bytes, scale_bytes, scale_bytes if self.has_bias else 0
        scale_bytes = rows * (k // self.group_size) * abs(self.scale_bytes)
        if self.scale_bytes == 1:
            scale_bytes += rows * (k // BLOCK_COLUMNS) * 2
        return code_bytes, scale_bytes, scale_bytes if self.has_bias else 0


def native_form(kind: str, group_size: int) -> Form:
    """What a matrix of a native folder is written as. Scales of eight bits stay float16: what was
    Q8_0 loses nothing."""
    scale_bytes = OF_ROWS if KINDS[kind].bits < 8 else 2
    return Form(kind, group_size, scale_bytes, KINDS[kind].bias == MUST)


PACKED_KINDS = tuple(name for name, kind in KINDS.items() if kind.least_group)
