"""How engine time is shared between clients, and when a request has had its turn.

Numbers alone: it knows no blocks, and time is what it is told.
"""

from collections.abc import Iterable, Sequence

from marlin.engine.request import Chunk, Request

# Of engine time: what a client that comes is ahead, and so what another has to have had more than
# one that waits before it gives way. A short answer is whole within it, and turns are no shorter.
SLICE_S = 1.0
# A turn lasts so many times what it took to compute the request's tokens anew at its beginning:
# of each turn a quarter at most is spent on that, however long the request is.
TURN_OF_RESUMES = 4.0


class Shares:
    """Engine seconds of the clients that have requests in hand; who has had least is next.

    A client that comes begins where the one with least is, less a slice. What it had more than that
    when it left is remembered until the others have had as much: asking anew is no advantage.
    """

    def __init__(self):
        self._used = {}
        self._in_hand = set()

    def update(self, clients: set[str]) -> None:
        """These have requests in hand now."""
        stayed = clients & self._in_hand
        self._in_hand = clients
        if not stayed:  # nobody waited for those who left
            self._used = dict.fromkeys(clients, 0.0)
            return
        start = min(self._used[client] for client in stayed) - SLICE_S
        for client in clients - stayed:
            self._used[client] = max(start, self._used.get(client, start))
        for client in self._used.keys() - clients:
            if self._used[client] <= start:
                del self._used[client]

    def charge(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """A step of these took so long. Clients share its time as they share its tokens."""
        sizes = [chunk.num_tokens + len(chunk.draft_token_ids) for chunk in chunks]
        a_token = seconds / sum(sizes)
        for chunk, size in zip(chunks, sizes, strict=True):
            request = chunk.request
            self._used[request.client] += size * a_token
            request.turn_s += seconds
            if 0 < request.num_lost_tokens <= chunk.start + chunk.num_tokens:
                request.num_lost_tokens, request.resume_s = 0, request.turn_s

    def used(self, client: str) -> float:
        """Its engine seconds so far, counted from an arbitrary moment."""
        return self._used[client]

    def next_first(self, clients: Iterable[str], running: Iterable[str]) -> list[str]:
        """Clients in the order in which they get what is left: first those that run nothing."""
        return sorted(clients, key=lambda client: (client in running, self._used[client]))

    def has_had_its_turn(self, request: Request, waiting: str) -> bool:
        """Whether a running request, its client's only one, gives way to a client that waits."""
        is_ahead = self._used[request.client] - self._used[waiting] >= SLICE_S
        is_resuming = request.num_lost_tokens > 0
        turn_s = TURN_OF_RESUMES * request.resume_s
        return is_ahead and not is_resuming and request.turn_s >= turn_s


def begin_turn_anew(request: Request) -> None:
    """Its blocks were taken: all that was computed is to be computed again."""
    request.num_lost_tokens = max(request.num_lost_tokens, request.num_computed_tokens)
    request.num_computed_tokens = 0
    request.num_preemptions += 1
    request.turn_s = request.resume_s = 0.0
