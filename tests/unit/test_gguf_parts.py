"""GGUF models in several files: what makes a whole, and the sentence where nothing does."""

import numpy as np
import pytest
from gguf_builder import build, f32

from marlin.errors import ModelFileError
from marlin.files.snapshot import Snapshot
from marlin.files.split_name import parts_of, prefix_of
from marlin.weights.gguf_parts import read_gguf
from marlin.weights.tensor_file import read_bytes


def part(number, count, names, total=None, **keys):
    """The bytes of part `number`, from 0; its tensors hold the length of their names."""
    metadata = {"split.no": ("u16", number), "split.count": ("u16", count)}
    if total is not None:
        metadata["split.tensors.count"] = ("i32", total)
    tensors = [(name, "F32", (2,), f32([len(name)] * 2)) for name in names]
    return build([(key, *value) for key, value in (metadata | keys).items()], tensors)


@pytest.fixture
def parts(tmp_path):
    """Paths of a model in three files, the first of which has no tensors."""
    paths = [tmp_path / f"m-{i + 1:05}-of-00003.gguf" for i in range(3)]
    own = {"general.architecture": ("str", "llama")}
    paths[0].write_bytes(part(0, 3, [], 3, **own))
    paths[1].write_bytes(part(1, 3, ["a", "bb"], 3))
    paths[2].write_bytes(part(2, 3, ["ccc"], 3))
    return paths


def refusal(path):
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    return str(caught.value)


def test_the_first_part_brings_the_tensors_of_all(parts):
    file = read_gguf(parts[0])
    assert file.metadata["general.architecture"] == "llama"
    assert [info.path for info in file.tensors.values()] == [
        *(str(parts[1]), str(parts[1]), str(parts[2])),
    ]
    found = {name: read_bytes(info).view(np.float32)[0] for name, info in file.tensors.items()}
    assert found == {"a": 1, "bb": 2, "ccc": 3}


def test_a_missing_part_is_named(parts):
    parts[2].unlink()
    assert "m-00003-of-00003.gguf is missing" in refusal(parts[0])


def test_another_part_than_the_first_is_refused_with_the_first_ones_name(parts):
    assert "part 2 of 3; give the first one, m-00001-of-00003.gguf" in refusal(parts[1])


def test_a_part_under_a_name_of_its_own_is_refused(parts, tmp_path):
    parts[0].rename(tmp_path / "mine.gguf")
    assert "one of 3 parts; their names end in -00001-of-00003.gguf" in refusal(
        tmp_path / "mine.gguf"
    )


@pytest.mark.parametrize(
    "index, changed, words",
    [
        (1, part(2, 3, ["a", "bb"]), "split.no is 2; expected 1"),
        (2, part(2, 4, ["ccc"]), "split.count is 4; expected 3"),
        (2, part(2, 3, ["bb"]), "'bb': is in m-00002-of-00003.gguf, too"),
        (2, part(2, 3, ["ccc", "dddd"]), "split.tensors.count is 3; expected the 4"),
        (2, b"GGUF", "m-00003-of-00003.gguf: truncated"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(index, changed, words, parts):
    parts[index].write_bytes(changed)
    assert words in refusal(parts[0])


def test_a_part_that_changes_is_noticed_as_one_file_is(parts):
    snapshot = Snapshot(parts[0])
    snapshot.check_same()
    parts[2].unlink()
    with pytest.raises(ModelFileError, match="00003-of-00003.gguf: was changed"):
        snapshot.check_same()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("q-00002-of-00003.gguf", (2, 3)),
        ("q-00004-of-00003.gguf", (1, 1)),
        ("q-00000-of-00003.gguf", (1, 1)),
        ("q-1-of-3.gguf", (1, 1)),
        ("q.gguf", (1, 1)),
    ],
)
def test_parts_are_numbered_from_one_with_five_digits(name, expected):
    number, paths = parts_of(f"/models/{name}")
    assert (number, len(paths)) == expected
    assert paths[number - 1] == f"/models/{name}"


def test_a_model_in_parts_is_called_by_what_their_names_share():
    assert prefix_of("qwen3-8b-00001-of-00002.gguf") == "qwen3-8b"
    assert prefix_of("qwen3-8b.gguf") == "qwen3-8b"
