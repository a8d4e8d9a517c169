"""A GGUF header at its bounds: the most that is read, one more, and what each refusal says."""

import struct

import pytest
from gguf_builder import build, entry, f32, string, tensor_entry
from test_gguf import header

from marlin.errors import ModelFileError
from marlin.weights.gguf import GGUFFile

ONE = ("t", "F32", (1,), f32([1.0]))
PAD = bytes(4096)


@pytest.fixture
def read(tmp_path):
    """read(data) -> GGUFFile; read.refused(data) -> what is said, without the path."""
    path = tmp_path / "model.gguf"

    def read(data):
        path.write_bytes(data)
        return GGUFFile(path)

    def refused(data):
        with pytest.raises(ModelFileError) as caught:
            read(data)
        return caught.value.message.removeprefix(f"{path}: ")

    read.refused = refused
    return read


def test_the_longest_key_is_65535_bytes_and_the_longest_name_1024(read):
    assert list(read(build([("k" * 65535, "u8", 1)])).metadata) == ["k" * 65535]
    said = read.refused(build([("k" * 65536, "u8", 1)]))
    assert said.startswith("a metadata key is 65536 bytes long; 1 to 65535 are allowed")
    _, *rest = ONE
    assert list(read(build([], [("n" * 1024, *rest)])).tensors) == ["n" * 1024]
    said = read.refused(build([], [("n" * 1025, *rest)]))
    assert said.startswith("a tensor name is 1025 bytes long; 1 to 1024 are allowed")


@pytest.mark.parametrize("alignment", [8, 16, 32, 1 << 20])
def test_alignments_from_8_to_a_mebibyte_are_read(read, alignment):
    data = build([("general.alignment", "u32", alignment)], [ONE], alignment=alignment)
    assert read(data).tensors["t"].offset % alignment == 0


@pytest.mark.parametrize("alignment", [0, 1, 4, 7, 9, 24, 1 << 21])
def test_another_alignment_is_refused_with_what_it_may_be(read, alignment):
    said = read.refused(build([("general.alignment", "u32", alignment)]))
    assert said == (
        f"general.alignment is {alignment}; expected a power of two from 8 to 1048576"
    )  # fmt: skip


def test_a_tensor_has_up_to_four_dimensions(read):
    data = build([], [("t", "F32", (1, 2, 1, 2), f32([1, 2, 3, 4]))])
    assert read(data).tensors["t"].shape == (1, 2, 1, 2)
    said = read.refused(header(1, 0, tensor_entry("t", (1,) * 5, 0, 0)) + PAD)
    assert "5 dimensions; 1 to 4 are allowed" in said


def test_a_count_is_bounded_by_the_smallest_things_that_it_could_count(read):
    smallest = entry("k", "u8", 1)
    assert len(smallest) == 14
    assert len(read(header(0, 1, smallest)).metadata) == 1
    said = read.refused(header(0, 2, smallest))
    assert said.startswith("metadata count is 2, more than the rest of the file could hold")
    tensor = tensor_entry("t", (1,), 0, 0)
    assert len(tensor) == 33
    # 33 bytes of an entry, then its data; the count is behind 16 bytes and before another count.
    said = read.refused(header(2, 0, tensor))
    assert said.startswith("tensor count is 2, more than the rest of the file could hold")
    assert not read.refused(header(1, 0, tensor)).startswith("tensor count")
    with_room = b"".join(tensor_entry(name, (1,), 0, 32 * i) for i, name in enumerate("ab"))
    assert len(read(header(2, 0, with_room) + PAD).tensors) == 2


def array(kind, length, body=b""):
    return string("key") + struct.pack("<IIQ", 9, kind, length) + body


@pytest.mark.parametrize(("kind", "size"), [(0, 1), (4, 4), (10, 8), (8, 8)])
def test_an_array_is_bounded_by_what_its_elements_take(read, kind, size):
    body = bytes(3 * size)  # numbers, or strings without characters
    assert len(read(header(0, 1, array(kind, 3, body))).metadata["key"]) == 3
    said = read.refused(header(0, 1, array(kind, 4, body)))
    assert said.startswith("the length of metadata 'key' is 4, more than the rest of the file")


