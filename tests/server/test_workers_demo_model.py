"""Four workers of the demo model: one copy of its weights, and an answer from each."""

import sys
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from worker_processes import Workers, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
RUN = "import sys; from marlin.cli import main; sys.exit(main())"
# A byte of the weights changes after they were filled in, before any worker maps them.
SPOILED = """
import os
import marlin.server.process.supervisor as supervisor
seal = supervisor.seal
supervisor.seal = lambda fd: (os.pwrite(fd, b"!!", 40 << 20), seal(fd))
"""
MODEL = "SmolLM2-135M-Instruct.Q4_1"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def workers(demo_model_path, tmp_path_factory):
    arguments = ("serve", str(demo_model_path), "--workers", "4")
    workers = Workers(tmp_path_factory.mktemp("gate") / "gate", *arguments, program=("-c", RUN))
    try:
        workers.wait_for_workers(4)
        yield workers
    finally:
        workers.close()


def ask(workers):
    """The answer of whichever worker takes the question."""
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{workers.port}/v1", api_key="unused", max_retries=0
    ) as sdk:
        messages = [{"role": "user", "content": "Tell me the capital of France."}]
        answer = sdk.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=20
        )
    return answer.choices[0].message.content


def shares_of_weights(pids):
    """(bytes that each process maps and has touched, and its proportional share) of the weights."""
    mapped = shares = 0
    for pid in pids:
        in_weights = False
        with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
            for line in file:
                first, *rest = line.split()
                if not first.endswith(":"):
                    in_weights = "memfd:metal-marlin-weights" in line
                elif in_weights and first == "Rss:":
                    mapped += int(rest[0]) * 1024
                elif in_weights and first == "Pss:":
                    shares += int(rest[0]) * 1024
    return mapped, shares


def test_every_worker_answers_from_one_copy_of_the_weights(workers):
    pids = workers.pids()

    def all_have_computed():
        with ThreadPoolExecutor(4) as pool:  # at once: a busy worker leaves them to the others
            assert all("Paris" in text for text in pool.map(ask, [workers] * 4))
        return all(shares_of_weights([pid])[0] > 80 * MIB for pid in pids)

    until(all_have_computed, "an answer of every worker")
    mapped, shares = shares_of_weights(pids)
    one_worker = mapped / len(pids)
    assert shares <= 1.3 * one_worker


def test_the_memory_in_metrics_counts_the_weights_once(workers):
    found = workers.ask("/metrics").json()["memory_usage_mb"]
    _, shares = shares_of_weights(workers.pids())
    assert shares / MIB < found < shares / MIB + 4 * 90


def test_weights_that_changed_since_they_were_filled_end_it_all_with_a_sentence(
    demo_model_path, tmp_path
):
    arguments = ("serve", str(demo_model_path), "--workers", "2")
    program = ("-c", SPOILED + RUN)
    workers = Workers(tmp_path / "gate", *arguments, program=program, announces=False)
    try:
        assert workers.wait() == 1
    finally:
        workers.close()
    said = [line for line in workers.log if line.startswith("metal-marlin: ")]
    assert said and set(said) == {
        "metal-marlin: the weights that workers share have changed: part 2 of 3\n"
    }
    assert workers.logged("no worker can be replaced: the shared weights have to be made anew")
    assert not workers.logged("Traceback") and not workers.pids()
