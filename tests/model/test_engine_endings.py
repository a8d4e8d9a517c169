"""How requests end before their time: aborted, the engine closed, a step failed, the thread dead.

The runner's steps are held while something happens, so that each test knows where the engine is.
"""

import pytest
from engine_fixture import STEP_TOKENS, TIMEOUT_S, TinyEngine, read
from tiny_models import random_tensors, random_tokens, tiny_config, write_folder

from marlin.engine.request import FinishEvent, TokenEvent
from marlin.errors import DeviceError, StoppingError

PROMPT = random_tokens(40, 97, seed=1)
OTHER = random_tokens(33, 97, seed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config()
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=3))


@pytest.fixture
def tested(folder):
    tested = TinyEngine(folder)
    yield tested
    tested.close()


@pytest.fixture(scope="module")
def answer(folder):
    """The undisturbed answer to OTHER."""
    tested = TinyEngine(folder)
    token_ids = tested.generate(OTHER)
    tested.close()
    return token_ids


def test_a_request_aborted_while_it_waits_is_never_computed(tested, answer):
    tested.runner.hold()
    first = tested.submit(PROMPT, "first")
    waiting = tested.submit(PROMPT, "waiting")
    last = tested.submit(OTHER, "last")
    tested.runner.next_step()
    waiting.abort()
    tested.runner.open()
    assert read(waiting) == ([], FinishEvent("abort"))
    assert len(read(first)[0]) == 8
    assert read(last) == (answer, FinishEvent("length"))
    assert set(tested.runner.sampled_ids) == {"first", "last"}


def test_a_request_aborted_during_its_prefill_frees_the_engine_at_the_next_step(tested, answer):
    tested.runner.hold()
    gone = tested.submit(PROMPT, "gone")
    after = tested.submit(OTHER, "after")
    assert len(tested.runner.next_step()[0].token_ids) == STEP_TOKENS
    tested.runner.release()
    tested.runner.next_step()
    gone.abort()
    tested.runner.open()
    assert read(gone) == ([], FinishEvent("abort"))
    assert read(after) == (answer, FinishEvent("length"))
    assert set(tested.runner.sampled_ids) == {"after"}


def test_a_request_aborted_while_it_decodes_frees_the_engine_at_the_next_step(tested, answer):
    tested.runner.hold()
    gone = tested.submit(PROMPT, "gone", max_tokens=50)
    after = tested.submit(OTHER, "after")
    for _ in range(4):  # three chunks of the prompt, one decoded token
        tested.runner.next_step()
        tested.runner.release()
    tested.runner.next_step()
    gone.abort()
    tested.runner.open()
    token_ids, finish = read(gone)
    # Two tokens were out; the step that ran during the abort may have added one.
    assert 2 <= len(token_ids) <= 3 and finish.reason == "abort"
    assert read(after) == (answer, FinishEvent("length"))


def test_aborting_after_the_end_does_nothing(tested, answer):
    request = tested.submit(OTHER)
    assert read(request) == (answer, FinishEvent("length"))
    request.abort()
    request.abort()
    assert tested.generate(OTHER) == answer
    assert request.events.empty()


def test_the_tokens_that_an_aborted_prefill_computed_serve_the_next_request(tested, answer):
    tested.runner.hold()
    gone = tested.submit(OTHER, "gone")
    tested.runner.next_step()
    tested.runner.release()
    tested.runner.next_step()
    gone.abort()
    tested.runner.open()
    assert read(gone)[1].reason == "abort"
    request = tested.submit(OTHER)
    assert read(request) == (answer, FinishEvent("length"))
    assert request.num_cached_tokens == 2 * STEP_TOKENS


def test_a_request_aborted_while_it_waits_leaves_the_cached_prefix_alone(tested):
    tested.generate(PROMPT)
    tested.runner.hold()
    first = tested.submit(PROMPT, "first")
    gone = tested.submit(OTHER, "gone")
    tested.runner.next_step()
    gone.abort()
    tested.runner.open()
    read(first)
    assert read(gone)[1].reason == "abort"
    again = tested.submit(PROMPT, "again")
    read(again)
    assert again.num_cached_tokens == len(PROMPT) - 1


