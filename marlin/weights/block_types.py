"""The types that files store tensors as, a row each: how long a block is, and what a matrix of it
becomes on a device.

Owns the table; what a block's bytes mean is ggml_types.py's and the repack kernel's. Refuses to
know files and devices. shaders/block_types.h has the rows that are repacked for C and Metal, and a
test holds the two together.
"""

from dataclasses import dataclass

from marlin.weights.kinds import EXPONENTS, Form


@dataclass(frozen=True, slots=True)
class BlockType:
    """
    Attributes:
        name: as GGUF and safetensors spell it.
        number: ggml's own (ggml.h, enum ggml_type); None: not one of GGUF's.
        values, bytes: of a block; plain types are blocks of one value.
        kind: the weight kind that a matrix of it is; "": no matrix may be of it. A dense one is
            read in place, a packed one is repacked.
        group_size, scale_bytes, has_bias: of a packed kind, as Form has them.
    """

    name: str
    number: int | None
    values: int
    bytes: int
    kind: str = ""
    group_size: int = 0
    scale_bytes: int = 0
    has_bias: bool = False

    @property
    def form(self) -> Form:
        """What a repacked matrix becomes."""
        return Form(self.kind, self.group_size, self.scale_bytes, self.has_bias)

    def part_bytes(self, n: int, k: int) -> tuple[int, int, int]:
        """Form.part_bytes() of a repacked matrix [n, k]."""
        return self.form.part_bytes(n, k)


BLOCK_TYPES = {
    row.name: row
    for row in (
        BlockType("F32", 0, 1, 4, "f32"),
        BlockType("F16", 1, 1, 2, "f16"),
        BlockType("Q4_0", 2, 32, 18, "int4", 32, 2, True),
        BlockType("Q4_1", 3, 32, 20, "int4", 32, 2, True),
        BlockType("MXFP4_PAIRS", 4, 32, 17),  # Ollama's first one (gguf_writers.py)
        BlockType("Q5_0", 6, 32, 22, "int6", 32, 2, False),
        BlockType("Q5_1", 7, 32, 24, "int5", 32, 2, True),
        BlockType("Q8_0", 8, 32, 34, "int8", 32, 2, False),
        BlockType("Q2_K", 10, 256, 84, "int4", 16, 1, True),
        BlockType("Q3_K", 11, 256, 110, "int4", 16, 1, True),
        BlockType("Q4_K", 12, 256, 144, "int4", 32, 1, True),
        BlockType("Q5_K", 13, 256, 176, "int5", 32, 1, True),
        BlockType("Q6_K", 14, 256, 210, "int6", 16, 1, False),
        BlockType("IQ4_NL", 20, 32, 18, "iq4", 32, 2, False),
        BlockType("IQ4_XS", 23, 256, 136, "iq4", 32, 1, False),
        BlockType("I8", 24, 1, 1),
        BlockType("I16", 25, 1, 2),
        BlockType("I32", 26, 1, 4),
        BlockType("I64", 27, 1, 8),
        BlockType("F64", 28, 1, 8),
        BlockType("BF16", 30, 1, 2, "bf16"),
        BlockType("TQ1_0", 34, 256, 54, "int4", 128, 2, True),
        BlockType("TQ2_0", 35, 256, 66, "int4", 128, 2, True),
        BlockType("MXFP4", 39, 32, 17, "fp4", 32, EXPONENTS, False),
        BlockType("NVFP4", 40, 64, 36, "fp4", 16, 4, False),
        BlockType("Q1_0", 41, 128, 18, "int4", 128, 2, True),
        BlockType("Q2_0", 42, 64, 18, "int4", 64, 2, True),
        BlockType("U8", None, 1, 1),
        BlockType("U16", None, 1, 2),
        BlockType("U32", None, 1, 4),
        BlockType("U64", None, 1, 8),
        BlockType("BOOL", None, 1, 1),
        BlockType("F8_E4M3", None, 1, 1),
        BlockType("F8_E5M2", None, 1, 1),
        BlockType("F8_E8M0", None, 1, 1),
    )
}
GGUF_TYPES = {row.number: row for row in BLOCK_TYPES.values() if row.number is not None}
# What a matrix may be stored as: read in place, by name of its kind, and repacked.
DENSE_KINDS = {
    name: row.kind for name, row in BLOCK_TYPES.items() if row.kind and not row.group_size
}
REPACKED = {name: row for name, row in BLOCK_TYPES.items() if row.group_size}
# GGUF types that exist and are not read here, so that an error can say which one it met.
UNREAD_GGUF_TYPES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
}
