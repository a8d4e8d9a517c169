"""Typed fields of objects from outside: types, ranges, and the names in refusals."""

import numpy as np
import pytest

from marlin.errors import ModelFileError
from marlin.files.fields import Fields, file_fields, shown, type_name

GOOD = {
    "layers": 12, "scale": 2, "tied": False, "kind": "yarn", "names": ["a", "b"],
    "rope": {"factor": 4.0, "inner": {"deep": 1}}, "none": None,
}  # fmt: skip


def refused(values, read):
    with pytest.raises(ModelFileError) as caught:
        read(file_fields("config.json", values))
    return str(caught.value)


def test_every_getter_gives_what_is_there():
    fields = file_fields("config.json", GOOD)
    assert fields.count("layers", maximum=12) == 12
    assert (fields.number("scale"), type(fields.number("scale"))) == (2.0, float)
    assert fields.flag("tied") is False
    assert fields.text("kind") == "yarn" == fields.choice("kind", ("linear", "yarn"))
    assert fields.texts("names") == ["a", "b"]
    assert fields.section("rope").number("factor") == 4.0
    assert fields.raw("names") == ["a", "b"]


@pytest.mark.parametrize("name", ["absent", "none"])
def test_null_is_absent(name):
    fields = file_fields("config.json", GOOD)
    assert fields.count(name, 7, maximum=9) == 7
    assert fields.number(name, 0.5) == 0.5
    assert fields.flag(name, True) is True
    assert fields.text(name, None) is None
    assert fields.texts(name, ()) == ()
    assert fields.choice(name, ("a",), "b") == "b"
    assert fields.section(name) is None
    assert fields.raw(name) is None
    message = refused(GOOD, lambda fields: fields.count(name, maximum=9))
    assert message == f"config.json: {name} is missing; expected an integer from 1 to 9"


