"""What a family of tool-call formats declares, and the calls that are JSON objects.

A family is a file beside this one and its row in families.py. Knows none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from marlin.text.tool_calls.scanner import Reading, Scanner, Sink, decoded, drop


@dataclass(frozen=True, slots=True)
class Family:
    """One way of writing calls.

    Attributes:
        name: for the log.
        written: a template writes this family if its text of a call has all of these.
        read: reads the whole of an answer that is no thought: content and calls.
        markers: texts that may be special tokens, which must then reach the reader.
        reads_all: read is needed for every answer, with or without tools, and reads thoughts, too.
    """

    name: str
    written: tuple[str, ...]
    read: Callable[[Scanner], Reading[None]]
    markers: tuple[str, ...]
    reads_all: bool = False


ARGUMENTS = ("arguments", "parameters")


def tagged_json(opening: str, closing: str) -> Callable[[Scanner], Reading[None]]:
    """Family.read of calls that are JSON objects, or arrays of them, between two tags."""

    def read(scan: Scanner) -> Reading[None]:
        marker = yield from scan.content(opening)
        while marker:
            if marker == opening:
                yield from json_calls(scan)
                # What is between a call and its tag is none of either.
                marker = yield from scan.until((opening, closing), drop)
            else:
                marker = yield from scan.content(opening)

    return read


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


def _members(scan, call):
    """The members of an object up to its end; whether that came."""
    while not (yield from scan.take("}")):
        key = yield from scan.string()
        if key is None or not (yield from scan.take(":")):
            return False
        if key in ARGUMENTS:
            done = yield from json_arguments(scan, call.arguments)
        elif key == "function" and (yield from scan.take("{")):
            done = yield from _members(scan, call)
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
