"""Who was turned away and may come back, so that waiting is by arrival over several attempts, too.

Counts and seconds that it is given; whoever asks holds a lock.
"""

from collections import Counter, deque
from dataclasses import dataclass

# How much later than it was told a client may come back before its place goes to others.
GRACE_S = 2.0
# Of all clients together. One more, and who holds most loses the last of its own.
MAX_TICKETS = 1024


@dataclass(slots=True, eq=False)
class Ticket:
    """An attempt that was turned away.

    Attributes:
        arrived: when it first asked, as a number that grows.
        due: when it was told to ask again, seconds.
        num_refusals: how often it was.
    """

    client: str
    arrived: int
    due: float
    num_refusals: int = 0


class Tickets:
    """Attempts that were turned away, in the order in which they came.

    Several clients behind one address are told apart by nothing but the time at which they were to
    come back, so a ticket counts from then on, and only the oldest one of its client.
    """

    def __init__(self):
        self._tickets = deque()
        self._num_arrived = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def arrival(self, client: str, now: float) -> Ticket:
        """The ticket of a client that asks now: the one it comes back with, or a new one."""
        kept = [ticket for ticket in self._tickets if now <= ticket.due + GRACE_S]
        self._tickets = deque(kept)
        own = (ticket for ticket in kept if ticket.client == client and ticket.due <= now)
        found = next(own, None)
        if found is not None:
            return found
        self._num_arrived += 1
        return Ticket(client, self._num_arrived, now)

    def ahead(self, ticket: Ticket, now: float) -> tuple[int, int]:
        """Who was turned away before it: (those to keep a place for, all).

        Of each client its first attempt, then of each its second, and so on, so that many attempts
        of one count no more than one of another. A place is kept for whoever may come at any moment
        and for who was turned away more often; the others come when they will have their own.
        """
        ranks: Counter[str] = Counter()
        keys = {}
        for other in self._tickets:
            keys[other.arrived] = (ranks[other.client], -other.num_refusals, other.arrived)
            ranks[other.client] += 1
        own = (ranks[ticket.client], 0, ticket.arrived)
        own = keys.get(ticket.arrived, own)
        before = [other for other in self._tickets if keys[other.arrived] < own]
        often = ticket.num_refusals
        kept = [other for other in before if other.due <= now or other.num_refusals > often]
        return len(kept), len(before)

    def turn_away(self, ticket: Ticket, due: float) -> None:
        """It is to ask again at `due`."""
        ticket.due = due
        ticket.num_refusals += 1
        if ticket not in self._tickets:
            self._tickets.append(ticket)
        if len(self._tickets) > MAX_TICKETS:
            counts = Counter(other.client for other in self._tickets)
            most = max(counts, key=counts.__getitem__)
            last = next(other for other in reversed(self._tickets) if other.client == most)
            self._tickets.remove(last)

    def drop(self, ticket: Ticket) -> None:
        """It got in."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)
