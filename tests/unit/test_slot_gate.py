"""SlotGate: how many at once, who is next, and who is turned away."""

import threading
from contextlib import contextmanager

import pytest

from marlin.engine.gate import SlotGate
from marlin.errors import OverloadedError


def patient():
    """A still_wanted that never gives up."""


@contextmanager
def entered(gate, still_wanted=patient):
    """A place, then a slot."""
    with gate.place(), gate.slot(still_wanted):
        yield


class Holder:
    """Holds a slot on a thread until told to let go."""

    def __init__(self, gate, order=None, name=None):
        self.inside = threading.Event()
        self._release = threading.Event()

        def run():
            with entered(gate):
                if order is not None:
                    order.append(name)
                self.inside.set()
                self._release.wait(10)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def leave(self):
        self._release.set()
        self._thread.join(10)


def wait_until_waiting(gate, number):
    ready = threading.Event()
    for _ in range(2000):
        if gate.num_waiting == number:
            return
        ready.wait(0.005)
    raise AssertionError(f"{gate.num_waiting} are waiting")


def test_slots_up_to_the_number_are_given_at_once():
    gate = SlotGate(2, 0, 0.01)
    with entered(gate), entered(gate):
        with pytest.raises(OverloadedError, match="2 requests are running and 0 are waiting"):
            with entered(gate):
                pass
    with entered(gate):
        pass


def test_waiting_requests_enter_in_the_order_they_came():
    gate, order = SlotGate(1, 3, 0.01), []
    first = Holder(gate)
    assert first.inside.wait(10)
    waiting = []
    for number in range(3):
        waiting.append(Holder(gate, order, number))
        wait_until_waiting(gate, number + 1)
    first.leave()
    for holder in waiting:
        assert holder.inside.wait(10)
        holder.leave()
    assert order == [0, 1, 2]


def test_a_full_queue_refuses_and_a_place_given_up_can_be_taken():
    class GaveUp(Exception):
        pass

    def impatient():
        raise GaveUp

    gate = SlotGate(1, 1, 0.001)
    holder = Holder(gate)
    assert holder.inside.wait(10)
    with pytest.raises(GaveUp):
        with entered(gate, impatient):
            pass
    queued = Holder(gate)
    wait_until_waiting(gate, 1)
    with pytest.raises(OverloadedError):
        with entered(gate):
            pass
    holder.leave()
    assert queued.inside.wait(10)
    queued.leave()


def test_a_slot_is_given_back_when_its_holder_fails():
    gate = SlotGate(1, 0, 0.01)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            with entered(gate):
                raise ZeroDivisionError


def test_a_place_without_a_slot_counts_as_waiting():
    gate = SlotGate(1, 1, 0.01)
    with entered(gate), gate.place():
        with pytest.raises(OverloadedError, match="1 requests are running and 1 are waiting"):
            with gate.place():
                pass
        assert gate.num_waiting == 0  # it has not come for its slot
