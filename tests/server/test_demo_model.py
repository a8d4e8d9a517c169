"""The whole path, from the command line to the official SDK, with the demo model."""

import json
import math
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
    answer = served.ask("Tell me the capital of France.")
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 37


def test_a_streamed_answer_is_the_same_text(served):
    question = "Tell me the capital of France."
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
    answer = served.ask("Tell me the capital of France.", stop=["Paris"])
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
    assert "Paris" in served.ask("Tell me the capital of France.").choices[0].message.content


def sampled_text(served, **changes):
    answer = served.ask("Write a poem.", temperature=1.5, top_p=1, max_tokens=12, **changes)
    return [choice.message.content for choice in answer.choices]


def test_choices_repeat_with_a_seed_and_differ_from_each_other(served):
    first = sampled_text(served, n=3, seed=5)
    assert first == sampled_text(served, n=3, seed=5)
    assert len(set(first)) == 3
    assert sampled_text(served, seed=6) == [first[1]]


def test_greedy_choices_are_copies_and_find_their_prompt_cached(served):
    answer = served.ask("Tell me the capital of France.", n=3, max_tokens=4)
    assert len({choice.message.content for choice in answer.choices}) == 1
    assert answer.usage.completion_tokens == 12
    again = served.ask("Tell me the capital of France.", max_tokens=8)
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_a_streamed_call_interleaves_nothing_but_its_indices(served):
    asked = {"n": 2, "seed": 5, "temperature": 1.0, "max_tokens": 12}
    whole = [c.message.content for c in served.ask("Write a poem.", **asked).choices]
    texts = {0: "", 1: ""}
    for chunk in served.ask("Write a poem.", stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert [texts[0], texts[1]] == whole


def test_log_probabilities_are_those_of_the_recorded_reference(served, checkout):
    reference = json.loads((checkout / "tests" / "data" / "smollm2_reference.json").read_text())
    item = next(item for item in reference["items"] if item["kind"] == "raw")
    # An int8 engine against float32: a lone token may be this far off (see the file's own spread).
    tolerance = reference["spread_between_the_two"]["p99_abs"]
    answer = served.sdk.completions.create(
        model=MODEL, prompt=item["prompt_ids"], temperature=0, max_tokens=1, logprobs=5
    )
    shown = answer.choices[0].logprobs
    (token_id, expected), *_ = item["fp32_top5"][0]
    assert token_id == item["greedy_ids"][0]
    assert shown.tokens == [" Paris"]
    assert shown.token_logprobs[0] == pytest.approx(expected, abs=tolerance)
    recorded = [logprob for _, logprob in item["fp32_top5"][0]]
    assert list(shown.top_logprobs[0].values()) == pytest.approx(recorded, abs=2 * tolerance)


def test_likeliest_tokens_are_ordered_and_weigh_less_than_everything(served):
    answer = served.ask("Tell me the capital of France.", logprobs=True, top_logprobs=20)
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        logprobs = [top.logprob for top in token.top_logprobs]
        assert len(logprobs) == 20 and logprobs == sorted(logprobs, reverse=True)
        assert 0.5 < sum(map(math.exp, logprobs)) <= 1 + 1e-9
        assert token.logprob == logprobs[0]  # greedy
        assert bytes(token.bytes).decode() == token.token


def test_a_bias_bans_and_forces_tokens(served):
    asked = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0}
    paris = 7042
    create = served.sdk.completions.create
    assert "Paris" in create(**asked, max_tokens=1).choices[0].text
    banned = create(**asked, max_tokens=12, logit_bias={str(paris): -100})
    assert "Paris" not in banned.choices[0].text
    forced = create(**asked, max_tokens=3, logit_bias={str(paris): 100})
    assert forced.choices[0].text == " Paris Paris Paris"


def test_the_model_card_tells_its_size(served):
    card = served.sdk.models.retrieve(MODEL)
    assert card.config == {
        "format": "gguf",
        "max_context_length": card.config["max_context_length"],
        "num_layers": 30,
        "vocab_size": 49152,
        "manifest": None,
    }
    assert card.config["max_context_length"] in (2048, 8192)
    assert card.capabilities["chat_completions"] is True


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1])
def test_an_answer_keeps_to_its_schema_streamed_or_not(served, temperature):
    schema = {"name": "person", "strict": True, "schema": PERSON}
    asked = {
        "response_format": {"type": "json_schema", "json_schema": schema},
        **{"temperature": temperature, "seed": 3, "max_tokens": 100},
    }
    answer = served.ask("Describe someone.", **asked).choices[0]
    person = json.loads(answer.message.content)
    assert list(person) == ["name", "age"] and 0 <= person["age"] <= 120
    assert 1 <= len(person["name"]) <= 20 and answer.finish_reason == "stop"
    chunks = served.ask("Describe someone.", stream=True, **asked)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == answer.message.content


def test_an_answer_is_an_object_or_one_of_the_choices(served):
    asked = {"response_format": {"type": "json_object"}, "max_tokens": 200}
    answer = served.ask('Answer {"colour": "..."} with a colour.', **asked).choices[0]
    assert answer.finish_reason == "length" or isinstance(json.loads(answer.message.content), dict)
    for output, pattern in (
        ({"choice": ["north", "south"]}, "north|south"),
        ({"regex": r"\d{2}:\d{2}"}, r"\d\d:\d\d"),
        ({"grammar": 'root ::= "<" [a-z]{3} ">"'}, "<[a-z]{3}>"),
        ({"json": '{"enum": [1, null]}'}, "1|null"),
    ):
        answer = served.ask("When?", extra_body={"structured_outputs": output}).choices[0]
        assert re.fullmatch(pattern, answer.message.content) and answer.finish_reason == "stop"


def test_a_schema_that_cannot_be_kept_to_is_refused_by_its_pointer(served):
    schema = {"type": "object", "properties": {"a": {"contains": {}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        served.ask("Hi", response_format=wanted)
    param = "response_format.json_schema.schema#/properties/a/contains"
    assert caught.value.body["param"] == param
    impossible = {"structured_outputs": {"json": {"enum": []}}}
    with pytest.raises(openai.UnprocessableEntityError, match="nothing satisfies") as caught:
        served.ask("Hi", extra_body=impossible)
    assert caught.value.body["param"] == "structured_outputs.json"
