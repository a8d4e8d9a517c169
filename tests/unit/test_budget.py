"""The room for request bodies, and whose turn it is: counts alone, no sockets."""

import threading
import time

import pytest

from marlin.errors import OverloadedError
from marlin.server.http import allocator
from marlin.server.http.budget import BodyBudget, Share
from marlin.turns import Turns


def grown(budget, num_bytes, client="a", stop=lambda: None):
    share = Share(budget, stop)
    share.grow(num_bytes, client)
    return share


def test_all_the_room_can_be_had_and_not_a_byte_more():
    budget = BodyBudget(100, wait_s=0.01)
    first = grown(budget, 60)
    second = grown(budget, 40)
    assert (budget.used_bytes, first.num_bytes, first.client) == (100, 60, "a")
    with pytest.raises(OverloadedError) as caught:
        grown(budget, 1)
    assert caught.value.message == (
        "100 of the 100 bytes that this server has for request bodies are in use,"
        " and 1 more are needed; try again"
    )
    second.set(39)
    grown(budget, 1)
    assert budget.used_bytes == 100


def test_a_share_grows_by_what_is_new_and_never_shrinks_by_it():
    budget = BodyBudget(100, wait_s=0.01)
    share = grown(budget, 60)
    share.grow(60, "other")
    share.grow(10, "other")
    assert (budget.used_bytes, share.client) == (60, "a")
    share.grow(100, "a")
    assert (budget.used_bytes, share.num_bytes) == (100, 100)


def test_a_client_that_holds_some_leaves_the_reserve_to_others():
    budget = BodyBudget(100, wait_s=0.01, reserve_bytes=30)
    first = grown(budget, 60)
    with pytest.raises(OverloadedError):
        grown(budget, 11)
    second = grown(budget, 10)
    other = grown(budget, 30, "b")
    assert budget.used_bytes == 100
    for share in (second, other):
        share.set(0)
    first.grow(100, "a")  # of one body all may be had
    assert budget.used_bytes == 100


def test_room_is_given_back_wholly_and_waits_end_with_it():
    budget = BodyBudget(100, wait_s=30)
    first = grown(budget, 100)
    had = threading.Event()
    waiter = threading.Thread(target=lambda: (grown(budget, 50, "b"), had.set()))
    waiter.start()
    assert not had.wait(0.05)
    first.set(51)
    assert not had.wait(0.05)
    first.set(50)
    assert had.wait(5)
    waiter.join()
    first.set(0)
    assert budget.used_bytes == 50


def test_a_wait_for_all_to_be_within_their_room_ends_at_its_bound():
    budget = BodyBudget(100, wait_s=0.01)
    share = Share(budget)
    share.set(100)
    share.wait_for_room()
    share.set(101)
    with pytest.raises(OverloadedError, match="101 of the 100 bytes .* and 0 more are needed"):
        share.wait_for_room()


def test_who_waited_in_vain_stands_in_nobodys_way():
    budget = BodyBudget(100, wait_s=0.01)
    first = grown(budget, 90)
    with pytest.raises(OverloadedError):
        grown(budget, 20, "b")
    assert grown(budget, 10, "c").num_bytes == 10
    first.set(0)
    assert budget.used_bytes == 10


def late(budget, num_bytes, client, gone):
    return grown(budget, num_bytes, client, lambda: gone.append((client, num_bytes)))


def test_of_slow_bodies_only_as_many_go_as_give_enough_room():
    gone = []
    budget = BodyBudget(100, wait_s=0.15, grace_s=0.0)
    shares = [late(budget, size, "a", gone) for size in (40, 35, 25)]
    with pytest.raises(OverloadedError):
        grown(budget, 40, "b")  # its room is not given back here
    assert gone == [("a", 40)] and [share.is_late for share in shares] == [True, False, False]
    with pytest.raises(OverloadedError):
        grown(budget, 41, "b")
    assert gone == [("a", 40), ("a", 35)]


def test_a_body_that_came_is_not_told_to_go():
    gone = []
    budget = BodyBudget(100, wait_s=0.05, grace_s=0.0)
    share = late(budget, 100, "a", gone)
    share.received()
    with pytest.raises(OverloadedError):
        grown(budget, 1, "b")
    assert gone == [] and not share.is_late


