"""TextStream: events to text, the three proofs for stop strings, deadlines and early leaves."""

import queue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin.engine.request import FinishEvent, Request, TokenEvent
from marlin.engine.sampling import SamplingParams
from marlin.engine.stream import TextDelta, TextStream


class ByteTokenizer:
    """A token is a byte; 256 is special."""

    byte_exact = True
    strips_leading_space = False

    def token_bytes(self, token_id):
        return bytes([token_id])

    def is_special(self, token_id):
        return token_id == 256


class Clock:
    """Time that moves only when someone waits for an event that is not there."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Events:
    """Events that arrive in bursts; waiting past the last burst lets time pass."""

    def __init__(self, clock, bursts):
        self._clock = clock
        self._bursts = [list(burst) for burst in bursts]

    def get(self, timeout):
        while self._bursts and not self._bursts[0]:
            self._bursts.pop(0)
        if not self._bursts:
            self._clock.now += timeout
            raise queue.Empty
        return self._bursts[0].pop(0)

    def empty(self):
        return not self._bursts or not self._bursts[0]

    def get_nowait(self):
        if self.empty():
            raise queue.Empty
        return self._bursts[0].pop(0)


def stream(*bursts, stops=(), **options):
    """bursts: each a list of bytes (token events) and FinishEvents that are queued together."""
    clock = Clock()
    events = [
        [e if isinstance(e, (TokenEvent, FinishEvent)) else TokenEvent(tuple(e)) for e in burst]
        for burst in bursts
    ]
    request = Request("id", [1], SamplingParams(), seed=0, events=Events(clock, events))
    return TextStream(request, ByteTokenizer(), stops, clock=clock, **options), request, clock


def texts(*bursts, **options):
    return list(stream(*bursts, **options)[0])


STOP = FinishEvent("stop")


def test_each_burst_is_one_delta_with_its_token_count():
    assert texts([b"He", b"l"], [b"lo"], [STOP]) == [
        TextDelta("Hel", 3),
        TextDelta("lo", 2),
        TextDelta("", 0, "stop"),
    ]


def test_the_finish_comes_with_the_text_that_was_queued_with_it():
    assert texts([b"Hi", FinishEvent("length")]) == [TextDelta("Hi", 2, "length")]


def test_tokens_without_text_are_counted_with_the_next_text():
    assert texts([b"\xe2"], [b"\x82"], [b"\xac"], [STOP]) == [
        TextDelta("\u20ac", 3),
        TextDelta("", 0, "stop"),
    ]
    assert texts([(256,)], [b"a"], [STOP])[0] == TextDelta("a", 2)


def test_half_a_character_at_the_end_is_a_replacement_character():
    assert texts([b"a\xe2\x82"], [STOP])[-1] == TextDelta("\ufffd", 0, "stop")


def test_text_ends_before_a_stop_string_and_the_request_is_aborted():
    deltas, request, _ = stream([b"one t"], [b"wo three"], [STOP], stops=("two",))
    assert list(deltas) == [TextDelta("one ", 5), TextDelta("", 2, "stop", stop_string="two")]
    assert request.aborted


def test_tokens_after_a_stop_string_are_not_counted():
    assert texts([b"abXYcdef", STOP], stops=("XY",)) == [
        TextDelta("ab", 4, "stop", stop_string="XY")
    ]


def test_no_part_of_a_stop_string_leaks_and_held_text_is_not_lost():
    assert texts([b"abX"], [b"Zc"], [STOP], stops=("XY",)) == [
        TextDelta("ab", 3),
        TextDelta("XZc", 2),
        TextDelta("", 0, "stop"),
    ]
    deltas = texts([b"abX"], [FinishEvent("length")], stops=("XY",))
    assert deltas[-1] == TextDelta("X", 0, "length")


def test_the_first_of_several_stop_strings_wins():
    assert texts([b"a b c", STOP], stops=("c", "b")) == [
        TextDelta("a ", 3, "stop", stop_string="b")
    ]


def test_a_stop_string_can_complete_in_the_very_last_bytes():
    deltas = texts([b"ab\xe2"], [FinishEvent("length")], stops=("\ufffd",))
    assert deltas[-1] == TextDelta("", 0, "stop", stop_string="\ufffd")


@given(
    st.text("ab\u00e9", max_size=12),
    st.lists(st.integers(1, 4)),
    st.text("ab\u00e9", min_size=1, max_size=3),
)
@settings(max_examples=200)
def test_the_text_does_not_depend_on_how_tokens_were_bunched(text, cuts, stop):
    data, bursts = text.encode(), []
    for cut in cuts:
        bursts.append([data[:cut]])
        data = data[cut:]
    bursts += [[data], [STOP]]
    got = "".join(delta.text for delta in texts(*bursts, stops=(stop,)))
    assert got == text.split(stop)[0]


def test_a_deadline_ends_the_stream_and_the_request():
    deltas, request, clock = stream([b"a\xe2"], deadline=100.35)
    assert list(deltas) == [TextDelta("a", 2), TextDelta("\ufffd", 0, "timeout")]
    assert request.aborted
    assert clock.now == pytest.approx(100.35)


def test_a_deadline_holds_for_an_engine_that_never_pauses():
    endless = ([b"x"] for _ in range(10**6))
    deltas, _, clock = stream(deadline=101.0)
    request_events = deltas.request.events

    def get(timeout):
        clock.now += 0.01
        return TokenEvent(tuple(next(endless)[0]))

    request_events.get = request_events.get_nowait = lambda timeout=0: get(timeout)
    assert list(deltas)[-1].finish_reason == "timeout"


def test_the_heartbeat_is_called_while_waiting_and_can_end_the_stream():
    class Gone(Exception):
        pass

    beats = []

    def heartbeat():
        beats.append(clock.now)
        if len(beats) == 3:
            raise Gone

    deltas, request, clock = stream(heartbeat=heartbeat, poll_s=0.1)
    with pytest.raises(Gone):
        list(deltas)
    assert beats == pytest.approx([100.1, 100.2, 100.3])
    assert request.aborted


def test_closing_the_iteration_aborts_the_request():
    deltas, request, _ = stream([b"a"], [b"b"], [STOP])
    iterator = iter(deltas)
    assert next(iterator).text == "a"
    assert not request.aborted
    iterator.close()
    assert request.aborted


def test_an_engine_error_is_raised_to_the_reader():
    with pytest.raises(ZeroDivisionError):
        texts([b"a"], [FinishEvent("error", ZeroDivisionError())])


def test_an_abort_by_the_engine_is_a_finish_reason():
    assert texts([b"a", FinishEvent("abort")]) == [TextDelta("a", 1, "abort")]
