"""The scheduler between clients: nobody waits for all that another has asked for."""

import zlib

import pytest

from marlin.engine.block_pool import BlockPool
from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams
from marlin.engine.scheduler import Scheduler
from marlin.engine.shares import SLICE_S

TOKEN_S, PROMPT_TOKEN_S = 0.02, 0.004


class Timed:
    """A scheduler whose steps take as long as their tokens do.

    Attributes:
        now: seconds since the beginning.
        ended: {request: when it was done}.
        clients: whose requests each step computed.
    """

    def __init__(self, scheduler):
        self.scheduler, self.now, self.ended, self.clients = scheduler, 0.0, {}, []

    def submit(self, client, num_prompt, num_outputs, count=1):
        params = SamplingParams(max_tokens=num_outputs)
        first = zlib.crc32(client.encode()) % 1000
        prompts = [[first + i] + [7] * (num_prompt - 1) for i in range(count)]
        new = [Request(client, prompt, params, 0, client=client) for prompt in prompts]
        self.scheduler.waiting.extend(new)
        return new[0]

    def step(self):
        chunks = self.scheduler.schedule()
        seconds = sum(PROMPT_TOKEN_S * chunk.num_tokens for chunk in chunks) + TOKEN_S
        self.now += seconds
        self.scheduler.shares.charge(chunks, seconds)
        self.clients.append({chunk.request.client for chunk in chunks})
        for chunk in chunks:
            request, wants_token = chunk.request, chunk.is_last
            self.scheduler.advance(chunk)
            if wants_token:
                request.output_token_ids.append(7)
                if len(request.output_token_ids) == request.params.max_tokens:
                    self.scheduler.remove(request)
                    self.ended[request] = self.now
        self.scheduler.check()

    def run(self, seconds):
        end = self.now + seconds
        while self.now < end and self.scheduler.requests():
            self.step()

    def seconds_of(self, request):
        """Run until a request is done; how long that took."""
        began = self.now
        while request not in self.ended:
            self.step()
            assert self.now < began + 1000, "a request was starved"
        return self.ended[request] - began


def sequential():
    return Timed(Scheduler(BlockPool(1, 8192), 1, 256))


def batching(num_blocks=512, max_sequences=10):
    return Timed(Scheduler(BlockPool(num_blocks, 16), max_sequences, 256))


@pytest.mark.parametrize("start", [sequential, batching])
@pytest.mark.parametrize("at", [0, 0.5, 7.0, 60.0])
def test_64_long_choices_delay_another_client_by_a_step_and_at_most_its_own_time(start, at):
    alone = start()
    alone_s = alone.seconds_of(alone.submit("b", 30, 10))
    timed = start()
    timed.submit("a", 20, 2000, count=64)
    timed.run(at)
    longest_step_s = TOKEN_S + 256 * PROMPT_TOKEN_S
    # With batching its ten steps are those of others, too.
    beside_s = 10 * 10 * PROMPT_TOKEN_S if start is batching else 0
    taken_s = timed.seconds_of(timed.submit("b", 30, 10))
    assert taken_s <= 2 * alone_s + longest_step_s + beside_s


def test_one_client_s_requests_are_served_one_after_another_as_they_came():
    timed = sequential()
    first = timed.submit("a", 20, 50, count=3)
    rest = list(timed.scheduler.waiting)
    while timed.scheduler.requests():
        timed.step()
    assert list(timed.ended) == rest and rest[0] is first
    assert all(request.num_preemptions == 0 for request in rest)


def test_asking_again_and_again_takes_half_of_the_time_and_not_more():
    timed = sequential()
    long = timed.submit("a", 20, 4000)
    for _ in range(40):
        timed.seconds_of(timed.submit("b", 20, 40))
    busy_b = sum(clients == {"b"} for clients in timed.clients)
    assert len(long.output_token_ids) > 0.3 * len(timed.clients)
    assert busy_b < 0.6 * len(timed.clients)


def test_two_long_requests_take_turns_of_at_least_a_slice_and_both_get_on():
    timed = sequential()
    requests = [timed.submit(client, 20, 3000) for client in "ab"]
    timed.run(60)
    done = [len(request.output_token_ids) for request in requests]
    assert min(done) > 0.6 * max(done) and min(done) > 600
    turns = sum(a != b for a, b in zip(timed.clients, timed.clients[1:], strict=False))
    assert 4 <= turns <= 60 / SLICE_S


def test_a_request_that_was_long_to_compute_anew_keeps_its_turn_in_proportion():
    """However many come, three quarters of the time go into new tokens."""
    timed = sequential()
    timed.submit("a", 4000, 3000)
    timed.run(17)  # its prompt is there
    spent = timed.now
    for number in range(20):
        timed.seconds_of(timed.submit(f"new {number}", 10, 5))
    [long] = timed.scheduler.requests()
    assert long.num_preemptions >= 1
    assert long.num_preemptions * 4000 * PROMPT_TOKEN_S < 0.3 * (timed.now - spent) + 17


def test_with_batching_each_client_runs_something_when_places_are_scarce():
    timed = batching(max_sequences=4)
    timed.submit("a", 20, 500, count=20)
    timed.run(3)
    for client in "bcd":
        timed.submit(client, 20, 500)
    for _ in "bcd":
        timed.step()
    running = [request.client for request in timed.scheduler.running]
    assert sorted(running) == ["a", "b", "c", "d"]


def test_with_batching_one_long_context_gives_the_blocks_up_for_a_while():
    timed = batching(num_blocks=64, max_sequences=4)
    long = timed.submit("a", 900, 100)
    timed.run(5)
    short = timed.submit("b", 300, 10)
    assert timed.seconds_of(short) < 3 and long not in timed.ended
    timed.seconds_of(long)


def test_with_batching_a_short_prompt_is_read_before_what_is_left_of_long_ones():
    timed = batching()
    timed.submit("a", 2000, 10, count=3)
    timed.step()
    short = timed.submit("b", 20, 5)
    timed.step()
    assert short.num_computed_tokens == 20


def test_a_pool_that_runs_dry_takes_the_blocks_of_who_runs_most():
    timed = batching(num_blocks=8, max_sequences=8)
    timed.submit("a", 16, 60, count=4)
    timed.step()
    short = timed.submit("b", 16, 40)
    timed.step()
    timed.seconds_of(short)
    assert short.num_preemptions == 0
    assert any(request.num_preemptions for request in timed.scheduler.requests())
