"""TextStream with log-probabilities and several streams as one: which tokens a delta accounts for,
and in which order deltas come."""

import queue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server.fakes import ByteTokenizer

from marlin.engine.request import FinishEvent, Request, TokenEvent, TokenLogprobs
from marlin.engine.sampling import SamplingParams
from marlin.engine.stream import TextStream, merged

STOP = FinishEvent("stop")


class Bursts(queue.SimpleQueue):
    """Events of which each burst is there only when the one before has been taken."""

    def __init__(self, bursts):
        super().__init__()
        self._bursts = list(bursts)

    def get(self, timeout=None):
        if self.empty() and self._bursts:
            for event in self._bursts.pop(0):
                self.put(event)
        return super().get(timeout=0)

    def get_nowait(self):
        return super().get(block=False)


def logged(data):
    """A token event a byte, each with a log-probability that tells them apart."""
    return [TokenEvent((byte,), (TokenLogprobs(-float(byte), ()),)) for byte in data]


def stream(*bursts, stops=(), **options):
    """bursts: bytes (logged tokens), or a FinishEvent; each is ready once the last was read."""
    events = [logged(b) if isinstance(b, bytes) else [b] for b in bursts]
    request = Request("id", [1], SamplingParams(num_logprobs=0), 0, events=Bursts(events))
    return TextStream(request, ByteTokenizer(), stops, **options)


def shown(*bursts, **options):
    """[(text, bytes of the tokens)] of each delta."""
    return [
        (delta.text, bytes(token.token_id for token in delta.tokens))
        for delta in stream(*bursts, **options)
    ]


def test_a_delta_has_the_tokens_of_its_text():
    assert shown(b"He", b"llo", STOP) == [("He", b"He"), ("llo", b"llo"), ("", b"")]


def test_a_token_comes_with_its_own_log_probability():
    deltas = list(stream(b"ab", STOP))
    assert [token.logprobs.logprob for token in deltas[0].tokens] == [-97.0, -98.0]


def test_parts_of_a_character_come_with_the_character():
    assert shown(b"a\xe2", b"\x82", b"\xac", b"b", STOP) == [
        ("a", b"a"),
        ("\u20ac", b"\xe2\x82\xac"),
        ("b", b"b"),
        ("", b""),
    ]


def test_offsets_count_characters_of_the_answer():
    deltas = list(stream("\u20acab".encode(), b"c", STOP))
    assert [token.text_offset for delta in deltas for token in delta.tokens] == [0, 0, 0, 1, 2, 3]


def test_tokens_of_held_text_are_held_with_it():
    assert shown(b"abX", b"Zc", STOP, stops=("XY",)) == [("ab", b"ab"), ("XZc", b"XZc"), ("", b"")]


def test_tokens_of_held_text_come_with_the_end_that_lets_it_go():
    assert shown(b"abX", FinishEvent("length"), stops=("XY",)) == [("ab", b"ab"), ("X", b"X")]


def test_tokens_of_a_stop_string_do_not_appear():
    assert shown(b"abX", b"Yc", STOP, stops=("XY",)) == [("ab", b"ab"), ("", b"")]


def test_a_token_without_text_at_the_end_appears():
    request = Request("id", [1], SamplingParams(), 0, events=Bursts([]))
    special = TokenEvent((256,), (TokenLogprobs(-1.0, ()),))
    for event in (*logged(b"a"), special, STOP):
        request.events.put(event)
    (delta,) = TextStream(request, ByteTokenizer())
    assert [token.token_id for token in delta.tokens] == [97, 256]


def test_without_log_probabilities_there_are_no_tokens():
    request = Request("id", [1], SamplingParams(), 0, events=Bursts([[TokenEvent((97,)), STOP]]))
    (delta,) = TextStream(request, ByteTokenizer())
    assert (delta.text, delta.tokens) == ("a", ())


@given(st.text("ab\u00e9", max_size=12), st.integers(1, 5), st.text("ab\u00e9", min_size=1))
@settings(max_examples=200)
def test_the_tokens_of_all_deltas_spell_the_text_however_it_was_cut(text, size, stop):
    data = text.encode()
    bursts = [data[i : i + size] for i in range(0, len(data), size)]
    deltas = shown(*bursts, STOP, stops=(stop,))
    whole = "".join(part for part, _ in deltas)
    assert whole == text.split(stop)[0]
    assert b"".join(tokens for _, tokens in deltas) == whole.encode()


def test_merged_streams_come_by_index_and_each_has_its_end():
    pairs = list(merged([stream(b"a", b"b", STOP), stream(b"x", STOP)]))
    for index, text in ((0, "ab"), (1, "x")):
        own = [delta for i, delta in pairs if i == index]
        assert "".join(delta.text for delta in own) == text
        assert [delta.finish_reason for delta in own].count("stop") == 1
        assert own[-1].finish_reason == "stop"


def test_a_merged_stream_that_is_ready_does_not_wait_for_the_first():
    slow = stream(poll_s=0)
    ready = stream()
    for event in (*logged(b"x"), STOP):
        ready.request.events.put(event)
    deltas = merged([slow, ready])
    assert next(deltas)[0] == 1
    deltas.close()


def test_leaving_merged_streams_aborts_all_of_them():
    streams = [stream(b"a", b"b", STOP) for _ in range(3)]
    deltas = merged(streams)
    next(deltas)
    deltas.close()
    assert all(one.request.aborted for one in streams)


def test_the_error_of_one_merged_stream_aborts_all_of_them():
    streams = [stream(FinishEvent("error", ZeroDivisionError())), stream(b"a", STOP)]
    with pytest.raises(ZeroDivisionError):
        list(merged(streams))
    assert all(one.request.aborted for one in streams)
