"""bitsandbytes' 4-bit folders (nf4, fp4): codes of a table of sixteen floats, a scale for each 64
values of the flattened matrix, and these quantized in turn or not.

Codes of nf4 stay as they are (kind nf4); fp4's, as those of any other table, become the nearest
float16. Source: docs/formats.md, "bitsandbytes".
"""

import numpy as np

from marlin.errors import ModelFileError
from marlin.files.fields import Fields, file_fields
from marlin.files.strict_json import parse_json_object
from marlin.weights.foreign import matrix, numbers
from marlin.weights.foreign.matrix import ForeignMatrix
from marlin.weights.rounding import NF4
from marlin.weights.tensor_file import TensorInfo, read_bytes

MAX_STATE_BYTES = 1 << 16
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class BitsAndBytes:
    """See table.Reader; `config` is quantization_config."""

    name = "bitsandbytes"

    def __init__(self, config: Fields, tensors: dict[str, TensorInfo]):
        self._tensors = tensors
        if config.flag("load_in_8bit", False) or not config.flag("load_in_4bit", False):
            config.fail("load_in_4bit", "true: of 8 bits the original is to be had")
        config.choice("bnb_4bit_quant_storage", ("uint8",), "uint8")

    def matrix(self, stem: str, shape: tuple[int, ...]) -> ForeignMatrix | None:
        weight = self._tensors.get(f"{stem}.weight")
        absmax = self._tensors.get(f"{stem}.weight.absmax")
        if weight is None or absmax is None:
            return None
        state, state_info = self._state(stem, weight)
        n, k = shape
        if state.raw("shape") != [n, k]:
            state.fail("shape", f"{[n, k]}, which the config implies")
        block = state.count("blocksize")
        if block not in BLOCKS or k % block:
            state.fail("blocksize", f"one of {', '.join(map(str, BLOCKS))} that divides {k}")
        numbers.check(weight, ("U8",), (n * k // 2, 1))
        table = self._floats(stem, "quant_map", weight, 16)
        scales, parts = self._scales(stem, absmax, state, n * k // block)
        scales = scales.reshape(n, -1)

        def codes(start, stop):
            raw = read_bytes(weight, start * k // 2, (stop - start) * k // 2)
            return np.stack([raw >> 4, raw & 15], axis=1).reshape(stop - start, k)

        def values(start, stop):
            found = table[codes(start, stop).reshape(stop - start, -1, block)]
            return (found * scales[start:stop, :, None]).reshape(stop - start, k)

        beside = self._tensors[f"{stem}.weight.quant_map"], state_info
        parts = (weight, absmax, *beside, *parts)
        if (table != NF4).any():
            return matrix.dense("f16", shape, parts, values)
        return matrix.packed(
            "nf4", shape, parts, codes, lambda start, stop: (scales[start:stop], None), block
        )

    def is_companion(self, name: str) -> bool:
        return False

    def _state(self, stem, weight):
        prefix = f"{stem}.weight.quant_state.bitsandbytes__"
        found = [self._tensors[name] for kind in ("nf4", "fp4")
                 if (name := prefix + kind) in self._tensors]  # fmt: skip
        if not found:
            raise numbers.missing(weight, prefix + "nf4")
        info = found[0]
        if info.dtype != "U8" or info.num_bytes > MAX_STATE_BYTES:
            message = f"is {info.dtype} of {info.num_bytes} bytes, expected at most "
            raise ModelFileError(info.path, f"{message}{MAX_STATE_BYTES} of U8", tensor=info.name)
        return file_fields(
            info.path, parse_json_object(info.path, read_bytes(info).tobytes())
        ), info

    def _floats(self, stem, part, beside, count):
        info = self._tensors.get(f"{stem}.weight.{part}")
        if info is None:
            raise numbers.missing(beside, f"{stem}.weight.{part}")
        numbers.check(info, ("F32",), (count,))
        return numbers.floats(info, read_bytes(info))

    def _scales(self, stem, absmax, state, count):
        """(float32 [count], the other tensors that they are made of)."""
        if absmax.dtype == "F32":
            return numbers.floats(numbers.check(absmax, ("F32",), (count,)), read_bytes(absmax)), ()
        numbers.check(absmax, ("U8",), (count,))
        block = min(count, state.count("nested_blocksize"))
        table = self._floats(stem, "nested_quant_map", absmax, 256)
        largest = self._floats(stem, "nested_absmax", absmax, -(-count // block))
        offset = np.float32(state.number("nested_offset", minimum=-3e38, maximum=3e38))
        raw = table[read_bytes(absmax)] * np.repeat(largest, block)[:count] + offset
        parts = ("nested_quant_map", "nested_absmax")
        return raw, tuple(self._tensors[f"{stem}.weight.{part}"] for part in parts)
