"""Speculation over a real tiny model: whatever is guessed, the tokens are those of no guessing.

Random weights rarely copy, so most tests replace the guesses by known answers with mistakes in
them: what the engine does with right and wrong guesses is the same wherever they come from.
"""

from contextlib import contextmanager

import numpy as np
import pytest
from engine_fixture import TIMEOUT_S, GatedRunner
from tiny_models import random_tensors, random_tokens, running, tiny_config, write_folder

from marlin.engine import engine as engine_module
from marlin.engine.draft import MAX_DRAFT_TOKENS, Drafter
from marlin.engine.engine import Engine
from marlin.engine.request import FinishEvent
from marlin.engine.sampling import SamplingParams

VOCAB = 97
PROMPT = random_tokens(20, VOCAB, seed=1)
PROMPTS = [random_tokens(count, VOCAB, seed=count) for count in (1, 2, 15, 16, 17, 33, 60)]
SAMPLED = {"temperature": 1.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config()
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=3))


@pytest.fixture(scope="module")
def looping_folder(tmp_path_factory):
    """A model whose greedy answers soon repeat themselves: the next token depends on few."""
    config = tiny_config()
    tensors = random_tensors(config, seed=3)
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= np.float32(0.3)
    return write_folder(tmp_path_factory.mktemp("looping"), config, tensors)


@contextmanager
def serving(path, eos_token_ids=(), **options):
    """An Engine over the model; its runner is a GatedRunner."""
    with running(path, **{"context": 160, **options}) as runner:
        engine = Engine(GatedRunner(runner), eos_token_ids)
        try:
            yield engine
        finally:
            engine._runner.open()
            engine.close()


def submit(engine, prompt=PROMPT, **params):
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 40, "seed": 4} | params)
    return engine.submit(prompt, params, "r")


def read(request):
    """(token ids, logprobs, finish reason)."""
    token_ids, logprobs = [], []
    while not isinstance(event := request.events.get(timeout=TIMEOUT_S), FinishEvent):
        assert event.token_ids, "an event without tokens"
        token_ids += event.token_ids
        logprobs += event.logprobs
    return token_ids, logprobs, event.reason


def answers(engine, prompts, **params):
    """Answers to requests submitted together, each with its own seed; no block is lost."""
    return answers_and_drafts(engine, prompts, **params)[0]


def answers_and_drafts(engine, prompts, **params):
    """(answers, guesses of all requests together, and those of them that were right)."""
    requests = [submit(engine, p, **{"seed": i} | params) for i, p in enumerate(prompts)]
    found = [read(request) for request in requests]
    stats = engine.stats()
    assert stats.num_free_kv_blocks == stats.num_kv_blocks, "blocks were not given back"
    num_drafts = sum(request.num_draft_tokens for request in requests)
    return found, num_drafts, sum(request.num_accepted_draft_tokens for request in requests)


@pytest.fixture
def know(monkeypatch):
    """know(answers, right=n): from now on requests guess what follows in the answer that they have
    begun, with a wrong token after each n right ones."""

    def begin(known, right):
        class KnowingDrafter(Drafter):
            def propose(self, request, num_step_rows):
                done = request.output_token_ids
                [answer, *_] = [a for a in known if a[: len(done)] == done] or [done]
                limit = min(MAX_DRAFT_TOKENS, self._max_num_tokens - request.num_tokens - 1)
                draft = answer[len(done) :][: max(0, limit)]
                places = range(len(done), len(done) + len(draft))
                self._matched_length = 3
                return [
                    (token + 1) % VOCAB if place % (right + 1) == right else token
                    for place, token in zip(places, draft, strict=True)
                ]

        monkeypatch.setattr(engine_module, "Drafter", KnowingDrafter)

    return begin


@pytest.mark.parametrize(
    "mode", [{"context": 224}, {"sequences": 3, "blocks": (42, 16)}], ids=["one", "batch"]
)
def test_greedy_answers_that_repeat_themselves_are_the_same_and_guessed(looping_folder, mode):
    prompts = [random_tokens(count, VOCAB, seed=count) * 2 for count in (5, 16, 30)]
    with serving(looping_folder, **mode) as engine:
        plain, num_drafts, _ = answers_and_drafts(engine, prompts, max_tokens=160)
        assert num_drafts == 0
    with serving(looping_folder, drafts=16, **mode) as engine:
        found, num_drafts, num_right = answers_and_drafts(engine, prompts, max_tokens=160)
    assert found == plain
    assert 100 < num_right < num_drafts


@pytest.mark.parametrize("right", [0, 1, 4, 100])
@pytest.mark.parametrize(
    "params",
    [
        {},
        SAMPLED,
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
        {"frequency_penalty": 0.9},
        {"repetition_penalty": 1.4, "presence_penalty": 0.7, "frequency_penalty": -0.4},
        {**SAMPLED, "repetition_penalty": 1.3, "logit_bias": ((3, 4.0), (90, -4.0))},
        {**SAMPLED, "num_logprobs": 3, "frequency_penalty": 0.5},
    ],
    ids=str,
)
def test_guesses_change_no_token_and_no_logprob(folder, know, params, right):
    with serving(folder) as engine:
        plain = read(submit(engine, **params))
    know([plain[0]], right)
    with serving(folder, drafts=7) as engine:
        request = submit(engine, **params)
        assert read(request) == plain
    assert request.num_draft_tokens > 0
    assert (request.num_accepted_draft_tokens > 0) == (right > 0)
    if right == 100:
        # A prefill, one decode step of 1 + 7 for every 8 tokens, and all of its guesses right.
        assert request.num_accepted_draft_tokens == request.num_draft_tokens == 34