@pytest.mark.parametrize(
    ("value", "read", "expected"),
    [
        (0, lambda f: f.count("x", maximum=9), "x is 0; expected an integer from 1 to 9"),
        (10, lambda f: f.count("x", 1, maximum=9), "x is 10; expected an integer from 1 to 9"),
        (True, lambda f: f.count("x"), "x is True; expected an integer of at least 1"),
        (2.0, lambda f: f.count("x"), "x is 2.0; expected an integer"),
        (0, lambda f: f.number("x"), "x is 0; expected a finite number above 0"),
        (3, lambda f: f.number("x", above=1, maximum=2), "a finite number above 1 and at most 2"),
        (-1, lambda f: f.number("x", minimum=0, maximum=2), "expected a number from 0 to 2"),
        (float("nan"), lambda f: f.number("x", minimum=0), "x is nan; expected a number from 0"),
        (float("inf"), lambda f: f.number("x"), "x is inf; expected a finite number"),
        (10**400, lambda f: f.number("x"), "expected a finite number above 0"),
        (True, lambda f: f.number("x"), "x is True; expected a finite number"),
        (1, lambda f: f.flag("x"), "x is 1; expected true or false"),
        (1, lambda f: f.text("x"), "x is 1; expected a string"),
        (["a", 1], lambda f: f.texts("x"), "x is ['a', 1]; expected an array of strings"),
        (["a"], lambda f: f.choice("x", ("a", "b")), "x is ['a']; expected one of a, b"),
        ("c", lambda f: f.choice("x", ("a", "b"), "a"), "x is 'c'; expected one of a, b"),
        ([], lambda f: f.section("x"), "x is []; expected an object"),
        ("ab" * 90, lambda f: f.flag("x"), "x is 'abababababababababab'; expected true"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_name_and_what_was_expected(value, read, expected):
    assert expected in refused({"x": value}, read)


def test_a_nested_field_is_named_with_its_path():
    message = refused(GOOD, lambda f: f.section("rope").section("inner").flag("deep"))
    assert message == "config.json: rope.inner.deep is 1; expected true or false"


def test_a_prefix_is_part_of_every_name():
    fields = file_fields("m.gguf", {"llama.x": 3, "llama.s": {"y": 1}}, "llama.")
    assert fields.count("x") == 3
    with pytest.raises(ModelFileError, match="m.gguf: llama.s.y is 1; expected a string"):
        fields.section("s").text("y")


def test_whoever_opens_an_object_says_what_a_refusal_is():
    def refuse(name, value, expected):
        raise KeyError(f"{name} must be {expected}, got {shown(value)}")

    with pytest.raises(KeyError, match='n must be an integer from 1 to 4, got "2"'):
        Fields({"n": "2"}, refuse).count("n", 1, maximum=4)


def test_defaults_stand_in_for_what_is_absent_or_null():
    fields = file_fields("config.json", GOOD).with_defaults({"layers": 3, "none": 4, "new": 5})
    assert [fields.count(name) for name in ("layers", "none", "new")] == [12, 4, 5]
    assert refused(GOOD, lambda f: f.with_defaults({"new": "x"}).count("new")).startswith(
        "config.json: new is 'x'"
    )


def test_defaults_stand_in_for_what_is_absent_or_null_and_other_nulls_stay():
    fields = file_fields("c.json", {"a": None, "b": 2, "n": None}).with_defaults({"a": 1, "b": 1})
    assert (fields.count("a"), fields.count("b")) == (1, 2)
    assert "n" in fields.values and fields.raw("n") is None


def test_whoever_refuses_must_raise():
    with pytest.raises(AssertionError, match="must raise"):
        Fields({"n": 1}, lambda name, value, expected: None).text("n")


@pytest.mark.parametrize(
    ("value", "name"),
    [({}, "an object"), ([], "an array"), ("", "a string"), (True, "a boolean"),
     (1, "an integer"), (1.0, "a number"), (None, "null")],
)  # fmt: skip
def test_a_value_of_json_has_a_type_by_name(value, name):
    assert type_name(value) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1}, "an object"), ([1], "an array"), ("a\"b", '"a\\"b"'), (True, "true"),
        (None, "null"), (1.5, "1.5"), ("é", '"\\u00e9"'),
        ("a" * 78, '"' + "a" * 78 + '"'), ("a" * 79, '"' + "a" * 79 + "..."),
        (10**79, "1" + "0" * 79), (10**80, "1" + "0" * 79 + "..."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_shown_in_eighty_characters(value, text):
    assert shown(value) == text


def test_an_array_of_gguf_metadata_is_shown_in_one_line():
    widths = np.arange(-(10**8), 10**8, 10**7)  # numpy writes these in several lines
    with pytest.raises(ModelFileError) as caught:
        file_fields("m.gguf", {"widths": widths}).fail("widths", "alike")
    text = str(caught.value)
    assert "\n" not in text and "array([-100000000, -90000000" in text and "alike" in text


def test_numbers_are_within_their_bounds_and_one_beyond_is_refused():
    fields = file_fields("c.json", {"x": 2, "y": 2.5, "z": [1, 3]})
    assert fields.count("x", minimum=2, maximum=2) == 2
    assert fields.number("y", minimum=2.5, maximum=2.5) == 2.5
    assert fields.number("y", above=2.4) == 2.5
    assert fields.counts("z", 1, 3) == [1, 3] and fields.counts("x") == [2]
    assert fields.counts("absent") == []
    for read in (
        lambda: fields.count("x", minimum=3),
        lambda: fields.count("x", maximum=1),
        lambda: fields.number("y", above=2.5),
        lambda: fields.number("y", minimum=2.6),
        lambda: fields.number("y", maximum=2.4),
        lambda: fields.counts("z", 1, 2),
        lambda: fields.counts("z", 2),
        lambda: fields.counts("y"),
    ):
        with pytest.raises(ModelFileError):
            read()


def test_items_of_an_array_are_named_by_their_place():
    fields = file_fields("c.json", {"p.a": [{"b": 1}, "x"]}, "p.")
    items = fields.elements("a")
    assert list(items.values) == ["p.a[0]", "p.a[1]"]
    assert items.object("p.a[0]").count("b") == 1
    with pytest.raises(ModelFileError, match=r"c.json: p.a\[1\] is 'x'; expected an object"):
        items.object("p.a[1]")


def test_whatever_is_taken_out_of_an_object_knows_its_file():
    fields = file_fields("config.json", {"a.list": [{"n": 1}], "a.inner": {"n": 1}}, "a.")
    items = fields.elements("list")
    taken = [fields.with_defaults({"b": 1}), items, items.object("a.list[0]")]
    taken += [fields.object("inner"), fields.section("inner")]
    assert {part.path for part in taken} == {"config.json"}
