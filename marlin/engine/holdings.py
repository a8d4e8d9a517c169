"""What requests hold of the cache: blocks of all tokens, of each window the last ones, and states.

Every pool has blocks of the same tokens, so that a sequence's tables are cut alike; the states that
are kept lie at the ends of blocks. Knows what a request needs, gives back and may begin with; not
which request may run.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from marlin.engine.block_pool import NO_BLOCK, BlockPool, StatePool, WindowPool
from marlin.engine.request import Chunk, Request


class Beginning(NamedTuple):
    """The known blocks that a request may begin with, now held.

    Attributes:
        table, windows: its block tables, that of all tokens and those of the windows.
        num_known: blocks of its tokens that are known, but for what windows and states have lost.
        states: Request.states of it.
    """

    table: list[int]
    windows: list[list[int]]
    num_known: int
    states: list[tuple[int, int]]


class Holdings:
    """The pools of a cache, as one.

    Args:
        pool: BlockPool of all tokens.
        windows: a WindowPool for each length of window that gives blocks back.
        max_step_tokens: tokens of a request that are computed at once, at most.
        states: of layers that have a state: two slots for each request, and one more at least.
    """

    def __init__(
        self,
        pool: BlockPool,
        windows: Sequence[WindowPool],
        max_step_tokens: int,
        states: StatePool | None = None,
    ):
        self._pool, self._windows, self._states = pool, windows, states
        assert states is None or pool.num_blocks > 1, "states are kept at the ends of blocks"
        self._block_size = pool.block_size
        self._max_step_tokens = max_step_tokens
        for window in windows:
            needed = min(pool.num_blocks, window.most_held(max_step_tokens))
            assert window.num_blocks >= needed, "a window's blocks are too few for one request"

    def _tables(self, request):
        """(pool, table) of each pool."""
        if not request.window_block_ids:
            request.window_block_ids = [[] for _ in self._windows]
        pools = self._pool, *self._windows
        return list(zip(pools, (request.block_ids, *request.window_block_ids), strict=True))

    def find(self, hashes: Sequence[bytes]) -> Beginning:
        """Hold the longest known beginning of a chain of blocks that any query after it can use."""
        known = self._pool.find(hashes)
        count = self._usable(hashes, len(known))
        self._pool.give_back(known[count:])
        windows = [window.find_seen(hashes, count) for window in self._windows]
        states = []
        if self._states is not None and count:
            slot = self._states.find_after(hashes[count - 1])
            states.append((count * self._block_size, slot))
        return Beginning(known[:count], windows, len(known), states)

    def _usable(self, hashes, count):
        while True:
            pools: list[WindowPool | StatePool] = [*self._windows]
            pools += [self._states] if self._states else []
            shortest = min((pool.usable(hashes, count) for pool in pools), default=count)
            if shortest == count:
                return count
            count = shortest

    def give_back(self, beginning: Beginning) -> None:
        """Let go of what find() gave."""
        self._pool.give_back(beginning.table)
        for window, table in zip(self._windows, beginning.windows, strict=True):
            window.give_back(_held(table))
        self._give_states_back(beginning.states, ())

    def has_room(self, num_tokens: int, beginning: Beginning) -> bool:
        """Whether all of a request's tokens can be computed after a beginning that it holds."""
        needed = self._pool.blocks_for(num_tokens)
        if needed - len(beginning.table) > self._pool.num_free:
            return False
        for window, table in zip(self._windows, beginning.windows, strict=True):
            num_held = len(_held(table))
            most = min(needed - len(table), window.most_held(self._max_step_tokens) - num_held)
            if most > window.num_free:
                return False
        return True

    def begin(self, request: Request, beginning: Beginning) -> None:
        """Give a request what find() gave."""
        request.block_ids = beginning.table
        request.window_block_ids = beginning.windows
        request.states = beginning.states
        request.num_computed_tokens = len(beginning.table) * self._block_size
        last = (len(request.prompt_token_ids) - 1) // self._block_size
        request.restarts = {len(beginning.table), beginning.num_known, last}

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Hold the blocks of a request's first num_tokens tokens that are still needed; False, and
        nothing is taken, where too few are free."""
        count = self._pool.blocks_for(num_tokens)
        tables = self._tables(request)
        if any(count - len(table) > pool.num_free for pool, table in tables):
            return False
        for pool, table in tables:
            table += pool.take(max(0, count - len(table)))
        return True

    def most_tokens(self, request: Request) -> int:
        """Tokens up to which a request can grow."""
        most = min(len(table) + pool.num_free for pool, table in self._tables(request))
        return most * self._block_size

    def remember(self, request: Request, start: int, end: int) -> None:
        """Let the full blocks of tokens [start, end), whose hashes are there, be found."""
        for pool, table in self._tables(request):
            for index in range(start // self._block_size, end // self._block_size):
                pool.remember(table[index], request.block_hashes[index])

    def pass_by(self, request: Request, start: int) -> None:
        """Give back what no query sees any more, now that num_computed_tokens went on from `start`.

        What a request sees that begins at the end of the last full block is kept.
        """
        size, now = self._block_size, request.num_computed_tokens
        for window, table in zip(self._windows, request.window_block_ids, strict=True):
            first, end = (window.first_seen(at // size * size) for at in (start, now))
            for index in range(first, end):
                is_wanted = any(window.first_seen(e * size) <= index < e for e in request.restarts)
                window.give_back([table[index]], is_wanted)
                table[index] = NO_BLOCK

    def plan_states(self, chunk: Chunk, num_others: int) -> int:
        """Give a chunk's states their slots, in Request.state_runs.

        A state is left at the last end of a block, and at the ends after which others may begin,
        as far as there are slots; behind each guess there is one, so that a guess which was wrong
        is undone by taking the state before it.

        Args:
            num_others: chunks that still need a slot in this step.

        Returns:
            How many of the chunk's guesses have a slot.
        """
        if self._states is None:
            return len(chunk.draft_token_ids)
        request, start, size = chunk.request, chunk.start, self._block_size
        end = start + chunk.num_tokens
        source = next((slot for at, slot in request.states if at == start), -1)
        ends = self._ends_within(request, start, end)
        # A state within a block is nobody else's: the next one may lie in its place.
        is_own = source >= 0 and start % size > 0 and end % size > 0
        spare = self._states.num_free - num_others - (not is_own)
        ends = ends[max(0, len(ends) - max(0, spare)) :]
        num_drafts = min(len(chunk.draft_token_ids), max(0, spare - len(ends)))
        ends += range(end, end + num_drafts + 1)
        taken = self._states.take(len(ends) - is_own)
        assert taken is not None, "there are slots for the states of all requests"
        if is_own:
            taken.insert(ends.index(end), source)
            request.states.remove((start, source))
        request.states += zip(ends, taken, strict=True)
        request.state_runs = []
        for at, slot in zip(ends, taken, strict=True):
            request.state_runs.append((start - chunk.start, at - start, source, slot))
            start, source = at, slot
        return num_drafts

    def _ends_within(self, request, start, end):
        """The ends of blocks before `end` whose states are to be kept, in order. The last one that
        was is given back where a later one comes."""
        size = self._block_size
        places = [end // size * size, *(count * size for count in request.restarts)]
        if start < places[0]:
            old = [held for held in request.states if held[0] != start]
            self._give_states_back(old, request.restarts)
            request.states = [held for held in request.states if held[0] == start]
        return sorted({at for at in places if start < at < end})

    def settle_states(self, request: Request) -> None:
        """Keep the state of the tokens that are computed now, and that of the last full block; let
        those at ends of blocks be found."""
        if self._states is None:
            return
        size, now = self._block_size, request.num_computed_tokens
        at_ends = [at for at, _ in request.states if at % size == 0 and at <= now]
        kept = {now, max(at_ends, default=now)}
        for at, slot in request.states:
            if at in at_ends and not request.needs_all_states:
                self._states.remember(slot, request.block_hashes[at // size - 1])
        left = [held for held in request.states if held[0] not in kept]
        self._give_states_back(left, request.restarts)
        request.states = [held for held in request.states if held[0] in kept]

    def _give_states_back(self, states, restarts):
        if self._states is None:
            return
        for at, slot in states:
            is_wanted = not restarts or at // self._block_size in restarts
            self._states.give_back([slot], is_wanted)

    def cut(self, request: Request) -> None:
        """Give back what lies behind a request's computed tokens."""
        count = self._pool.blocks_for(request.num_computed_tokens)
        for pool, table in self._tables(request):
            pool.give_back(table[count:])
            del table[count:]

    def release(self, request: Request) -> None:
        """Give back all that a request holds."""
        for pool, table in self._tables(request):
            pool.give_back(_held(table))
        self._give_states_back(request.states, request.restarts)
        request.block_ids, request.window_block_ids, request.states = [], [], []

    def check(self, running: Iterable[Request]) -> None:
        """Every block is free, cached or held by those who say so, and holders have what they need.

        Raises:
            AssertionError: the bookkeeping is broken.
        """
        tables = [self._tables(request) for request in running]
        for index, pool in enumerate((self._pool, *self._windows)):
            pool.check([block for held in tables for block in _held(held[index][1])])
        if self._states is not None:
            self._states.check([slot for request in running for _, slot in request.states])
        for request, held in zip(running, tables, strict=True):
            needed = self._pool.blocks_for(request.num_computed_tokens)
            for pool, table in held:
                first = 0
                if isinstance(pool, WindowPool):
                    first = pool.first_seen(request.num_computed_tokens)
                assert len(table) >= needed, "a running request lacks blocks"
                assert NO_BLOCK not in table[first:], "a block that a query sees was given back"


def _held(table):
    return [block for block in table if block != NO_BLOCK]
