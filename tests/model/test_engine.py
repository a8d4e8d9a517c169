"""The engine in sequential mode over a real tiny model: order, endings, prefixes and counts."""

import numpy as np
import pytest
from engine_fixture import CONTEXT_TOKENS, STEP_TOKENS, TinyEngine, read
from tiny_models import random_tensors, random_tokens, tiny_config, write_folder

from marlin.engine.request import TokenEvent
from marlin.errors import ContextLengthError, MarlinError

VOCAB = 97
PROMPT = random_tokens(40, VOCAB, seed=1)
OTHER = random_tokens(33, VOCAB, seed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config()
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=3))


@pytest.fixture
def start(folder):
    """Start engines that are closed after the test: start(eos_token_ids=…, context=…)."""
    opened = []

    def start_one(**options):
        opened.append(TinyEngine(folder, **options))
        return opened[-1]

    yield start_one
    for tested in opened:
        tested.close()


def test_requests_are_answered_one_after_another_in_the_order_of_submission(start):
    tested = start()
    tested.runner.hold()
    requests = [tested.submit(PROMPT[i:], request_id=name) for i, name in enumerate("abcd")]
    tested.runner.open()
    for request in requests:
        token_ids, finish = read(request)
        assert (len(token_ids), finish.reason) == (8, "length")
    sampled_ids = tested.runner.sampled_ids
    assert set(sampled_ids) == {"a", "b", "c", "d"} and sampled_ids == sorted(sampled_ids)


def test_a_prompt_is_computed_in_steps_of_at_most_the_runners_size(start):
    tested = start()
    tested.generate(PROMPT, max_tokens=3)
    sizes = [len(chunk.token_ids) for step in tested.runner.steps for chunk in step]
    assert sizes == [STEP_TOKENS, STEP_TOKENS, 8, 1, 1]
    starts = [chunk.start for step in tested.runner.steps for chunk in step]
    assert starts == [0, 16, 32, 40, 41]


def test_max_tokens_ends_an_answer_with_length(start):
    tested = start()
    for max_tokens in (1, 5):
        token_ids, finish = read(tested.submit(PROMPT, max_tokens=max_tokens))
        assert (len(token_ids), finish.reason, finish.error) == (max_tokens, "length", None)


@pytest.mark.parametrize("room", [1, 2, 7])
def test_a_full_context_ends_an_answer_with_length(start, room):
    tested = start()
    prompt = random_tokens(CONTEXT_TOKENS - room, VOCAB)
    request = tested.submit(prompt, max_tokens=1000)
    token_ids, finish = read(request)
    assert (len(token_ids), finish.reason) == (room, "length")
    assert request.output_token_ids == token_ids


def test_an_end_token_stops_an_answer_and_is_not_published(start):
    answer = start().generate(PROMPT, max_tokens=20)
    end = answer[7]
    index = answer.index(end)
    request = (tested := start(eos_token_ids={end})).submit(PROMPT, max_tokens=20)
    token_ids, finish = read(request)
    assert (token_ids, finish.reason) == (answer[:index], "stop")
    assert request.output_token_ids == answer[:index]
    assert tested.generate(PROMPT, max_tokens=20, ignore_eos=True) == answer


def test_an_end_token_that_comes_first_gives_an_empty_answer(start):
    first = start().generate(PROMPT, max_tokens=1)
    assert start(eos_token_ids=first).generate(PROMPT) == []


def test_a_seed_repeats_its_tokens_whatever_was_asked_in_between(start):
    tested = start()
    sampled = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 24}
    first = tested.generate(PROMPT, seed=7, **sampled)
    tested.generate(OTHER, seed=9, **sampled)
    assert tested.generate(PROMPT, seed=7, **sampled) == first
    assert start().generate(PROMPT, seed=7, **sampled) == first


def test_other_seeds_and_no_seed_give_other_tokens(start):
    tested = start()
    sampled = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 24}
    seeds = [0, 1, 2, 1 << 32, (1 << 64) - 1, -5, None, None]
    answers = [tuple(tested.generate(PROMPT, seed=seed, **sampled)) for seed in seeds]
    assert len(set(answers)) == len(seeds)


def test_each_position_of_an_answer_draws_anew(start):
    # So hot that all 97 tokens are equally likely: 24 draws hit about 21 of them.
    answer = start().generate(PROMPT, temperature=1e6, top_p=1.0, seed=1, max_tokens=24)
    assert len(set(answer)) > 12


def test_a_cached_prefix_changes_no_token_and_is_counted(start):
    plain = {"temperature": 1.0, "seed": 3, "max_tokens": 6}
    for prompt, cached in [(PROMPT[:30] + OTHER[:9], 30), (PROMPT, 39), (PROMPT[:12], 11)]:
        tested = start()
        tested.generate(PROMPT)
        tested.runner.steps.clear()
        request = tested.submit(prompt, **plain)
        token_ids, _ = read(request)
        assert request.num_cached_tokens == cached
        assert sum(len(c.token_ids) for c in tested.runner.steps[0]) == min(
            STEP_TOKENS, len(prompt) - cached
        )
        assert token_ids == start().generate(prompt, **plain)


