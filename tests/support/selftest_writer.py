"""What a case of `metal-marlin selftest` is made of: tensors, records, answers. Knows no case
(make_selftest.py has them all).
"""

import hashlib

import numpy as np
import reference
from matrices import dense_weight, packed_weight

from marlin.device import ops
from marlin.weights import formats

FLOAT32, FLOAT16 = (list(reference.TOLERANCES[name]) for name in ("float32", "float16"))
EXACT = [0.0, 0.0]


class Tensor:
    """Stands for a View while ops.py records: a buffer's name, and what is known of it.

    Attributes:
        value: array that it holds before, or None.
        num_bytes: its length; a longer one than its value's repeats it.
    """

    def __init__(self, name, value=None, num_bytes=None):
        self.name = name
        self.value = None if value is None else np.ascontiguousarray(value)
        self.num_bytes = self.value.nbytes if num_bytes is None else num_bytes


class CaseWriter:
    """Records one case, as program.Recorder would."""

    def __init__(self, name, tokens=0, tiles=0, logits=0, splits=0, masks=0, sequences=0):
        self.name = name
        self.fields = {
            "name": name,
            "variables": [tokens, tiles, logits, splits, masks, sequences],
            "dispatches": [],
            "sizes": {},
            "tolerances": {},
        }
        self._tensors = {"inputs": {}, "answers": {}, "magnitudes": {}}

    def dispatch(self, kernel, params, bindings, label=""):
        """Recorder.dispatch() with Tensors for Views."""
        for tensor, _ in (bound for bound in bindings if bound is not None):
            self.fields["sizes"][tensor.name] = tensor.num_bytes
            if tensor.value is not None:
                self._tensors["inputs"][tensor.name] = tensor.value
        self.fields["dispatches"].append(
            {
                "kernel": kernel,
                "params": params.tobytes().hex(),
                "bindings": [bound and [bound[0].name, bound[1]] for bound in bindings],
            }
        )

    def answer(self, name, expected, tolerance=FLOAT32):
        """What a buffer holds afterwards: a reference.Expected, or an array."""
        if isinstance(expected, reference.Expected):
            self._tensors["magnitudes"][name] = expected.magnitude.astype(np.float32)
            expected = expected.value.astype(np.float32)
        self._tensors["answers"][name] = np.ascontiguousarray(expected)
        self.fields["tolerances"][name] = tolerance
        return self

    def tensors(self):
        """{name in the file: array}; names them in the case's fields. Equal arrays are one."""
        found = {}
        for part, arrays in self._tensors.items():
            names = {name: _digest(array) for name, array in arrays.items()}
            found |= {names[name]: array for name, array in arrays.items()}
            self.fields[part] = names
        return found


def _digest(array):
    facts = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(facts + array.tobytes()).hexdigest()[:16]


def room(name, *shape, itemsize=4):
    """A Tensor that a kernel fills."""
    return Tensor(name, num_bytes=itemsize * int(np.prod(shape)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def activations(rows, k, seed=0):
    """float32 [rows, k] that int8 codes in groups of 32 can hold without loss."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (rows, -(-k // 32), 32))
    codes[:, :, 0] = 127
    steps = np.exp2(rng.integers(-12, -4, codes.shape[:2]))[:, :, None]
    return (codes * steps).reshape(rows, -1)[:, :k].astype(np.float32)


def weight_of(weight):
    """ops.Weight of Tensors, of a PackedWeight or a dense (kind, array)."""
    if not isinstance(weight, formats.PackedWeight):
        kind, array = weight
        return ops.Weight(kind, *array.shape, Tensor("w", array))
    flags = ops.weight_flags(weight.scale_bytes, weight.biases is not None)
    biases = None if weight.biases is None else Tensor("biases", weight.biases)
    return ops.Weight(
        weight.format, *weight.shape, Tensor("codes", weight.codes), weight.group_size, flags,
        Tensor("scales", weight.scales), biases,
    )  # fmt: skip


def matrices(n, k):
    """(kind and group, weight, its values, the size of what cancels in them) of every kind."""
    for kind in ("f32", "f16", "bf16"):
        stored, values = dense_weight(kind, n, k)
        yield kind, stored, values, np.abs(values)
    for kind, group_size, dtype in (
        ("int8", 16, np.float32),
        ("int8", 64, np.float16),
        ("int4", 32, np.float32),
        ("int4", 64, np.float16),
        ("fp4", 32, np.float16),
        ("fp4", 64, np.float32),
        ("int5", 32, np.float32),
        ("int6", 16, np.float16),
        ("iq4", 64, np.float16),
        ("fp8", 64, np.float32),
        ("nf4", 64, np.float32),
    ):
        packed = packed_weight(kind, n, k, group_size, dtype)
        values, size = formats.dequantize(packed), 0
        if packed.biases is not None:
            size = np.repeat(np.abs(formats.unpack(packed)[2].astype(np.float32)), group_size, 1)
        yield f"{kind}-{group_size}", packed, values, np.abs(values) + 2 * size
