"""What a family of tool-call formats declares, and the calls that are JSON objects.

A family is a file beside this one and its row in families.py. Knows none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marlin.text.tool_calls.scanner import Reading, Scanner, Sink, decoded, drop
from marlin.text.tool_calls.shape import Shape

# From a message's calls, as the OpenAI API has them, to text.
ShowCalls = Callable[[Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True, slots=True)
class Family:
    """One way of writing calls.

    Attributes:
        name: for the log.
        written: a template writes this family if its text of a call has all of these.
        read: reads the whole of an answer that is no thought: content and calls.
        markers: texts that may be special tokens, which must then reach the reader.
        shape: of the calls, for grammars.
        reads_all: read is needed for every answer, with or without tools, and reads thoughts, too.
        show: the text of calls, for templates that do not write them.
    """

    name: str
    written: tuple[str, ...]
    read: Callable[[Scanner], Reading[None]]
    markers: tuple[str, ...]
    shape: Shape
    reads_all: bool = False
    show: ShowCalls | None = None


ARGUMENTS = ("arguments", "parameters")


def between(
    opening: str, closing: str, call: str, read_call: Callable[[Scanner], Reading[object]]
) -> Callable[[Scanner], Reading[None]]:
    """Family.read of calls between two tags.

    Args:
        call: what each of them begins with; the same as `opening` where one pair has one call.
        read_call: reads a call from there on.
    """

    markers = (opening, call, closing)

    def read(scan: Scanner) -> Reading[None]:
        marker = yield from scan.content(*markers)
        while marker:
            if marker == call:
                yield from read_call(scan)
            if marker == closing:
                marker = yield from scan.content(*markers)
            else:  # what is between a call and a tag is none of either
                marker = yield from scan.until(markers, drop)

    return read


def tagged_json(opening: str, closing: str) -> Callable[[Scanner], Reading[None]]:
    """Family.read of calls that are JSON objects, or arrays of them, between two tags."""
    return between(opening, closing, opening, json_calls)


def json_calls(scan: Scanner) -> Reading[None]:
    """Read a call that is a JSON object, or an array of such calls."""
    if not (yield from scan.take("[")):
        yield from json_call(scan)
        return
    while (yield from json_call(scan)):
        yield from scan.take(",")
    yield from scan.take("]")


def json_call(scan: Scanner) -> Reading[bool]:
    """Read one call that is a JSON object with its name and arguments; whether it was whole."""
    if not (yield from scan.take("{")):
        return False
    call = _ObjectCall(scan)
    if not (yield from _members(scan, call)):
        return False
    return call.end()


def _members(scan, call, is_inner=False):
    """The members of an object up to its end; whether that came."""
    while not (yield from scan.take("}")):
        key = yield from scan.string()
        if key is None or not (yield from scan.take(":")):
            return False
        if key in ARGUMENTS:
            done = yield from json_arguments(scan, call.arguments)
        elif key == "function" and not is_inner and (yield from scan.take("{")):
            done = yield from _members(scan, call, is_inner=True)
        else:
            written: list[str] = []
            done = yield from scan.value(written.append)
            call.member(key, decoded("".join(written), None))
        if not done:
            return False
        yield from scan.take(",")
    return True


def json_arguments(scan: Scanner, sink: Sink) -> Reading[bool]:
    """Pass on a JSON value that is a call's arguments: an object, or one in a string."""
    if (yield from scan.peek()) in "{":
        return (yield from scan.value(sink))
    written: list[str] = []
    done = yield from scan.value(written.append)
    value = decoded("".join(written), "".join(written))
    if done and value is not None:
        sink(value if isinstance(value, str) else "".join(written))
    return done


class _ObjectCall:
    """A call whose name may come after its arguments."""

    def __init__(self, scan):
        self._scan, self._id = scan, None
        self._name, self._has_begun, self._held = None, False, []

    def member(self, key, value):
        if key in ("name", "function") and isinstance(value, str):
            self._name = value
        elif key == "id" and isinstance(value, str):
            self._id = value

    def arguments(self, text):
        if self._name is None:
            self._held.append(text)
        else:
            self._begin()
            self._scan.arguments(text)

    def _begin(self):
        if not self._has_begun:
            self._has_begun = True
            self._scan.begin_call(self._name, self._id)
            self._scan.arguments("".join(self._held))

    def end(self):
        if self._name is None:
            return False
        self._begin()
        self._scan.end_call()
        return True
