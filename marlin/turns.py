"""Whose turn it is where clients wait for the same thing.

Who has least of it in hand is next, then who had its turn longest ago, and within a client who came
first: so one client's crowd is one among all. Counts only; whoever asks holds a lock.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar

# Of whom the last turn is remembered: more than can wait at once for anything here.
_MAX_CLIENTS = 4096


# What the names of clients begin with that a key tells apart, or the system whose process has
# connected; the others are addresses.
_OF_KEY, _OF_UID = "key:", "uid:"


def client_of_key(name: str) -> str:
    """The client that a key's requests are of."""
    return _OF_KEY + name


def client_of_uid(uid: int) -> str:
    """The client that a user's processes are, on a Unix socket."""
    return f"{_OF_UID}{uid}"


def is_uid(client: str) -> bool:
    return client.startswith(_OF_UID)


def owner(client: str) -> str:
    """Who alone may reuse what this client's requests computed: itself if a key or the system tells
    it apart, and else "", everybody who is no such client."""
    return client if client.startswith((_OF_KEY, _OF_UID)) else ""


class Waiting(Protocol):
    client: str


W = TypeVar("W", bound=Waiting)


class Turns:
    """Attributes:
    in_hand: how much of it each client has; none has 0.
    """

    def __init__(self):
        self.in_hand: Counter[str] = Counter()
        self._last_turns: dict[str, int] = {}  # the longest ago first
        self._num_turns = 0

    @property
    def total(self) -> int:
        return self.in_hand.total()

    def next(self, waiting: Iterable[W]) -> W:
        """Who is next of some that are given in the order in which they came."""
        return min(waiting, key=self._key)

    def in_order(self, waiting: Iterable[W]) -> list[W]:
        """All of them, who is next first."""
        return sorted(waiting, key=self._key)

    def _key(self, one):
        return self.in_hand[one.client], self._last_turns.get(one.client, 0)

    def begin(self, client: str, amount: int = 1) -> None:
        """A client's turn, in which it gets so much."""
        self.change(client, amount)
        self._num_turns += 1
        self._last_turns.pop(client, None)
        self._last_turns[client] = self._num_turns
        if len(self._last_turns) > _MAX_CLIENTS:
            del self._last_turns[next(iter(self._last_turns))]

    def change(self, client: str, amount: int) -> None:
        """A client has so much more, or below 0 less; it is no turn."""
        self.in_hand[client] += amount
        if not self.in_hand[client]:
            del self.in_hand[client]
