"""The simulated queue beside sums that can be made by hand, and beside queueing theory."""

import pytest

from marlin.engine.fleet import Fleet, Job, jobs


def ten_ms(_contexts, _prefill, _before):
    return 0.01


def test_a_prompt_takes_its_steps_and_each_token_more_another():
    found = Fleet(1, 4, 256, ten_ms).run([Job(1.0, 600, 3)])  # 256 + 256 + 88, then two
    assert found.first_token_s == [pytest.approx(0.03)]
    assert found.token_s == [pytest.approx(0.01)]
    assert found.tokens_per_s == pytest.approx(3 / 1.05)
    assert found.busy == pytest.approx(0.05 / 1.05)


def test_requests_beyond_the_streams_of_a_server_wait_and_go_to_another_where_there_is_one():
    asked = [Job(0.0, 1, 10), Job(0.0, 1, 10)]
    assert Fleet(1, 1, 256, ten_ms).run(asked).first_token_s == pytest.approx([0.01, 0.11])
    assert Fleet(2, 1, 256, ten_ms).run(asked).first_token_s == pytest.approx([0.01, 0.01])


def test_what_decodes_goes_on_beside_prompts_and_takes_its_room():
    steps = []

    def noted(contexts, prefill, _before):
        steps.append((contexts, prefill))
        return 0.01

    Fleet(1, 2, 16, noted).run([Job(0.0, 4, 4), Job(0.005, 40, 1)])
    assert steps == [([], 4), ([4 + 1], 15), ([4 + 2], 15), ([4 + 3], 10)]


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_the_mean_wait_is_that_of_queueing_theory(load):
    """One server that takes 10 ms for each request, which arrive at random: M/D/1."""
    asked = jobs(1, 40_000, load / 0.01, 1, 1, 1)
    found = Fleet(1, 1, 256, ten_ms).run([job._replace(prompt_tokens=1) for job in asked])
    waits = sum(found.first_token_s) / len(found.first_token_s) - 0.01
    assert waits == pytest.approx(0.01 * load / (2 * (1 - load)), rel=0.1)
    assert found.busy == pytest.approx(load, rel=0.02)


def test_lengths_have_the_means_asked_for_and_fit_the_context():
    asked = jobs(1, 20_000, 4.0, 100, 50, 100_000)
    assert sum(job.prompt_tokens for job in asked) / 20_000 == pytest.approx(100, rel=0.03)
    assert sum(job.output_tokens for job in asked) / 20_000 == pytest.approx(50, rel=0.03)
    assert asked[-1].arrival_s == pytest.approx(5000, rel=0.03)
    short = jobs(1, 1000, 4.0, 100, 50, 128)
    assert all(job.prompt_tokens + job.output_tokens <= 128 for job in short)
    assert all(min(job.prompt_tokens, job.output_tokens) >= 1 for job in short)
