"""A queue of requests before several servers, step by step, in simulated time.

Each server is the engine's own rule: every running sequence gets its token in each step, and what
is left of a step's tokens goes to the prompts, in order. Requests go to the server that has the
fewest.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Job(NamedTuple):
    """A request that arrives at a time (seconds), and its lengths in tokens."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


class Outcome(NamedTuple):
    """Of a fleet, over all requests; seconds.

    Attributes:
        first_token_s: from arrival to the first token, in order of size.
        token_s: mean time from token to token, in order of size.
        tokens_per_s: of output, all servers together.
        busy: share of the time that servers compute, in the mean.
    """

    first_token_s: list[float]
    token_s: list[float]
    tokens_per_s: float
    busy: float


def jobs(seed: int, count: int, per_s: float, prompt: int, output: int, most: int) -> list[Job]:
    """Requests that arrive at random (Poisson), with exponential lengths of these means.

    Args:
        most: of prompt and output together: a context.
    """
    chooser, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += chooser.expovariate(per_s)
        num_prompt = max(1, min(round(chooser.expovariate(1 / prompt)), most - 1))
        num_output = max(1, min(round(chooser.expovariate(1 / output)), most - num_prompt))
        found.append(Job(now, num_prompt, num_output))
    return found


@dataclass(eq=False)
class _Running:
    job: Job
    computed: int = 0  # of the prompt
    written: int = 0
    first_s: float = 0.0


@dataclass(eq=False)
class _Server:
    running: list[_Running] = field(default_factory=list)
    waiting: deque = field(default_factory=deque)
    is_busy: bool = False
    busy_s: float = 0.0

    @property
    def num_requests(self) -> int:
        return len(self.running) + len(self.waiting)


class Fleet:
    """Servers that are alike.

    Args:
        num_servers, num_streams: servers, and requests that each computes at once.
        step_tokens: of a step.
        step_s: function(contexts of sequences that decode, prompt tokens, tokens of that prompt
            before) -> seconds, as Forecast.step_s.
    """

    def __init__(
        self,
        num_servers: int,
        num_streams: int,
        step_tokens: int,
        step_s: Callable[[list[int], int, int], float],
    ):
        self._servers = [_Server() for _ in range(num_servers)]
        self._num_streams, self._step_tokens, self._step_s = num_streams, step_tokens, step_s

    def run(self, requests: Sequence[Job]) -> Outcome:
        """All of them to their end. requests: in the order of their arrival."""
        done: list[tuple[_Running, float]] = []
        events: list[tuple[float, int, int]] = []  # (end of a step, its turn, server)
        turn, now = 0, 0.0
        left = deque(requests)
        while left or events:
            if left and (not events or left[0].arrival_s <= events[0][0]):
                job = left.popleft()
                now = job.arrival_s
                index = min(range(len(self._servers)), key=lambda i: self._servers[i].num_requests)
                self._servers[index].waiting.append(_Running(job))
            else:
                now, _, index = heapq.heappop(events)
                done += self._ended(self._servers[index], now)
            server = self._servers[index]
            if not server.is_busy and server.num_requests:
                turn += 1
                heapq.heappush(events, (now + self._begin(server), turn, index))
        return self._outcome(done, now)

    def _begin(self, server):
        """The length of the step that begins."""
        while server.waiting and len(server.running) < self._num_streams:
            server.running.append(server.waiting.popleft())
        contexts, room = [], self._step_tokens
        for one in server.running:
            if one.computed == one.job.prompt_tokens:
                contexts.append(one.computed + one.written)
                room -= 1
        prefill, before = 0, 0
        for one in server.running:
            count = min(one.job.prompt_tokens - one.computed, room)
            if count > 0:
                before += one.computed
                one.computed += count
                room, prefill = room - count, prefill + count
        server.is_busy = True
        seconds = self._step_s(contexts, prefill, before)
        server.busy_s += seconds
        return seconds

    def _ended(self, server, now):
        """What ended with a step."""
        server.is_busy = False
        ended = []
        for one in server.running:
            if one.computed == one.job.prompt_tokens:
                one.written += 1
                one.first_s = one.first_s or now
                if one.written == one.job.output_tokens:
                    ended.append((one, now))
        for one, _ in ended:
            server.running.remove(one)
        return ended

    def _outcome(self, done, now):
        first = sorted(one.first_s - one.job.arrival_s for one, _ in done)
        gaps = sorted(
            (end - one.first_s) / (one.written - 1) for one, end in done if one.written > 1
        )
        total = sum(one.written for one, _ in done)
        busy = sum(server.busy_s for server in self._servers) / len(self._servers)
        return Outcome(first, gaps, total / now, busy / now)
