"""What the text of an option means, at the edges of what it may be, and what a refusal asks for."""

import pytest

from marlin import option_values as values
from marlin.commands import plan

NAME = "n" * values.MAX_NAME_CHARACTERS
TAKEN = [
    (values.whole_number(0, 65535), "0", 0),
    (values.whole_number(0, 65535), "65535", 65535),
    (values.whole_number(1), "007", 7),
    (values.whole_number(1), "9" * 18, 10**18 - 1),
    (values.number, "-1.5", -1.5),
    (values.number, "1e9", 1e9),
    (values.seconds, "0.001", 0.001),
    (values.seconds, "999999999", 999999999.0),
    (values.level, "debug", "DEBUG"),
    (values.level, "ERROR", "ERROR"),
    (values.one_of(("a", "b")), "b", "b"),
    (values.tiled_size, "16", 16),
    (values.tiled_size, "4096", 4096),
    (values.switch, "true", True),
    (values.switch, "false", False),
    (values.model_names, "a", "a"),
    (values.model_names, f"a b,{NAME}", f"a b,{NAME}"),
    (values.model_names, ",".join(map(str, range(16))), ",".join(map(str, range(16)))),
    (values.address, "localhost", "127.0.0.1"),
    (values.address, "::1", "::1"),
    (values.address, "0.0.0.0", "0.0.0.0"),
    (values.file_mode, "0660", "0660"),
    (values.file_mode, "777", "777"),
    (values.owner, "0", (0, -1)),
    (values.owner, "1000:50", (1000, 50)),
    (values.owner, ":999999999", (-1, 999999999)),
    (plan.gigabytes, "64", 64),
    (plan.gigabytes, "1GiB", 1),
    (plan.gigabytes, "1048576gb", 1 << 20),
    (plan.tokens, "8192", 8192),
    (plan.tokens, "8k", 8192),
    (plan.tokens, "1K", 1024),
    (plan.above_zero, "0.5", 0.5),
]
PORT, COUNT = "must be 0 to 65535", "must be a whole number, 1 or more"
REFUSED = [
    *((values.whole_number(0, 65535), text, PORT) for text in ("65536", "99999999")),
    (values.whole_number(3, 9), "2", "must be 3 to 9"),
    (values.whole_number(1), "0", "must be 1 or more"),
    *((values.whole_number(1), text, COUNT) for text in ("", "-1", "1_0", " 5", "٣", "1.0")),
    (values.whole_number(1), "1" * 19, COUNT),
    *((values.number, text, "must be a number") for text in ("", "x", "nan", "inf", "-inf")),
    *(
        (values.seconds, text, "must be a number of seconds above 0")
        for text in ("0", "-1", "nan", "1e9", "x", "")
    ),
    (values.level, "loud", "must be one of DEBUG, INFO, WARNING, ERROR"),
    (values.one_of(("a", "b")), "A", "must be a or b"),
    (values.tiled_size, "0", "must be 16 to 4096"),
    (values.tiled_size, "4112", "must be 16 to 4096"),
    *((values.tiled_size, text, "must be a multiple of 16") for text in ("17", "24", "4095")),
    *((values.switch, text, "must be true or false") for text in ("True", "1", "")),
    (values.model_names, NAME + "n", "must be 16 names of 256 characters at most"),
    (values.model_names, ",".join(map(str, range(17))), "must be 16 names of 256 characters"),
    *((values.model_names, text, "must be names with commas") for text in ("", "a, b", "a,", "\t")),
    (values.model_names, "a,b,a", "must not hold a name twice"),
    *((values.address, text, "must be a numeric address") for text in ("", "host", "1.2.3", "::g")),
    *((values.file_mode, text, "must be a mode") for text in ("", "08", "0888", "1777", "66")),
    *((values.owner, text, "must be UID") for text in ("", "root", "-1", "1:2:3", "1" * 10, "٣")),
    *((plan.gigabytes, text, "must be") for text in ("0", "1048577", "1.5", "GB", "16 GB")),
    *((plan.tokens, text, "must be") for text in ("0", "k", "1.5k", "1073741825")),
    *((plan.above_zero, text, "must be above 0") for text in ("0", "-1")),
]


@pytest.mark.parametrize(("parse", "text", "value"), TAKEN)
def test_a_text_that_may_be_is_read(parse, text, value):
    found = parse(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("parse", "text", "says"), REFUSED)
def test_a_text_that_may_not_be_is_refused_by_what_it_must_be(parse, text, says):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value).startswith(says)


def test_a_list_is_a_tuple_of_what_stands_between_commas():
    assert values.listed("[a-z]+", "words", "ab,c") == ("ab", "c")
    for text in ("", "ab,", "ab,C", "a b"):
        with pytest.raises(ValueError, match="^must be words with commas between them$"):
            values.listed("[a-z]+", "words", text)