def test_a_body_has_its_time_before_it_goes():
    gone = []
    budget = BodyBudget(100, wait_s=0.1, grace_s=60.0)
    late(budget, 100, "a", gone)
    with pytest.raises(OverloadedError):
        grown(budget, 1, "b")
    assert gone == []


def test_what_one_client_has_may_not_be_taken_by_one_that_has_as_much():
    for other, goes in ((49, [("a", 50)]), (50, [])):
        gone = []
        budget = BodyBudget(100 if other == 50 else 99, wait_s=0.05, grace_s=0.0)
        late(budget, 50, "a", gone)
        grown(budget, other, "b").received()
        with pytest.raises(OverloadedError):
            grown(budget, 1, "b")
        assert gone == goes


@pytest.mark.parametrize(("freed", "trims"), [(256 * 1024 - 1, 0), (256 * 1024, 1)])
def test_the_allocator_is_asked_for_large_shares_alone(monkeypatch, freed, trims):
    calls = []
    monkeypatch.setattr(allocator, "trim", lambda: calls.append(1))
    share = Share(BodyBudget(1 << 30, wait_s=1))
    share.set(1 << 20)
    assert calls == []
    share.set((1 << 20) - freed)
    assert len(calls) == trims


def test_a_share_that_is_set_to_what_it_has_changes_nothing():
    budget = BodyBudget(100, wait_s=0.01)
    share = grown(budget, 30)
    share.set(30)
    assert budget.used_bytes == 30
    share.set(70)  # it is there already
    assert (budget.used_bytes, share.num_bytes) == (70, 70)


def test_the_allocator_is_told_to_keep_little_and_to_give_back(monkeypatch):
    told = []

    class Glibc:
        @staticmethod
        def mallopt(parameter, value):
            told.append((parameter, value))

        @staticmethod
        def malloc_trim(pad):
            told.append(pad)

    monkeypatch.setattr(allocator.ctypes, "pythonapi", Glibc)
    allocator.keep_little()
    allocator.trim()
    # malloc.h: M_MMAP_THRESHOLD is -3, M_TRIM_THRESHOLD is -1.
    assert told == [(-3, 1 << 20), (-1, 1 << 20), 0]
    monkeypatch.setattr(allocator.ctypes, "pythonapi", object())
    allocator.keep_little()
    allocator.trim()
    assert len(told) == 3


class One:
    def __init__(self, client):
        self.client = client


def test_next_is_who_has_least_then_whose_turn_was_longest_ago_then_who_came_first():
    turns = Turns()
    a, b, c = map(One, "abc")
    assert turns.next([b, a, c]) is b
    turns.begin("b")
    turns.change("b", -1)
    assert turns.next([b, a, c]) is a
    turns.begin("a", 5)
    assert turns.in_order([a, b, c]) == [c, b, a]
    turns.change("a", -5)
    assert turns.in_order([a, b, c]) == [c, b, a]
    turns.begin("b")
    turns.change("b", -1)
    assert turns.in_order([b, a, c]) == [c, a, b]
    assert turns.total == 0 and dict(turns.in_hand) == {}


def test_turns_count_what_is_in_hand():
    turns = Turns()
    turns.begin("a")
    turns.change("a", 2)
    turns.begin("b", 4)
    assert (turns.total, turns.in_hand["a"], turns.in_hand["b"]) == (7, 3, 4)
    turns.change("a", -3)
    assert (turns.total, "a" in turns.in_hand) == (4, False)


def test_of_4096_clients_the_last_turn_is_remembered():
    turns = Turns()
    for number in range(4097):
        turns.begin(str(number))
        turns.change(str(number), -1)
    first, second, new = One("0"), One("1"), One("new")
    assert turns.in_order([second, new, first]) == [new, first, second]
    turns.begin("1")
    turns.change("1", -1)
    third = One("2")
    assert turns.in_order([third, second, first]) == [first, third, second]


def test_a_waiter_looks_for_late_bodies_while_it_waits():
    gone = []
    budget = BodyBudget(100, wait_s=10, grace_s=0.2)
    began = time.monotonic()
    share = None

    def stop():
        gone.append(time.monotonic() - began)
        share.set(0)

    share = grown(budget, 100, "a", stop)
    grown(budget, 100, "b")
    assert len(gone) == 1 and 0.15 < gone[0] < 5
