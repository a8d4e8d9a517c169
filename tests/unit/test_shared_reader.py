"""SharedReader: one thread goes on with all answers, and keeps none from its tokens for another."""

import gc
import queue
import threading
import time
import weakref
from contextlib import suppress

import pytest
from server.clients import CLIENT_TIMEOUT_S

from marlin.engine.request import Events
from marlin.engine.shared_reader import SharedReader, Turn

POLL_S = 0.01


class Asked:
    """What SharedReader has of a request."""

    def __init__(self):
        self.events = Events()


class Running:
    """An answer that is run to its end in a thread of its own.

    Attributes:
        seen: (event or None, thread) of each of its turns.
    """

    def __init__(self, reader, turns_of):
        self.request, self.seen, self.error = Asked(), queue.SimpleQueue(), None
        self.thread = threading.Thread(target=self._run, args=(reader, turns_of))
        self.thread.start()

    def _run(self, reader, turns_of):
        try:
            reader.run(turns_of(self.request.events, self.seen), [self.request])
        except BaseException as error:
            self.error = error

    def ended(self):
        self.thread.join(CLIENT_TIMEOUT_S)
        assert not self.thread.is_alive()
        return self.error

    def next_seen(self):
        return self.seen.get(timeout=CLIENT_TIMEOUT_S)


def until_none(events, seen):
    """Waits for its events up to one that is None."""
    while True:
        while not events.empty():
            if (event := events.get()) is None:
                return
            seen.put((event, threading.current_thread()))
        yield Turn.WAIT


@pytest.fixture
def reader():
    reader = SharedReader(POLL_S)
    yield reader
    reader.close()
    assert not reader._thread.is_alive()


def test_all_answers_go_on_in_one_thread_that_is_none_of_theirs(reader):
    answers = [Running(reader, until_none) for _ in range(5)]
    deadline = time.monotonic() + CLIENT_TIMEOUT_S
    while len(reader._shared) < len(answers):
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
    for number in range(3):
        for answer in answers:
            answer.request.events.put(number)
        seen = [answer.next_seen() for answer in answers]
        assert seen == [(number, reader._thread)] * len(answers)
    for answer in answers:
        answer.request.events.put(None)
        assert answer.ended() is None


def test_an_answer_that_takes_long_does_so_in_its_own_thread_and_keeps_no_other_waiting(reader):
    may_go_on = threading.Event()

    def slow(events, seen):
        while events.empty():
            yield Turn.WAIT
        yield Turn.ALONE
        seen.put(("alone", threading.current_thread()))
        assert may_go_on.wait(CLIENT_TIMEOUT_S)
        yield Turn.WAIT
        seen.put(("after", threading.current_thread()))

    late, other = Running(reader, slow), Running(reader, until_none)
    late.request.events.put(1)
    assert late.next_seen() == ("alone", late.thread)
    other.request.events.put(1)
    assert other.next_seen()[0] == 1
    may_go_on.set()
    assert late.next_seen() == ("after", reader._thread)
    other.request.events.put(None)
    assert (late.ended(), other.ended()) == (None, None)


def test_an_answer_without_events_gets_its_turns_to_look_at_its_client(reader):
    def counting(events, seen):
        for number in range(3):
            seen.put(number)
            yield Turn.WAIT

    answer = Running(reader, counting)
    assert [answer.next_seen() for _ in range(3)] == [0, 1, 2]
    assert answer.ended() is None


def test_an_error_is_raised_where_the_answer_is_run_and_ends_no_other(reader):
    class Panic(BaseException):
        """As one of native code."""

    def failing(events, _seen):
        while events.empty():
            yield Turn.WAIT
        raise Panic

    broken, other = Running(reader, failing), Running(reader, until_none)
    broken.request.events.put(1)
    assert isinstance(broken.ended(), Panic)
    other.request.events.put(1)
    assert other.next_seen()[0] == 1
    assert reader.failing() is None
    other.request.events.put(None)
    assert other.ended() is None


@pytest.mark.parametrize("ending", [None, "an error"])
def test_an_answer_that_has_ended_is_freed_without_the_collector(reader, ending):
    def ends(events, _kept):
        while events.empty():
            yield Turn.WAIT
        if events.get() is not None:
            raise ValueError

    class Kept(queue.SimpleQueue):
        """What an answer holds."""

    def run():
        kept, request = Kept(), Asked()
        taken = threading.Timer(POLL_S, request.events.put, [ending])
        taken.start()
        with suppress(ValueError):
            reader.run(ends(request.events, kept), [request])
        taken.join(CLIENT_TIMEOUT_S)
        return weakref.ref(kept)

    gc.disable()
    try:
        kept = run()
        deadline = time.monotonic() + CLIENT_TIMEOUT_S
        while kept() is not None:  # the reader may still be leaving its last turn
            assert time.monotonic() < deadline
            time.sleep(POLL_S)
    finally:
        gc.enable()


def test_answers_go_on_in_their_own_threads_once_it_is_closed():
    reader = SharedReader(POLL_S)
    answer = Running(reader, until_none)
    answer.request.events.put(1)
    answer.next_seen()
    reader.close()
    assert "has ended" in reader.failing()
    answer.request.events.put(2)
    assert answer.next_seen() == (2, answer.thread)
    answer.request.events.put(None)
    assert answer.ended() is None


def test_its_thread_has_ended_when_it_is_closed():
    """Whoever closes a model finds no thread of it, though an answer has a turn in that moment."""
    reader = SharedReader(POLL_S)

    def in_a_turn(events, seen):
        yield Turn.WAIT
        seen.put((None, threading.current_thread()))
        time.sleep(0.05)

    answer = Running(reader, in_a_turn)
    assert answer.next_seen()[1] is reader._thread
    reader.close()
    assert not reader._thread.is_alive()
    assert answer.ended() is None
