"""The safetensors reader: single files, shards, and files that lie."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from marlin.errors import ModelFileError
from marlin.weights.safetensors_file import SafetensorsFile, SafetensorsFolder
from marlin.weights.tensor_file import read_bytes


def entry(dtype="F32", shape=(2, 3), begin=0, end=24):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def build(header, data=bytes(24)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        return path

    return write


def refused(write, data):
    with pytest.raises(ModelFileError) as caught:
        SafetensorsFile(write(data))
    assert "model.safetensors" in caught.value.message
    return caught.value.message


def test_a_file_of_the_reference_writer_reads_back(tmp_path):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([1, 2, 3], np.uint8),
        "half": np.array([[0.5]], np.float16),
        "scalar": np.array(7, np.int64),
    }
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        info = file.tensors[name]
        assert info.shape == array.shape
        assert read_bytes(info).tobytes() == array.tobytes()
    assert file.tensors["half"].dtype == "F16" and file.tensors["scalar"].dtype == "I64"


def test_an_empty_file_and_a_header_past_the_end_are_refused(write):
    assert "empty" in refused(write, b"")
    assert "at least 8" in refused(write, b"1234567")
    assert "truncated" in refused(write, (100).to_bytes(8, "little") + b"{}")


def test_a_header_length_over_the_limit_is_refused_without_reading_it(write):
    assert "over the limit" in refused(write, ((1 << 64) - 1).to_bytes(8, "little") + b"{}")
    assert "over the limit" in refused(write, b"GGUF\3\0\0\0" + bytes(64))


@pytest.mark.parametrize(
    "header, expected",
    [
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"\xff{}", "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"t": {"dtype": "U8", "dtype": "F32"}}', "appears twice"),
        (json.dumps({"t": entry()}).encode("utf-16"), "not valid JSON"),
        ({"__metadata__": {"a": 1}}, "expected a string"),
        ({"__metadata__": []}, "not a valid safetensors file"),
        ({"t": []}, "tensor 't': not a valid safetensors file"),
        ({"t": {"dtype": "F32", "shape": [6]}}, "missing field `data_offsets`"),
        ({"t": entry(dtype="F12")}, "tensor 't': not a valid safetensors file"),
        ({"t": entry(dtype="Q8_0")}, "unknown variant `Q8_0`"),
        ({"t": entry(dtype="C64", shape=(3,))}, "dtype 'C64' is not supported; BF16, BOOL, F16"),
        ({"t": entry(dtype=[])}, "tensor 't': not a valid"),
        ({"t": entry(shape=(-2, -3))}, "tensor 't': not a valid"),
        ({"t": entry(shape=(2.0, 3))}, "tensor 't': not a valid"),
        ({"t": entry(shape=(True, 6))}, "tensor 't': not a valid"),
        ({"t": entry(shape=[1 << 62] * 1000)}, "tensor 't': not a valid"),
        ({"t": entry(shape=[1] * 8 + [6])}, "tensor 't': has 9 dimensions, over 8"),
        ({"t": entry(shape=[1 << 32, 1 << 32])}, "overflow computing buffer size"),
        ({"t": entry(end=23)}, "tensor 't': not a valid safetensors file: invalid shape"),
        ({"t": entry(begin=24, end=0)}, "invalid offset for tensor `t`"),
        ({"t": entry() | {"data_offsets": [0]}}, "tensor 't': not a valid"),
        ({"t": entry() | {"data_offsets": [0, -1]}}, "tensor 't': not a valid"),
    ],
)
def test_a_malformed_header_is_refused_and_says_why(write, header, expected):
    assert expected in refused(write, build(header))


def test_a_header_may_say_more_than_is_read(write):
    header = {"__metadata__": None, "t": entry() | {"more": 1}}
    file = SafetensorsFile(write(build(header)))
    assert file.metadata == {} and file.tensors["t"].shape == (2, 3)


def test_a_duplicate_tensor_name_is_refused(write):
    one = json.dumps(entry())
    text = f'{{"t": {one}, "t": {one}}}'.encode()
    assert "'t' appears twice" in refused(write, build(text))


def test_data_must_follow_without_overlap_hole_or_rest(write):
    a, b = entry(shape=(2,), end=8), entry(shape=(2,), begin=4, end=12)
    assert "invalid offset for tensor `b`" in refused(write, build({"a": a, "b": b}, bytes(12)))
    b = entry(shape=(2,), begin=12, end=20)
    assert "invalid offset for tensor `b`" in refused(write, build({"a": a, "b": b}, bytes(20)))
    assert "invalid offset for tensor `b`" in refused(write, build({"b": b}, bytes(20)))
    data = build({"a": a}, bytes(7))
    ends = f"not fully covered (its tensors end at byte {len(data) + 1}, and it has {len(data)})"
    assert ends in refused(write, data)
    data = build({"a": a}, bytes(9))
    ends = f"not fully covered (its tensors end at byte {len(data) - 1}, and it has {len(data)})"
    assert ends in refused(write, data)


def test_entries_may_stand_in_any_order(write):
    b, a = entry(shape=(2,), begin=8, end=16), entry(shape=(2,), end=8)
    assert list(SafetensorsFile(write(build({"b": b, "a": a}, bytes(16)))).tensors) == ["a", "b"]


def test_a_file_cut_at_any_byte_is_refused(write):
    data = build({"__metadata__": {"k": "v"}, "t": entry()})
    SafetensorsFile(write(data))
    for length in range(len(data)):
        refused(write, data[:length])


@settings(max_examples=300)
@given(flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_end_in_a_model_file_error_or_a_valid_header(write, flips):
    data = bytearray(build({"__metadata__": {"k": "v"}, "t": entry(), "é": entry("U8", (0,), 24)}))
    for position, value in flips:
        data[position % len(data)] = value
    try:
        file = SafetensorsFile(write(bytes(data)))
    except ModelFileError:
        return
    for info in file.tensors.values():
        assert info.offset + info.num_bytes <= len(data)


def write_shards(folder, weight_map):
    save_file({"a": np.ones(3, np.float32)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(2, np.float32)}, folder / "model-00002-of-00002.safetensors")
    index = {"metadata": {"total_size": 20}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def test_the_tensors_of_all_shards_are_found_through_the_index(tmp_path):
    write_shards(tmp_path, SHARDS)
    tensors = SafetensorsFolder(tmp_path).tensors
    assert read_bytes(tensors["a"]).view("<f4").tolist() == [1, 1, 1]
    assert tensors["b"].path.endswith("model-00002-of-00002.safetensors")


def test_tensors_that_the_index_omits_are_those_of_the_shards_it_names(tmp_path):
    write_shards(tmp_path, SHARDS)
    extra = {"a": np.ones(3, np.float32), "bias": np.full(2, 5, np.float32)}
    save_file(extra, tmp_path / SHARDS["a"])
    save_file({"other": np.ones(1, np.float32)}, tmp_path / "unnamed.safetensors")
    tensors = SafetensorsFolder(tmp_path).tensors
    assert tensors.keys() == {"a", "b", "bias"}
    assert read_bytes(tensors["bias"]).view("<f4").tolist() == [5, 5]


def test_of_a_tensor_in_two_shards_the_index_says_which_is_meant(tmp_path):
    write_shards(tmp_path, SHARDS)
    both = {"b": np.zeros(2, np.float32), "a": np.full(3, 9, np.float32)}
    save_file(both, tmp_path / SHARDS["b"])
    tensors = SafetensorsFolder(tmp_path).tensors
    assert read_bytes(tensors["a"]).view("<f4").tolist() == [1, 1, 1]
    both["twice"] = np.ones(1, np.float32)
    save_file(both, tmp_path / SHARDS["b"])
    save_file({"a": both["a"], "twice": both["twice"]}, tmp_path / SHARDS["a"])
    with pytest.raises(ModelFileError, match="'twice': is in model-00001.* names neither"):
        SafetensorsFolder(tmp_path)


def test_a_folder_with_one_file_needs_no_index(tmp_path):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    assert SafetensorsFolder(tmp_path).tensors.keys() == {"a"}


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="neither model.safetensors nor"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    "file_name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b.safetensors",
     "x\0.safetensors", ".hidden.safetensors", "weights.bin", 7, None],
)  # fmt: skip
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path, file_name):
    (tmp_path / "secret.safetensors").write_bytes(build({"a": entry()}))
    (tmp_path / "model").mkdir()
    write_shards(tmp_path / "model", {"a": file_name})
    with pytest.raises(ModelFileError, match="plain name"):
        SafetensorsFolder(tmp_path / "model")


def test_a_missing_shard_and_a_tensor_its_shard_lacks_are_refused(tmp_path):
    write_shards(tmp_path, SHARDS | {"c": SHARDS["a"]})
    with pytest.raises(ModelFileError, match="'c'.*does not hold it"):
        SafetensorsFolder(tmp_path)
    (tmp_path / SHARDS["b"]).unlink()
    with pytest.raises(ModelFileError, match="model-00002-of-00002"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_weight_map_is_refused(tmp_path, weight_map):
    write_shards(tmp_path, weight_map)
    with pytest.raises(ModelFileError, match="weight_map"):
        SafetensorsFolder(tmp_path)


TRUNCATED = """
import os, sys
from marlin.weights import safetensors_file
library = safetensors_file.safe_open
def open_truncated(place, *how):
    os.truncate(sys.argv[1], 0)
    return library(place, *how)
safetensors_file.safe_open = open_truncated
print(list(safetensors_file.SafetensorsFile(sys.argv[1]).tensors))
"""


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memfd_create")
def test_a_file_that_is_truncated_while_the_library_opens_it_is_no_bus_error(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(5000, np.float32)}, path)
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATED, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "['a']\n", "")


def test_a_limit_on_the_length_of_files_refuses_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(5000, np.float32)}, path)
    code = TRUNCATED.replace("os.truncate(sys.argv[1], 0)", "")
    code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (0, 0)); {code.strip()}"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "['a']\n"), done.stderr
