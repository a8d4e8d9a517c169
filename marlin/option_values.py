"""What the text of an option or a variable means: a parser for each kind, which raises ValueError
saying what the text must be.

Knows no option (config.py) and opens nothing.
"""

import ipaddress
import math
import re

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# Enough for every alias that clients insist on; all of them are listed by /v1/models.
MAX_NAMES, MAX_NAME_CHARACTERS = 16, 256


def whole_number(low, high=None):
    """A parser of decimal integers in [low, high]; it raises ValueError with what it expected."""
    bounds = f"{low} or more" if high is None else f"{low} to {high}"

    def parse(text):
        # int() alone would also take "1_0", " 5" and full-width digits.
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise ValueError(f"must be a whole number, {bounds}")
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError(f"must be {bounds}")
        return value

    return parse


def number(text):
    """A parser of numbers; their range is whoever's reads them."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("must be a number")
    return value


def seconds(text):
    """A number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:  # false for nan, too
        raise ValueError("must be a number of seconds above 0")
    return value


def level(text):
    """One of LOG_LEVELS, in capitals."""
    if text.upper() not in LOG_LEVELS:
        raise ValueError("must be one of " + ", ".join(LOG_LEVELS))
    return text.upper()


def one_of(names):
    """A parser of one of these words."""

    def parse(text):
        if text not in names:
            raise ValueError("must be " + " or ".join(names))
        return text

    return parse


def tiled_size(text):
    """Tokens of a KV cache block."""
    value = whole_number(16, 4096)(text)
    if value % 16:
        raise ValueError(
            "must be a multiple of 16, the tokens that keys are stored side by side in"
        )
    return value


def switch(text):
    """true or false."""
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def model_names(text):
    """What a model may be called, as it was typed."""
    names = text.split(",")
    longest = max(map(len, names))
    if longest > MAX_NAME_CHARACTERS or len(names) > MAX_NAMES:
        raise ValueError(f"must be {MAX_NAMES} names of {MAX_NAME_CHARACTERS} characters at most")
    if not all(name == name.strip() and name.isprintable() and name for name in names):
        raise ValueError("must be names with commas between them and no blanks around them")
    if len(set(names)) != len(names):
        raise ValueError("must not hold a name twice")
    return text


def listed(pattern, what, text):
    """Items with commas between them, as a tuple; each matches `pattern`."""
    if not all(re.fullmatch(pattern, item) for item in text.split(",")):
        raise ValueError(f"must be {what} with commas between them")
    return tuple(text.split(","))


def address(text):
    """A numeric address; localhost is one."""
    if text == "localhost":
        return "127.0.0.1"
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            "must be a numeric address or localhost, since no name is looked up"
        ) from None
    return text


def file_mode(text):
    """The mode of a file in octal digits, as it was typed."""
    if not re.fullmatch("0?[0-7]{3}", text):
        raise ValueError("must be a mode of three octal digits, such as 0660")
    return text


def owner(text):
    """(uid, gid), -1 for one that is not named."""
    found = re.fullmatch(r"(\d{1,9})?(?::(\d{1,9}))?", text, re.ASCII)
    if not text or not found:
        raise ValueError("must be UID, UID:GID or :GID, in numbers")
    return tuple(-1 if part is None else int(part) for part in found.groups())
