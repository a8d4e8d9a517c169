"""SlotGate between clients, and for those that it turned away."""

import threading
import time
from contextlib import ExitStack

import pytest

from marlin.engine.gate import MAX_RETRY_S, SlotGate
from marlin.engine.tickets import GRACE_S, MAX_TICKETS, Tickets
from marlin.errors import OverloadedError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def patient():
    """A still_wanted that never gives up."""


def retry_s(error):
    return int(dict(error.headers)["Retry-After"])


def refused(gate, client):
    """What a client that must be turned away is told."""
    with pytest.raises(OverloadedError) as caught:
        gate.place(client).__enter__()
    return retry_s(caught.value)


@pytest.fixture
def clock():
    return Clock()


class Inside:
    """Comes for a slot on a thread of its own, and notes when it has it."""

    def __init__(self, gate, client, order):
        self._done = threading.Event()

        def run():
            with gate.slot(patient, client):
                order.append(client)
                self._done.wait(10)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def leave(self):
        self._done.set()
        self._thread.join(10)


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.001)


def test_slots_are_given_to_clients_by_turns_and_within_one_by_arrival(clock):
    gate, order = SlotGate(1, None, 0.01, clock), []
    inside = [Inside(gate, "a", order)]
    until(lambda: order == ["a"])
    for number, client in enumerate(["a", "a", "a", "b", "c", "b"]):
        inside.append(Inside(gate, client, order))
        until(lambda number=number: gate.num_waiting == number + 1)
    for number, place in enumerate([0, 4, 5, 1, 6, 2]):
        inside[place].leave()
        until(lambda number=number: len(order) == number + 2)
    assert order == [*"abcabaa"]
    inside[3].leave()


def test_a_client_without_a_slot_has_the_next_one_before_a_client_that_has_some(clock):
    gate, order = SlotGate(2, None, 0.01, clock), []
    inside = [Inside(gate, client, order) for client in "ab"]
    until(lambda: len(order) == 2)
    order.clear()
    for client in "bbc":
        inside.append(Inside(gate, client, order))
        until(lambda: gate.num_waiting == len(inside) - 2)
    inside[0].leave()
    until(lambda: order == ["c"])
    for one in inside:
        one.leave()


def test_a_client_that_has_none_passes_one_that_has_several_and_nobody_else_does(clock):
    gate, order = SlotGate(2, 2, 0.01, clock), []
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(gate.place("hog"))
        refused(gate, "hog")
        with gate.place("other"):
            refused(gate, "other")
            inside = [Inside(gate, "hog", order) for _ in range(3)]
            until(lambda: len(order) == 2)
            inside.append(Inside(gate, "other", order))
            until(lambda: order == ["hog", "hog", "other"])
            for one in inside:
                one.leave()


def test_at_most_twice_as_many_pass_whatever_their_clients(clock):
    gate = SlotGate(2, 0, 0.01, clock)
    with ExitStack() as stack:
        for client in ("hog", "hog", "b", "c"):
            stack.enter_context(gate.place(client))
        refused(gate, "d")


def test_who_comes_back_when_told_to_is_let_in_before_those_that_came_later(clock):
    gate = SlotGate(1, 1, 0.01, clock)
    held = [gate.place("a"), gate.place("b")]
    for place in held:
        place.__enter__()
    assert refused(gate, "early") == 1
    held[1].__exit__(None, None, None)
    assert refused(gate, "late") == 1  # a place is free, and kept
    clock.now = 1.1
    with gate.place("early"):
        refused(gate, "late")


def test_a_place_is_kept_for_no_longer_than_the_grace_and_never_while_a_slot_is_free(clock):
    gate = SlotGate(1, 1, 0.01, clock)
    held = [gate.place("a"), gate.place("b")]
    for place in held:
        place.__enter__()
    refused(gate, "gone")
    held[1].__exit__(None, None, None)
    clock.now = 1.0 + GRACE_S + 0.1
    with gate.place("later"):
        refused(gate, "last")
    held[0].__exit__(None, None, None)
    with gate.place("new"):  # though "last" has an appointment
        pass


def test_a_crowd_behind_one_address_is_served_in_the_order_of_its_appointments():
    tickets = Tickets()
    first, second = (tickets.arrival("proxy", 0.0) for _ in range(2))
    tickets.turn_away(first, 1.0)
    tickets.turn_away(second, 2.0)
    newcomer = tickets.arrival("proxy", 0.5)
    assert newcomer not in (first, second) and tickets.ahead(newcomer, 0.5) == (2, 2)
    assert tickets.arrival("proxy", 1.0) is first
    assert tickets.ahead(first, 1.0) == (0, 0)
    assert [tickets.ahead(second, now) for now in (0.9, 1.0)] == [(0, 1), (1, 1)]
    tickets.drop(first)
    assert tickets.arrival("proxy", 2.5) is second
    assert tickets.arrival("proxy", 2.0 + GRACE_S + 0.1) is not second


def test_many_attempts_of_one_client_stand_before_another_s_first_only_once():
    tickets = Tickets()
    for _ in range(50):
        tickets.turn_away(tickets.arrival("hasty", 0.0), 1.0)
    other = tickets.arrival("other", 0.0)
    assert tickets.ahead(other, 0.0) == (1, 1)


def test_a_place_is_kept_for_who_was_turned_away_more_often():
    tickets = Tickets()
    once, twice = (tickets.arrival(client, 0.0) for client in "ab")
    tickets.turn_away(once, 1.0)
    tickets.turn_away(twice, 1.0)
    tickets.turn_away(twice, 5.0)
    assert tickets.ahead(once, 1.0) == (1, 1) and tickets.ahead(twice, 1.0) == (0, 0)


def test_tickets_are_bounded_and_the_one_who_has_most_loses_his_last():
    tickets = Tickets()
    modest = tickets.arrival("modest", 0.0)
    tickets.turn_away(modest, 1.0)
    for _ in range(MAX_TICKETS + 10):
        tickets.turn_away(tickets.arrival("hasty", 0.0), 1.0)
    assert len(tickets._tickets) == MAX_TICKETS
    assert tickets.arrival("modest", 1.0) is modest


def test_retry_after_says_when_the_turn_comes(clock):
    gate = SlotGate(2, 0, 0.01, clock)
    with gate.slot(patient):
        clock.now = 8.0  # so long are slots held
    with gate.place("a"), gate.place("b"):
        assert [refused(gate, client) for client in "cdef"] == [4, 8, 12, 16]
        for number in range(20):
            last = refused(gate, f"more {number}")
        assert last == MAX_RETRY_S


def test_200_clients_at_10_slots_all_get_an_answer_while_the_first_ask_again_at_once():
    """Ten times as fast as the seconds that Retry-After has."""
    gate = SlotGate(10, 10, 0.01, clock=lambda: 10 * time.monotonic())
    everybody_served = threading.Event()
    served = [0] * 200

    def ask_for_ever(number):
        while not everybody_served.is_set():
            try:
                with gate.place(f"client {number}"), gate.slot(patient, f"client {number}"):
                    time.sleep(0.02)
                    served[number] += 1
            except OverloadedError as error:
                time.sleep(retry_s(error) / 10 + 0.001)

    threads = [threading.Thread(target=ask_for_ever, args=(n,), daemon=True) for n in range(200)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    while not all(served) and time.monotonic() < began + 20:
        time.sleep(0.01)
    everybody_served.set()
    for thread in threads:
        thread.join(10)
    assert all(served), f"{served.count(0)} of 200 were starved"
