"""Tensors that a file holds as one: cut up by rows, each part with its place and size."""

from types import SimpleNamespace

import pytest

from marlin.errors import ModelFileError
from marlin.models.plan import split_fused
from marlin.weights.tensor_file import TensorInfo

PARTS = [
    SimpleNamespace(name=f"layer.{part}.weight", gguf=f"blk.{part}.weight", shape=(rows, 64))
    for part, rows in (("q", 6), ("k", 2), ("v", 2))
]
FUSED = SimpleNamespace(name="layer.qkv.weight", gguf="blk.qkv.weight", parts=PARTS)
SPEC = SimpleNamespace(fused=[FUSED], tensors=[])
SIZES = {"weight": 32, "scales": 4, "biases": 4}  # bytes of a row


def tensor(name, *shape, offset=1000, num_bytes=None):
    size = num_bytes or 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
    return TensorInfo(name, "F32", shape, offset, size, "model.gguf")


@pytest.mark.parametrize(("attribute", "stem"), [("name", "layer"), ("gguf", "blk")])
def test_a_tensor_of_several_is_cut_by_rows(attribute, stem):
    given = {name: tensor(name, 10, 64) for name in (f"{stem}.qkv.weight", "other")}
    found = split_fused(SPEC, given, attribute)
    assert list(given) == [f"{stem}.qkv.weight", "other"]  # which is left as it was
    assert found == {
        "other": given["other"],
        f"{stem}.q.weight": tensor(f"{stem}.q.weight", 6, 64),
        f"{stem}.k.weight": tensor(f"{stem}.k.weight", 2, 64, offset=1000 + 6 * 256),
        f"{stem}.v.weight": tensor(f"{stem}.v.weight", 2, 64, offset=1000 + 8 * 256),
    }


def test_scales_and_biases_of_packed_weights_are_cut_with_them():
    given = {
        f"layer.qkv.{end}": tensor(f"layer.qkv.{end}", 10, columns, num_bytes=10 * row_bytes)
        for end, columns, row_bytes in (("weight", 8, 32), ("scales", 2, 4), ("biases", 2, 4))
    }
    found = split_fused(SPEC, given, "name")
    assert {name: (info.offset, info.num_bytes) for name, info in found.items()} == {
        **{f"layer.q.{end}": (1000, 6 * size) for end, size in SIZES.items()},
        **{f"layer.k.{end}": (1000 + 6 * size, 2 * size) for end, size in SIZES.items()},
        **{f"layer.v.{end}": (1000 + 8 * size, 2 * size) for end, size in SIZES.items()},
    }
    assert found["layer.k.scales"].shape == (2, 2)


def test_a_bias_is_cut_alone():
    parts = [
        SimpleNamespace(name=f"layer.{part}.bias", gguf="", shape=(rows,))
        for part, rows in (("q", 3), ("k", 1))
    ]
    fused = SimpleNamespace(name="layer.qk.bias", gguf="", parts=parts)
    spec = SimpleNamespace(fused=[fused], tensors=[])
    given = {name: tensor(name, 4) for name in ("layer.qk.bias", "layer.qk.scales")}
    found = split_fused(spec, given, "name")
    assert found == {
        "layer.qk.scales": given["layer.qk.scales"],
        "layer.q.bias": tensor("layer.q.bias", 3),
        "layer.k.bias": tensor("layer.k.bias", 1, offset=1012),
    }


@pytest.mark.parametrize("shape", [(9, 64), (11, 64), ()])
def test_a_tensor_of_other_rows_is_left_for_whoever_refuses_it(shape):
    given = {"layer.qkv.weight": TensorInfo("layer.qkv.weight", "F32", shape, 0, 4, "m")}
    assert split_fused(SPEC, given, "name") == given


def test_a_part_that_is_there_too_is_refused():
    given = {"layer.qkv.weight": tensor("layer.qkv.weight", 10, 64)}
    given["layer.k.weight"] = tensor("layer.k.weight", 2, 64)
    with pytest.raises(ModelFileError) as caught:
        split_fused(SPEC, given, "name")
    assert caught.value.message == (
        "model.gguf: tensor 'layer.qkv.weight': holds layer.k.weight, which is there, too"
    )
