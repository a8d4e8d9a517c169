"""Who gets a place among connections, and who has to go for it."""

import logging
import threading

from marlin.server.http.places import Place, Places
from marlin.server.http.seldom import Seldom


class Socket:
    """Remembers that it was shut down."""

    gone = False

    def shutdown(self, _how):
        self.gone = True


def entered(places, peer, count=1):
    """That many connections of a peer, each with a place of its own."""
    sockets = [Socket() for _ in range(count)]
    for sock in sockets:
        assert places.enter(sock, peer) is Place.OWN
    return sockets


def gone(sockets):
    return [index for index, sock in enumerate(sockets) if sock.gone]


def test_idle_connections_go_first_the_longest_idle_of_the_peer_with_most():
    places = Places(5, 0)
    few = entered(places, "few", 2)
    many = entered(places, "many", 3)
    places.begin(many[0])
    places.end(many[0])  # idle since now
    entered(places, "new")
    assert (gone(few), gone(many)) == ([], [1])


def test_a_peer_with_hundreds_in_use_does_not_lose_its_idle_ones_to_a_peer_that_only_holds():
    places = Places(504, 0)
    proxy = entered(places, "proxy", 402)
    for sock in proxy[:400]:
        places.begin(sock)
        places.received(sock)
    holder = entered(places, "holder", 102)
    entered(places, "new", 40)
    assert gone(proxy) == [] and gone(holder) == list(range(40))


def test_requests_on_their_way_go_when_nothing_is_idle_and_those_in_hand_never():
    places = Places(4, 1)
    sockets = entered(places, "a", 4)
    for sock in sockets:
        places.begin(sock)
    places.received(sockets[0])
    new = entered(places, "b")
    places.begin(*new)
    assert gone(sockets) == [1]
    for sock in (*sockets, *new):
        places.received(sock)
    assert places.enter(Socket(), "b") is Place.EXTRA
    assert gone(sockets) == [1]


def test_a_connection_whose_request_may_come_at_any_moment_does_not_go_for_one_of_its_own_peer():
    """Its request would be lost without an answer; the new one is told."""
    now = 0.0
    places = Places(2, 0, arrival_s=1.0, clock=lambda: now)
    first, second = entered(places, "a", 2)
    assert places.enter(Socket(), "a") is Place.NONE
    now = 0.9
    places.begin(first)
    now = 1.0
    third = entered(places, "a")  # nothing came of the second one
    places.begin(*third)
    assert gone([first, second]) == [1]
    now = 1.8
    assert places.enter(Socket(), "a") is Place.NONE  # both are sending
    now = 1.9
    entered(places, "a")  # the first one was to be there by now
    assert first.gone and gone(third) == []


def test_a_peers_own_late_request_goes_for_its_new_one_while_another_only_just_connected():
    now = 0.0

    places = Places(3, 0, arrival_s=1.0, clock=lambda: now)
    [late] = entered(places, "one")
    [other] = entered(places, "two")
    for sock in (late, other):
        places.begin(sock)
    now = 2.0
    [fresh] = entered(places, "one")
    assert places.enter(Socket(), "one") is Place.OWN
    assert (late.gone, other.gone, fresh.gone) == (True, False, False)


def test_a_peer_with_most_makes_room_for_others_at_once_and_costs_nobody_else_a_place():
    now = 0.0
    places = Places(4, 0, arrival_s=1.0, clock=lambda: now)
    other = entered(places, "other")
    places.begin(*other)
    places.end(*other)  # idle for long when the flood comes
    now = 100.0
    flood = entered(places, "flood", 3)
    assert places.enter(Socket(), "flood") is Place.NONE
    entered(places, "new")
    assert (gone(other), gone(flood)) == ([], [0])


def test_extra_places_are_for_when_all_are_in_use_and_end_with_their_connection():
    places = Places(1, 1)
    (held,) = entered(places, "a")
    places.begin(held)
    places.received(held)
    extra, late = Socket(), Socket()
    assert places.enter(extra, "b") is Place.EXTRA and places.is_extra(extra)
    assert places.enter(late, "b") is Place.NONE
    places.leave(extra)
    assert not places.is_extra(extra)
    assert places.enter(late, "b") is Place.EXTRA
    places.leave(held)
    assert not places.is_extra(*entered(places, "b"))


def test_a_place_is_free_again_once_its_connection_is_closed_and_only_once():
    places = Places(2, 0)
    first, second = entered(places, "a", 2)
    places.leave(first)
    places.leave(first)
    entered(places, "a")
    assert not second.gone
    entered(places, "a")
    assert second.gone


def test_busy_is_from_a_requests_first_byte_to_the_end_of_its_answer():
    places = Places(2, 0)
    (sock,) = entered(places, "a")
    assert places.num_busy == 0
    places.begin(sock)
    assert places.num_busy == 1
    places.received(sock)
    assert places.num_busy == 1 and not places.wait_until_none_is_busy(0.001)
    places.end(sock)
    assert places.num_busy == 0 and places.wait_until_none_is_busy(0)


def test_a_stop_waits_for_the_request_of_a_new_connection_while_it_is_expected_and_no_longer():
    now = 0.0
    places = Places(2, 0, arrival_s=1.0, clock=lambda: now)
    (new,) = entered(places, "a")
    ended = []

    def stop():
        ended.append(places.wait_until_none_is_busy(60, or_expected=True))

    def wait_until_told():
        stopping = threading.Thread(target=stop)
        stopping.start()
        return stopping

    stopping = wait_until_told()
    places.begin(new)
    places.received(new)
    assert not ended
    places.end(new)
    stopping.join(60)
    assert ended == [True]
    entered(places, "a")
    now = 1.0  # nothing came of it
    wait_until_told().join(60)
    assert ended == [True, True]


def test_a_connection_that_had_to_go_is_not_counted_when_its_thread_ends():
    places = Places(1, 0)
    (old,) = entered(places, "a")
    entered(places, "b")
    assert old.gone
    for step in (places.begin, places.received, places.end, places.leave):
        step(old)
    assert places.num_busy == 0


def test_warnings_of_one_kind_are_held_back_and_counted(caplog):
    seldom = Seldom(pause_s=1000.0)
    for _ in range(3):
        seldom.warn("refused %s", "a")
    seldom._due = 0.0
    seldom.warn("refused %s", "b")
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, "refused a"),
        (logging.WARNING, "refused b (and 2 times since the last such line)"),
    ]