@pytest.mark.parametrize("right", [2, 100])
@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_max_tokens_holds_inside_a_run_of_right_guesses(folder, know, max_tokens, right):
    with serving(folder) as engine:
        plain = read(submit(engine, max_tokens=12))[0]
    know([plain], right)
    with serving(folder, drafts=7) as engine:
        request = submit(engine, max_tokens=max_tokens)
        assert read(request) == (plain[:max_tokens], [], "length")
    assert request.output_token_ids == plain[:max_tokens]


@pytest.mark.parametrize("place", range(1, 10))
def test_an_end_token_ends_the_answer_inside_a_run_of_right_guesses(folder, know, place):
    """The guesses go on past the end token, as if it were an ordinary one."""
    with serving(folder) as engine:
        plain, logprobs, _ = read(submit(engine, max_tokens=20, num_logprobs=1, **SAMPLED))
    end = plain[place]
    count = plain.index(end)
    know([plain], right=100)
    with serving(folder, eos_token_ids={end}, drafts=7) as engine:
        request = submit(engine, max_tokens=20, num_logprobs=1, **SAMPLED)
        assert read(request) == (plain[:count], logprobs[:count], "stop")
        assert request.num_computed_tokens <= request.num_tokens
        assert read(submit(engine, max_tokens=20, ignore_eos=True, **SAMPLED))[0] == plain
        # What is kept of it is what was computed of it.
        again = [*PROMPT, *plain[:3], 1]
        kept = read(submit(engine, again, max_tokens=3, ignore_eos=True))
    with serving(folder) as engine:
        assert read(submit(engine, again, max_tokens=3)) == kept


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_end_token_of_the_prompt_is_guessed_only_where_it_ends_nothing(folder, ignore_eos):
    end, forced = 5, 42
    prompt = [forced, forced, forced, end, 1]
    with serving(folder, eos_token_ids={end}, drafts=7) as engine:
        params = {"max_tokens": 12, "logit_bias": ((forced, 100.0),), "ignore_eos": ignore_eos}
        assert read(submit(engine, prompt, **params)) == ([forced] * 12, [], "length")
        drafts = [chunk.draft_token_ids for [chunk] in engine._runner.steps]
    assert any(drafts)
    assert any(end in draft for draft in drafts) == ignore_eos


@pytest.mark.parametrize("room", range(1, 12))
@pytest.mark.parametrize("mode", [{"context": 64}, {"blocks": (4, 16)}], ids=["one", "batch"])
def test_the_context_is_filled_to_its_last_token(folder, know, room, mode):
    prompt = random_tokens(64 - room, VOCAB)
    with serving(folder, **mode) as engine:
        plain = read(submit(engine, prompt, max_tokens=1000))
    assert (len(plain[0]), plain[2]) == (room, "length")
    know([plain[0]], right=100)
    with serving(folder, drafts=7, **mode) as engine:
        assert read(submit(engine, prompt, max_tokens=1000)) == plain


@pytest.mark.parametrize("right", [1, 3, 100])
@pytest.mark.parametrize(
    ("num_blocks", "drafts"),
    [(64, 16), (64, 3), (9, 16)],
    ids=["room-for-all", "few-guesses-a-step", "requests-are-preempted"],
)
def test_requests_side_by_side_get_what_they_get_alone(folder, know, num_blocks, drafts, right):
    sampled = {**SAMPLED, "max_tokens": 30, "presence_penalty": 0.3}
    with serving(folder) as engine:
        alone = answers(engine, PROMPTS, **sampled)
    # Every second request knows its answer; the others decode beside it.
    know([token_ids for token_ids, _, _ in alone[::2]], right)
    with serving(folder, sequences=8, blocks=(num_blocks, 16), drafts=drafts) as engine:
        found, _, num_right = answers_and_drafts(engine, PROMPTS, **sampled)
    assert found == alone
    assert num_right > 0


def test_blocks_found_by_their_hash_hold_no_wrong_guess(folder, know):
    with serving(folder) as engine:
        plain = read(submit(engine, max_tokens=50))[0]
        longer = [PROMPT + plain[:count] + PROMPT for count in (10, 30, 50)]
        alone = answers(engine, longer, max_tokens=12)
    know([plain], right=2)
    with serving(folder, sequences=3, blocks=(24, 16), drafts=16) as engine:
        assert read(submit(engine, max_tokens=50))[0] == plain
        requests = [
            submit(engine, prompt, max_tokens=12, seed=i) for i, prompt in enumerate(longer)
        ]
        assert [read(request) for request in requests] == alone
    # 20 tokens of prompt and 10, 30 or 49 of output that are in the cache, in blocks of 16.
    assert [request.num_cached_tokens for request in requests] == [16, 48, 64]


def test_a_request_aborted_while_its_guesses_are_computed_leaves_nothing(folder, know):
    with serving(folder) as engine:
        plain = answers(engine, [PROMPT, PROMPTS[-1]])
    know([token_ids for token_ids, _, _ in plain], right=100)
    with serving(folder, sequences=2, blocks=(24, 16), drafts=14) as engine:
        runner = engine._runner
        runner.hold()
        gone, stays = submit(engine, seed=0), submit(engine, PROMPTS[-1], seed=1)
        runner.release()
        while not (chunks := runner.next_step())[0].draft_token_ids:
            runner.release()
        assert chunks[0].request is gone
        gone.abort()
        runner.open()
        assert read(gone)[2] == "abort"
        assert read(stays) == plain[1]
        stats = engine.stats()
        assert stats.num_free_kv_blocks == stats.num_kv_blocks
