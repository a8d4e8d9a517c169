"""The GGUF reader: what it reads, and that a hostile file costs one ModelFileError and no more."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
from gguf_builder import build, f32, string, tensor_entry
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin.errors import ModelFileError
from marlin.files.regular import open_regular
from marlin.weights import gguf
from marlin.weights.gguf import GGUFFile
from marlin.weights.tensor_file import read_bytes

METADATA = [
    ("general.architecture", "str", "llama"),
    ("a.u8", "u8", 200),
    ("a.i8", "i8", -3),
    ("a.u16", "u16", 65535),
    ("a.i16", "i16", -2),
    ("a.i32", "i32", -70000),
    ("a.u64", "u64", 1 << 63),
    ("a.i64", "i64", -(1 << 62)),
    ("a.f64", "f64", 0.1),
    ("a.bool", "bool", True),
    ("tokens", "arr:str", ["a", "", "Ġé", "日本"]),
    ("scores", "arr:f32", [0.5, -1.5]),
    ("flags", "arr:bool", [True, False]),
    ("none", "arr:str", []),
]
MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
TENSORS = [
    ("matrix", "F32", (2, 3), f32(MATRIX)),
    ("blocks", "Q8_0", (3, 64), bytes(range(204))),
]


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def refused(write, data):
    with pytest.raises(ModelFileError) as caught:
        GGUFFile(write(data))
    assert "model.gguf" in caught.value.message
    return caught.value.message


def header(num_tensors=0, num_entries=0, body=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_entries) + body


def test_every_metadata_type_reads_back_as_its_python_value(write):
    metadata = GGUFFile(write(build(METADATA))).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["a.u8"] == 200 and metadata["a.i8"] == -3
    assert metadata["a.u16"] == 65535 and metadata["a.i16"] == -2
    assert metadata["a.i32"] == -70000
    assert metadata["a.u64"] == 1 << 63 and metadata["a.i64"] == -(1 << 62)
    assert metadata["a.f64"] == 0.1
    assert metadata["a.bool"] is True
    assert metadata["tokens"] == ["a", "", "Ġé", "日本"]
    assert metadata["scores"].tolist() == [0.5, -1.5] and metadata["scores"].dtype == np.float32
    assert metadata["flags"].tolist() == [True, False] and metadata["flags"].dtype == bool
    assert metadata["none"] == []


@pytest.mark.parametrize("version", [2, 3])
def test_tensor_shapes_are_outermost_first_and_offsets_absolute(write, version):
    file = GGUFFile(write(build(METADATA, TENSORS, version)))
    matrix, blocks = file.tensors["matrix"], file.tensors["blocks"]
    assert (matrix.dtype, matrix.shape, matrix.num_bytes) == ("F32", (2, 3), 24)
    assert (blocks.dtype, blocks.shape, blocks.num_bytes) == ("Q8_0", (3, 64), 3 * 2 * 34)
    assert matrix.offset % 32 == 0 and blocks.offset == matrix.offset + 32
    assert read_bytes(matrix).view("<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert read_bytes(blocks, 34, 2).tolist() == [34, 35]


def test_the_alignment_that_the_file_states_is_used(write):
    data = build([("general.alignment", "u32", 128)], TENSORS, alignment=128)
    assert GGUFFile(write(data)).tensors["blocks"].offset % 128 == 0


@pytest.mark.parametrize("alignment", [0, 4, 48, 1 << 21])
def test_an_alignment_that_is_no_sensible_power_of_two_is_refused(write, alignment):
    data = build([("general.alignment", "u32", alignment)], TENSORS)
    assert "alignment" in refused(write, data)


def test_an_alignment_of_another_type_is_refused(write):
    assert "alignment" in refused(write, build([("general.alignment", "str", "32")], TENSORS))


def test_a_file_of_another_kind_is_refused_by_its_first_bytes(write):
    assert "not a GGUF file" in refused(write, build(magic=b"GGML"))
    assert "empty" in refused(write, b"")


@pytest.mark.parametrize("read_bytes", [1, 7, 64, 300])
def test_a_header_is_the_same_in_however_many_pieces_it_is_read(read_bytes, write, monkeypatch):
    path = write(build(METADATA, TENSORS))
    whole = GGUFFile(path)
    monkeypatch.setattr(gguf, "READ_BYTES", read_bytes)
    piecewise = GGUFFile(path)
    assert str(piecewise.metadata) == str(whole.metadata)
    assert piecewise.tensors == whole.tensors


class Failing:
    """A file that another process truncates after its first read, or whose disk fails."""

    def __init__(self, path, how):
        self._file, self._path, self._how = open_regular(path), path, how

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, num_bytes):
        if self._file.tell() and self._how == "fails":
            raise OSError(5, "Input/output error")
        data = self._file.read(num_bytes)
        os.truncate(self._path, 40)
        return data


@pytest.mark.parametrize(
    ("how", "complaint"),
    [("truncated", "became shorter than .* while it was read"), ("fails", "Input/output error")],
)
def test_a_file_that_is_truncated_or_fails_while_its_header_is_read_is_refused(
    how, complaint, write, monkeypatch
):
    path = write(build(METADATA, TENSORS))
    monkeypatch.setattr(gguf, "READ_BYTES", 100)
    monkeypatch.setattr(gguf, "open_regular", lambda path: Failing(path, how))
    with pytest.raises(ModelFileError, match=complaint):
        GGUFFile(path)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", ".", "pipe", "nul\0byte"):
        with pytest.raises(ModelFileError):
            GGUFFile(tmp_path / name)


def test_other_versions_and_big_endian_files_are_named(write):
    assert "version 1" in refused(write, build(version=1))
    assert "version 4" in refused(write, build(version=4))
    assert "big-endian" in refused(write, b"GGUF" + struct.pack(">IQQ", 3, 0, 0))


@pytest.mark.parametrize("count", [1, 1 << 40, (1 << 64) - 1])
def test_counts_beyond_the_file_are_refused_before_anything_is_allocated(write, count):
    tracemalloc.start()
    assert "count" in refused(write, header(num_tensors=count))
    assert "count" in refused(write, header(num_entries=count))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("length", [9, 1 << 62, (1 << 64) - 1])
def test_a_string_past_the_end_is_refused(write, length):
    body = string("key") + struct.pack("<IQ", 8, length) + b"short"
    assert "truncated" in refused(write, header(0, 1, body))


@pytest.mark.parametrize("length", [2, 1 << 61, (1 << 64) - 1])
@pytest.mark.parametrize("kind", [4, 8])
def test_an_array_past_the_end_is_refused(write, kind, length):
    body = string("key") + struct.pack("<IIQ", 9, kind, length) + b"\0" * 7
    assert "'key'" in refused(write, header(0, 1, body))


def test_nested_arrays_and_unknown_value_types_are_refused(write):
    nested = string("key") + struct.pack("<IIQIQ", 9, 9, 1, 9, 0)
    assert "array of arrays" in refused(write, header(0, 1, nested))
    assert "unknown value type 13" in refused(
        write, header(0, 1, string("key") + struct.pack("<IQ", 13, 0))
    )
    assert "unknown element type 77" in refused(
        write, header(0, 1, string("key") + struct.pack("<IIQ", 9, 77, 0))
    )


def test_a_key_of_any_length_makes_a_message_of_a_line(write):
    entry = string("k" * 60_000) + struct.pack("<IQ", 13, 0)
    text = refused(write, header(0, 1, entry))
    assert len(text) < 1000 and "kkk ... kkk" in text
    assert "has unknown value type 13" in text


def test_a_bool_is_zero_or_one(write):
    assert "value 2" in refused(write, header(0, 1, string("key") + struct.pack("<IB", 7, 2)))
    array = string("key") + struct.pack("<IIQBB", 9, 7, 2, 1, 9)
    assert "value 9" in refused(write, header(0, 1, array))


def test_text_that_is_not_utf8_is_refused_wherever_it_stands(write):
    assert "UTF-8" in refused(write, build([(b"\xff", "u8", 1)]))
    assert "UTF-8" in refused(write, build([("key", "str", b"\xc3")]))
    assert "string 1 of" in refused(write, build([("key", "arr:str", [b"a", b"\x80"])]))
    assert "UTF-8" in refused(write, build([], [(b"\xfe", "F32", (1,), f32([1]))]))


def test_duplicate_keys_and_tensor_names_are_refused(write):
    assert "appears twice" in refused(write, build([("k", "u8", 1), ("k", "u8", 1)]))
    assert "'matrix'" in refused(write, build([], [TENSORS[0], TENSORS[0]]))


def test_an_empty_key_is_refused(write):
    assert "0 bytes long" in refused(write, build([("", "u8", 1)]))


@pytest.mark.parametrize("shape", [(0,), (3, 0), ((1 << 64) - 1,), (1 << 63, 2)])
def test_dimensions_of_zero_or_negative_are_refused(write, shape):
    body = tensor_entry("t", shape, 0, 0)
    assert "at least 1" in refused(write, header(1, 0, body) + bytes(64))


def test_dimensions_whose_product_overflows_64_bits_are_refused(write):
    body = tensor_entry("t", (1 << 32, 1 << 32, 1 << 31), 0, 0)
    message = refused(write, header(1, 0, body) + bytes(64))
    assert "'t'" in message and "truncated" in message


@pytest.mark.parametrize("num_dims", [0, 5, (1 << 32) - 1])
def test_the_number_of_dimensions_is_limited(write, num_dims):
    body = string("t") + struct.pack("<I", num_dims) + bytes(64)
    assert "dimensions" in refused(write, header(1, 0, body))


def test_unsupported_and_unknown_tensor_types_are_named(write):
    message = refused(write, header(1, 0, tensor_entry("t", (256,), 16, 0)) + bytes(400))
    assert "IQ2_XXS" in message and "Q4_K" in message
    message = refused(write, header(1, 0, tensor_entry("t", (256,), 999, 0)) + bytes(400))
    assert "type 999 (unknown)" in message


def test_rows_that_are_not_whole_blocks_are_refused(write):
    message = refused(write, header(1, 0, tensor_entry("t", (4, 33), 8, 0)) + bytes(400))
    assert "blocks of 32" in message and "33" in message


@pytest.mark.parametrize("offset", [1, 16, (1 << 64) - 1])
def test_an_offset_off_the_alignment_is_refused(write, offset):
    message = refused(write, header(1, 0, tensor_entry("t", (1,), 0, offset)) + bytes(64))
    assert "not a multiple of the alignment 32" in message


@pytest.mark.parametrize("offset", [64, 1 << 40, (1 << 64) - 32])
def test_an_offset_past_the_end_is_refused(write, offset):
    message = refused(write, header(1, 0, tensor_entry("t", (1,), 0, offset)) + bytes(64))
    assert "truncated" in message and "'t'" in message


def test_tensors_that_overlap_are_refused(write):
    body = tensor_entry("a", (16,), 0, 0) + tensor_entry("b", (1,), 0, 32)
    assert "overlaps that of 'a'" in refused(write, header(2, 0, body) + bytes(256))


def test_a_file_cut_at_any_byte_is_refused(write):
    data = build(METADATA, TENSORS)
    end = len(data) - (-204 % 32)  # the padding after the last tensor may be missing
    assert GGUFFile(write(data[:end])).tensors.keys() == {"matrix", "blocks"}
    for length in range(end):
        refused(write, data[:length])


@settings(max_examples=400)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, 700), st.one_of(st.integers(0, 255), st.sampled_from([0, 255]))),
        min_size=1,
        max_size=8,
    )
)
def test_flipped_bytes_end_in_a_model_file_error_or_a_valid_header(write, flips):
    data = bytearray(build(METADATA, TENSORS))
    for position, value in flips:
        data[position % len(data)] = value
    path = write(bytes(data))
    try:
        file = GGUFFile(path)
    except ModelFileError:
        return
    for info in file.tensors.values():
        assert info.offset + info.num_bytes <= len(data)
        assert len(read_bytes(info)) == info.num_bytes


def test_the_demo_model_has_its_tensors_and_tokens(demo_model_path):
    file = GGUFFile(demo_model_path)
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    assert len(file.metadata["tokenizer.ggml.merges"]) == 48900
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    assert len(file.tensors) == 272


def test_a_file_that_shrank_since_its_header_was_read_is_an_error_that_names_the_tensor(write):
    path = write(build([], TENSORS))
    info = GGUFFile(path).tensors["blocks"]
    os.truncate(path, info.offset + 10)
    with pytest.raises(ModelFileError, match="'blocks'.*204 bytes expected.*holds 10"):
        read_bytes(info)
