"""The whole path, from the command line to the official SDK, with the demo model."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from clients import CLIENT_TIMEOUT_S, RawClient, request_bytes

ROOT = Path(__file__).parent.parent.parent
MODEL = "SmolLM2-135M-Instruct.Q4_1"
RUN = "import sys; from marlin.cli import main; sys.exit(main())"


class Served:
    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, "serve", str(path), "--host", "127.0.0.1", "--port", "0"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "METAL_MARLIN_MODEL_PATH": ""},
        )
        line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+)$", line)[1])
        assert f"serving {MODEL} " in line
        self.sdk = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="unused", max_retries=0
        )

    def ask(self, question, **changes):
        messages = [{"role": "user", "content": question}]
        return self.sdk.chat.completions.create(
            model=MODEL, messages=messages, **{"temperature": 0, "max_tokens": 40, **changes}
        )

    def connect(self):
        address = ("127.0.0.1", self.port)
        return RawClient(socket.create_connection(address, timeout=CLIENT_TIMEOUT_S))


@pytest.fixture(scope="module")
def served(demo_model_path):
    served = Served(demo_model_path)
    yield served
    served.sdk.close()
    served.process.terminate()
    assert served.process.wait(timeout=CLIENT_TIMEOUT_S) == 0


def test_it_answers_plain_questions(served):
    answer = served.ask("What is the capital of France?")
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 37


def test_a_streamed_answer_is_the_same_text(served):
    question = "What is the capital of France?"
    whole = served.ask(question).choices[0].message.content
    chunks = list(served.ask(question, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert len(chunks) > 3


def test_a_seed_repeats_an_answer_and_another_one_does_not(served):
    def poem(seed):
        answer = served.ask("Write a poem.", temperature=1.5, top_p=1, seed=seed, max_tokens=16)
        return answer.choices[0].message.content

    assert poem(1) == poem(1) != poem(2)


def test_a_stop_string_ends_the_text_before_it(served):
    answer = served.ask("What is the capital of France?", stop=["Paris"])
    assert answer.choices[0].message.content.endswith("France is ")
    assert answer.choices[0].finish_reason == "stop"


def test_a_completion_goes_on_from_its_prompt(served):
    answer = served.sdk.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert answer.choices[0].text.startswith(" ")
    assert answer.usage.completion_tokens == 4


def test_a_prompt_past_the_context_is_refused_with_both_numbers(served):
    with pytest.raises(openai.BadRequestError, match="2048|8192") as caught:
        served.ask("word " * 9000)
    assert caught.value.code == "context_length_exceeded"


def test_a_client_that_leaves_during_prefill_frees_the_engine_for_the_next(served):
    body = {"model": MODEL, "prompt": "word " * 1900, "max_tokens": 10_000, "ignore_eos": True}
    with served.connect() as client, served.connect() as other:

        def wait_for_active(number):
            end = time.monotonic() + CLIENT_TIMEOUT_S
            while other.ask("GET", "/metrics").json()["requests_active"] != number:
                assert time.monotonic() < end, f"requests_active never became {number}"

        client.send(request_bytes("POST", "/v1/completions", body))
        wait_for_active(1)
        client.close()
        wait_for_active(0)
    assert "Paris" in served.ask("What is the capital of France?").choices[0].message.content