TENSOR_FAULTS = [
    (tensor_entry("t", (0,), 0, 0), "dimensions [0]; each must be at least 1"),
    (tensor_entry("t", (1, 1), 0, 0)[:-12] + struct.pack("<IQ", 16, 0),
     "type 16 (IQ2_XXS) is not supported; "),
    (tensor_entry("t", (1,), 99, 0), "type 99 (unknown) is not supported; "),
    (tensor_entry("t", (1,), 0, 8), "offset 8 is not a multiple of the alignment 32"),
    (tensor_entry("t", (1,), 0, 0) * 2, "the name appears twice"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), TENSOR_FAULTS)
def test_a_tensor_that_cannot_be_is_refused_by_its_name(read, body, message):
    said = read.refused(header(2 if "twice" in message else 1, 0, body) + PAD)
    assert said.startswith(f"tensor 't': {message}") and "(at byte " in said


HEADER_FAULTS = [
    (b"GGML" + PAD, "not a GGUF file: it starts with b'GGML', expected b'GGUF' (at byte 0)"),
    (b"GG", "not a GGUF file: it starts with b'GG', expected b'GGUF' (at byte 0)"),
    (b"", "the file is empty"),
    (b"GGUF\3\0", "truncated: version needs 4 bytes and 2 are left (at byte 4)"),
    (b"GGUF" + struct.pack("<I", 1), "GGUF version 1; versions 2 and 3 are supported (at byte 8)"),
    (b"GGUF" + struct.pack("<I", 4), "GGUF version 4; versions 2 and 3 are supported (at byte 8)"),
    *(
        (b"GGUF" + struct.pack(">I", version),
         "a big-endian GGUF file; only little-endian files are supported (at byte 8)")
        for version in (1, 2, 3)
    ),
    (b"GGUF" + struct.pack("<I", 3) + bytes(4),
     "truncated: tensor count needs 8 bytes and 4 are left (at byte 8)"),
    (header(0, 1, string("k") + struct.pack("<I", 13) + PAD),
     "metadata 'k' has unknown value type 13 (at byte 37)"),
    (header(0, 1, string("k") + struct.pack("<I", 8) + struct.pack("<Q", 9) + b"ab"),
     "truncated: metadata 'k' needs 9 bytes and 2 are left (at byte 45)"),
    (header(0, 2, entry("k", "u8", 1) * 2), "metadata key 'k' appears twice (at byte 47)"),
    (header(0, 1, array(8, 2, string("ab") + struct.pack("<Q", 9) + b"c")),
     "truncated: string 1 of metadata 'key' runs past the end (at byte 51)"),
    (header(0, 1, array(8, 2, string("abcdefgh") + b"12")),
     "truncated: metadata 'key' ends after 1 of 2 strings (at byte 51)"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), HEADER_FAULTS)
def test_a_header_that_cannot_be_read_says_what_and_where(read, data, message):
    assert read.refused(data) == message


def test_data_may_end_with_the_file_and_not_after_it(read):
    data = build([], [ONE])
    end = len(data) - 28  # the padding after one float
    info = read(data[:end]).tensors["t"]
    assert info.offset + info.num_bytes == end
    said = read.refused(data[: end - 1])
    assert said == (
        f"tensor 't': truncated: its data is bytes {end - 4} to {end}, and the file has {end - 1}"
    )


def test_tensors_may_touch_and_not_overlap(read):
    pair = tensor_entry("a", (8,), 0, 0) + tensor_entry("b", (8,), 0, 32)
    assert set(read(header(2, 0, pair) + PAD).tensors) == {"a", "b"}
    pair = tensor_entry("b", (8,), 0, 32) + tensor_entry("a", (9,), 0, 0)
    said = read.refused(header(2, 0, pair) + PAD)
    assert said == "tensor 'b': its data overlaps that of 'a'"
