"""Stop strings: what is emitted, when, and that no part of a match gets out."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marlin.text.stop import StopMatcher


def feed(matcher, pieces):
    """(everything emitted by pushes, whether one matched)."""
    emitted, done = "", False
    for piece in pieces:
        text, done = matcher.push(piece)
        emitted += text
    return emitted, done


def oracle(text, stops):
    """(text before the match, matched stop): append characters until the text ends with a stop."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


letters = st.text(alphabet="ab\né🙂", max_size=14)
stop_lists = st.lists(st.text(alphabet="ab\né🙂", min_size=1, max_size=5), max_size=4)


@st.composite
def cut_texts(draw):
    text = draw(letters)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


@given(cut_texts(), stop_lists)
def test_what_is_emitted_equals_the_naive_search_however_the_text_is_cut(pieces, stops):
    matcher = StopMatcher(stops)
    emitted, done = feed(matcher, pieces)
    expected, matched = oracle("".join(pieces), stops)
    assert (emitted + matcher.flush(), matcher.matched) == (expected, matched)
    assert done == (matched is not None)


@given(cut_texts(), stop_lists)
def test_text_is_held_back_only_while_it_can_still_become_a_stop_string(pieces, stops):
    matcher = StopMatcher(stops)
    emitted, done = feed(matcher, pieces)
    if not done:
        held = "".join(pieces)[len(emitted) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@given(cut_texts(), stop_lists)
def test_nothing_emitted_along_the_way_is_part_of_the_match(pieces, stops):
    matcher = StopMatcher(stops)
    expected, _ = oracle("".join(pieces), stops)
    emitted = ""
    for piece in pieces:
        emitted += matcher.push(piece)[0]
        assert expected.startswith(emitted)


def test_a_stop_string_over_three_tokens_never_leaks():
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Sure.\n") == ("Sure.", False)
    assert matcher.push("User") == ("", False)
    assert matcher.push(": hi") == ("", True)
    assert matcher.matched == "\nUser:"


def test_a_false_start_is_emitted_as_soon_as_it_fails():
    matcher = StopMatcher(["</s>"])
    assert matcher.push("a </") == ("a ", False)
    assert matcher.push("b>") == ("</b>", False)


def test_a_false_start_that_overlaps_a_true_one_is_not_lost():
    assert feed(StopMatcher(["aab"]), ["a", "a", "a", "b"]) == ("a", True)


def test_of_stops_that_end_together_the_longest_is_cut_off():
    for stops in (["ab", "aab"], ["aab", "ab"]):
        matcher = StopMatcher(stops)
        assert feed(matcher, ["xaab"]) == ("x", True)
        assert matcher.matched == "aab"


def test_the_stop_that_ends_first_wins_over_one_that_starts_first():
    assert feed(StopMatcher(["abcd", "bc"]), ["abcd"]) == ("a", True)


def test_nothing_is_emitted_after_a_match():
    matcher = StopMatcher(["."])
    assert matcher.push("one. two.") == ("one", True)
    assert matcher.push(" three") == ("", True)
    assert matcher.flush() == ""


def test_flush_gives_the_text_held_back_once():
    matcher = StopMatcher(["###"])
    assert matcher.push("end ##") == ("end ", False)
    assert matcher.flush() == "##"
    assert matcher.flush() == ""


def test_without_stop_strings_text_passes_at_once():
    assert StopMatcher([]).push("anything") == ("anything", False)


def test_a_stop_string_of_an_emoji_sequence_matches_across_its_code_points():
    family = "👨\u200d👩\u200d👧"
    assert feed(StopMatcher([family]), ["ok 👨", "\u200d", "👩\u200d", "👧!"]) == ("ok ", True)


def test_an_empty_stop_string_is_a_broken_invariant():
    with pytest.raises(AssertionError):
        StopMatcher(["a", ""])


def test_a_long_stop_string_over_repetitive_text_takes_linear_time():
    stop = "a" * 20_000 + "b"
    matcher = StopMatcher([stop])
    emitted, done = feed(matcher, ["a" * 40_000, "b"])
    assert (len(emitted), done) == (20_000, True)