def test_a_continued_conversation_reuses_the_answer_too(start):
    tested = start()
    answer = tested.generate(PROMPT, max_tokens=10)
    prompt = PROMPT + answer + OTHER[:5]
    request = tested.submit(prompt)
    token_ids, _ = read(request)
    # The last token of the answer was sampled and never computed.
    assert request.num_cached_tokens == len(PROMPT) + 9
    assert token_ids == start().generate(prompt)


def test_prompts_with_nothing_in_common_reuse_nothing(start):
    tested = start()
    tested.generate(PROMPT)
    prompt = [(PROMPT[0] + 1) % VOCAB, *PROMPT[1:]]
    request = tested.submit(prompt)
    token_ids, _ = read(request)
    assert request.num_cached_tokens == 0
    assert token_ids == start().generate(prompt)


@pytest.mark.parametrize("length", [CONTEXT_TOKENS, CONTEXT_TOKENS + 37])
def test_a_prompt_without_room_for_an_answer_is_refused_with_both_numbers(start, length):
    with pytest.raises(ContextLengthError, match=f"{length} tokens.*{CONTEXT_TOKENS}"):
        start().submit([1] * length)


@pytest.mark.parametrize("prompt", [[], [VOCAB], [-1, 5], [3, 1 << 40]])
def test_a_prompt_that_is_empty_or_outside_the_vocabulary_is_refused(start, prompt):
    tested = start()
    with pytest.raises(MarlinError) as caught:
        tested.submit(prompt)
    assert 400 <= caught.value.status < 500
    assert len(tested.generate(PROMPT)) == 8


def test_token_events_hold_the_output_in_order(start):
    request = start().submit(PROMPT, max_tokens=5)
    token_ids, _ = read(request)
    assert request.output_token_ids == token_ids
    assert request.num_tokens == len(PROMPT) + 5
    assert TokenEvent((3, 4)).token_ids == (3, 4)


def test_stats_count_what_waits_and_what_runs(start):
    tested = start()
    before = tested.engine.stats()
    assert (before.num_running, before.num_waiting) == (0, 0)
    # K and V of 2 layers, 96 tokens, 2 KV heads of 16 numbers, float16.
    assert before.kv_bytes == 2 * 2 * CONTEXT_TOKENS * 2 * 16 * 2
    tested.runner.hold()
    requests = [tested.submit(PROMPT, max_tokens=5), tested.submit(OTHER, max_tokens=3)]
    tested.runner.next_step()
    held = tested.engine.stats()
    assert (held.num_running, held.num_waiting) == (1, 1)
    tested.runner.open()
    for request in requests:
        read(request)
    after = tested.engine.stats()
    assert (after.num_running, after.num_waiting) == (0, 0)


def penalized(logits, prompt, output, repetition=1.0, frequency=0.0, presence=0.0):
    """float32 [vocab] logits changed as SamplingParams says."""
    logits = logits.copy()
    for token_id in set(prompt) | set(output) if repetition != 1.0 else ():
        x = logits[token_id]
        logits[token_id] = x / np.float32(repetition) if x > 0 else x * np.float32(repetition)
    for token_id in set(output):
        count = output.count(token_id)
        logits[token_id] -= np.float32(count * frequency) + np.float32(presence)
    return logits


@pytest.mark.parametrize(
    "changes",
    [{"repetition": 1.4}, {"frequency": 0.9}, {"presence": 1.7}, {"frequency": -0.6}]
    + [{"repetition": 1.2, "frequency": 0.4, "presence": 0.7}, {"repetition": 0.7}],
    ids=str,
)
def test_penalties_choose_the_tokens_that_their_definition_says(start, changes):
    tested = start()
    plain = tested.generate(PROMPT, max_tokens=20)
    params = {f"{name}_penalty": value for name, value in changes.items()}
    answer = tested.generate(PROMPT, max_tokens=20, **params)
    assert answer != plain
    raw = start()
    for index in range(20):
        raw.generate(PROMPT + answer[:index], max_tokens=1)
        logits = penalized(raw.runner.logits[0], PROMPT, answer[:index], **changes)
        assert answer[index] == logits.argmax(), index


def test_another_client_s_request_comes_after_the_step_in_hand_and_no_token_changes(start):
    tested = start()
    alone = [tested.generate(PROMPT[i:], max_tokens=20) for i in range(3)]
    alone_other = tested.generate(OTHER, max_tokens=3)
    while not tested.runner.started.empty():
        tested.runner.started.get()
    tested.runner.hold()
    requests = [
        tested.submit(PROMPT[i:], name, "first", max_tokens=20) for i, name in enumerate("abc")
    ]
    for _ in range(8):  # the prompt, and a few tokens
        tested.runner.next_step()
        tested.runner.release()
    num_steps = len(tested.runner.steps)
    other = tested.submit(OTHER, "other", "second", max_tokens=3)
    tested.runner.open()
    assert read(other)[0] == alone_other
    assert [read(request)[0] for request in requests] == alone
    asked = [step[0].request.request_id for step in tested.runner.steps[num_steps:]]
    begun = asked.index("other")
    assert begun <= 2 and asked[begun : begun + 5] == ["other"] * 5
    assert [request.num_preemptions for request in requests] == [1, 0, 0]
