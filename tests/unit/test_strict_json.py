"""Strict JSON, and the files that hold it: one meaning, bounded cost, regular files only."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marlin.errors import ModelFileError
from marlin.files import regular, strict_json
from marlin.files.regular import read_regular
from marlin.files.strict_json import (
    MAX_DEPTH,
    MAX_INTEGER_DIGITS,
    JsonError,
    parse_json,
    parse_json_object,
    read_json_object,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_what_json_writes_is_read_back(value):
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False)) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not valid JSON: Expecting value"),
        ("{} {}", "not valid JSON: Extra data"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' appears twice"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("1e309", "number out of range: 1e309"),
        ("1" * (MAX_INTEGER_DIGITS + 1), f"an integer of {MAX_INTEGER_DIGITS + 1} digits"),
        (b"\xef\xbb\xbf{}", "not valid JSON: Unexpected UTF-8 BOM"),
        (b'{"a": "\xff"}', "not valid JSON: not UTF-8 at byte 7"),
        ("{}".encode("utf-16"), "not valid JSON: not UTF-8 at byte 0"),
    ],
)
def test_what_is_not_strict_json_is_refused_and_says_why(text, complaint):
    with pytest.raises(JsonError) as caught:
        parse_json(text)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_nesting_ends_where_the_tokenizers_library_ends_it(opening, closing):
    def nested(levels):
        pairs = levels // opening.count("[") if opening == "[" else levels
        pairs = levels // (opening.count("[") + opening.count("{"))
        rest = levels - pairs * (opening.count("[") + opening.count("{"))
        return "[" * rest + opening * pairs + "0" + closing * pairs + "]" * rest

    parse_json(nested(MAX_DEPTH))
    for levels in (MAX_DEPTH + 1, 5000, 200_000):
        with pytest.raises(JsonError, match="nested too deeply"):
            parse_json(nested(levels))


def test_the_longest_integer_and_the_default_length_of_transformers_are_read():
    assert parse_json("9" * MAX_INTEGER_DIGITS) == int("9" * MAX_INTEGER_DIGITS)
    assert parse_json(str(int(1e30))) == int(1e30)


def test_a_model_file_must_hold_an_object():
    with pytest.raises(ModelFileError, match="x.json: a JSON object was expected, not list"):
        parse_json_object("x.json", "[1]")


def test_a_file_that_is_missing_is_its_default_or_an_error(tmp_path):
    path = str(tmp_path / "config.json")
    assert read_json_object(path, {"a": 1}) == {"a": 1}
    with pytest.raises(ModelFileError, match="config.json: cannot be opened: No such file"):
        read_json_object(path)
    (tmp_path / "config.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelFileError, match="config.json: cannot be opened: No such file"):
        read_json_object(path, {})


def test_a_link_is_followed_to_a_regular_file_only(tmp_path):
    (tmp_path / "blob").write_text('{"a": 1}')
    (tmp_path / "good.json").symlink_to("blob")
    assert read_json_object(str(tmp_path / "good.json")) == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    for number, target in enumerate(("/dev/zero", tmp_path / "pipe", tmp_path)):
        link = tmp_path / f"{number}.json"
        link.symlink_to(target)
        with pytest.raises(ModelFileError, match=f"{number}.json: not a regular file"):
            read_json_object(str(link))
    (tmp_path / "round.json").symlink_to("round.json")
    with pytest.raises(ModelFileError, match="round.json: cannot be opened"):
        read_json_object(str(tmp_path / "round.json"))


def test_a_file_that_becomes_a_pipe_while_it_is_opened_keeps_nobody_waiting(monkeypatch, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    opens = os.open

    def swapped(name, flags):
        assert flags & os.O_NONBLOCK, "it would wait for somebody who writes"
        path.unlink()
        os.mkfifo(path)
        return opens(name, flags)

    monkeypatch.setattr(regular.os, "open", swapped)
    with pytest.raises(ModelFileError, match="a.json: not a regular file"):
        regular.open_regular(str(path))


def test_a_file_longer_than_its_limit_is_refused(tmp_path):
    path = tmp_path / "long.json"
    path.write_bytes(b"{}" + b" " * 8)
    assert read_regular(str(path), 10) == path.read_bytes()
    with pytest.raises(ModelFileError, match="10 bytes; at most 9 of such a file"):
        read_regular(str(path), 9)
    with open(path, "wb") as file:
        file.truncate(strict_json.MAX_FILE_BYTES + 1)
    with pytest.raises(ModelFileError, match="at most 268435456 of such a file"):
        read_json_object(str(path))


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc on this system")
def test_a_file_that_lies_about_its_size_is_read_up_to_the_limit_only():
    assert os.stat("/proc/self/maps").st_size == 0
    with pytest.raises(ModelFileError, match="101 bytes; at most 100"):
        read_regular("/proc/self/maps", 100)