def test_closing_ends_the_running_request_and_those_that_wait(tested):
    tested.runner.hold()
    requests = [tested.submit(PROMPT, name) for name in "abc"]
    tested.runner.next_step()
    thread = tested.begin_closing()
    tested.runner.open()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    for request in requests:
        token_ids, finish = read(request)
        assert (token_ids, finish.reason) == ([], "abort")
    assert tested.runner.is_closed
    assert len(tested.runner.steps) == 1


def test_closing_twice_is_harmless_and_nothing_is_taken_afterwards(tested):
    tested.generate(OTHER)
    tested.engine.close()
    tested.engine.close()
    assert not tested.engine.alive
    with pytest.raises(StoppingError, match="stopped"):
        tested.submit(OTHER)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (DeviceError("the device fell over"), "the device fell over"),
        (MemoryError(), "there was no memory for a step"),
    ],
    ids=["device", "memory"],
)
def test_a_failed_step_fails_its_request_alone(tested, answer, fault, said):
    tested.generate(OTHER)
    tested.runner.hold()
    failing = tested.submit(OTHER, "failing")
    after = tested.submit(OTHER, "after")
    tested.runner.next_step()
    tested.runner.faults.append(fault)
    tested.runner.open()
    token_ids, finish = read(failing)
    assert token_ids == [] and finish.reason == "error"
    assert str(finish.error) == said
    assert read(after) == (answer, FinishEvent("length"))
    # What the failed step left in the cache is not trusted.
    assert after.num_cached_tokens == 0
    assert tested.engine.alive


def test_a_step_that_fails_amid_an_answer_ends_it_after_the_tokens_it_had(tested, answer):
    tested.runner.hold()
    failing = tested.submit(OTHER, "failing")
    for _ in range(3):
        tested.runner.next_step()
        tested.runner.release()
    tested.runner.next_step()
    tested.runner.faults.append(DeviceError("the device fell over"))
    tested.runner.open()
    token_ids, finish = read(failing)
    assert token_ids == answer[:1] and finish.reason == "error"
    assert tested.generate(OTHER) == answer


def test_two_failed_steps_in_a_row_and_then_a_good_one_are_gone_on_from(tested, answer):
    for _ in range(2):
        tested.runner.faults += [DeviceError("the device fell over")] * 2
        assert [read(tested.submit(OTHER))[1].reason for _ in range(2)] == ["error"] * 2
        assert tested.generate(OTHER) == answer
    assert tested.engine.alive


def test_the_third_failed_step_in_a_row_ends_the_engine_and_all_requests_hear_why(tested):
    tested.runner.hold()
    requests = [tested.submit(OTHER, name) for name in "abcd"]
    tested.runner.next_step()
    failure = DeviceError("the device fell over")
    tested.runner.faults += [failure] * 3
    tested.runner.open()
    finishes = [read(request)[1] for request in requests]
    assert finishes[:3] == [FinishEvent("error", failure)] * 3
    assert str(finishes[3].error) == "the engine has stopped: the device fell over"
    assert tested.engine.wait_for_end() is failure
    assert not tested.engine.alive
    with pytest.raises(StoppingError, match="stopped"):
        tested.submit(OTHER)


def test_an_engine_that_was_closed_ended_without_a_failure(tested):
    tested.engine.close()
    assert tested.engine.wait_for_end() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_thread_fails_every_request_and_takes_no_more(tested):
    tested.runner.hold()
    requests = [tested.submit(PROMPT, name) for name in "abc"]
    tested.runner.next_step()
    bug = RuntimeError("a bug in the engine")
    tested.runner.faults.append(bug)
    tested.runner.open()
    for request in requests:
        token_ids, finish = read(request)
        assert token_ids == [] and finish.reason == "error"
        assert isinstance(finish.error, DeviceError)
    assert tested.engine.wait_for_end() is bug
    assert not tested.engine.alive
    with pytest.raises(StoppingError, match="stopped"):
        tested.submit(PROMPT)
    stats = tested.engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    tested.engine.close()
    assert tested.runner.is_closed


def test_tokens_are_published_one_step_at_a_time(tested, answer):
    tested.runner.hold()
    request = tested.submit(OTHER)
    for _ in range(3):
        tested.runner.next_step()
        assert request.events.empty()
        tested.runner.release()
    tested.runner.next_step()
    assert request.events.get_nowait() == TokenEvent((answer[0],))
    assert request.events.empty()
