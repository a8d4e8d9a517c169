"""Gemma 3 270M, the real file: a base model, which continues text and has no chat template."""

import subprocess
import sys

import pytest
from served import PATIENCE_S, ROOT, Served

from marlin.commands.quantize import quantize

pytestmark = pytest.mark.downloads

COMPLETIONS = "/v1/completions"
# Prompts, and how transformers' Gemma3ForCausalLM goes on in float32 with the file's weights
# decoded.
COUNTING = ("1, 2, 3, 4,", " 5, 6, 7,")
CONTINUED = {
    "counting": COUNTING,
    # Past the sliding window of 512 tokens, so that both kinds of attention count.
    "window": (", ".join(map(str, range(1, 301))) + ",", " 301, 302,"),
    "Paris": ("Paris is the capital of", " France and is the most visited city in the world"),
    "France": ("The capital of France is", " the capital of the country of France. It is"),
}

# Plain text: the base model was taught no turns.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'Question: ' if message['role'] == 'user' else 'Answer: ' }}{{ message['content'] }}\n"
    "{% endfor %}Answer:"
)
CONVERSATION = [
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "Rome"},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def gemma(fetched_model):
    return fetched_model("gemma3-270m")


@pytest.fixture(scope="module")
def served(gemma):
    with Served(gemma, "--host", "127.0.0.1", "--max-context", "4096") as server:
        yield server


def completion(prompt, **changes):
    body = {"model": "gemma-3-270m-q4_k_m", "prompt": prompt, "temperature": 0}
    return {**body, "max_tokens": 16, **changes}


@pytest.mark.parametrize("name", CONTINUED)
def test_it_goes_on_as_the_reference_does(served, name):
    prompt, going_on = CONTINUED[name]
    answer = served.post(COMPLETIONS, completion(prompt))
    assert answer["choices"][0]["text"].startswith(going_on)


def test_a_stream_brings_the_text_of_the_whole_answer(served):
    whole = served.post(COMPLETIONS, completion(COUNTING[0]))["choices"][0]["text"]
    events = served.events(COMPLETIONS, completion(COUNTING[0]))
    assert events[-1] == "[DONE]"
    texts = [choice["text"] for event in events[:-1] for choice in event["choices"]]
    assert len(texts) > 4 and "".join(texts) == whole


def test_a_chat_is_refused_since_the_file_has_no_template(served):
    messages = [{"role": "user", "content": "Hello!"}]
    body = {"model": "gemma-3-270m-q4_k_m", "messages": messages}
    status, answer = served.ask("POST", "/v1/chat/completions", body)
    assert status in (400, 422) and "template" in answer["error"]["message"]


def test_generate_writes_what_the_server_says(served, gemma):
    run = "import sys; from marlin.cli import main; sys.exit(main())"
    words = ["generate", str(gemma), COUNTING[0], "--temperature", "0"]
    done = subprocess.run(
        [sys.executable, "-c", run, *words, "--max-tokens", "16", "--max-context", "4096"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    whole = served.post(COMPLETIONS, completion(COUNTING[0]))["choices"][0]["text"]
    assert done.stdout == whole + "\n"


def test_in_its_native_form_it_counts_on_and_chats_with_a_template(gemma, tmp_path):
    folder = tmp_path / "gemma3"
    quantize(gemma, folder, "int8", 64, progress=lambda done, total: None)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    body = {"model": "gemma3", "messages": CONVERSATION, "temperature": 0, "stop": "\n"}
    with Served(folder, "--host", "127.0.0.1", "--max-context", "512") as server:
        [choice] = server.post("/v1/chat/completions", body)["choices"]
        counted = server.post(COMPLETIONS, completion(COUNTING[0], model="gemma3"))
    assert choice["message"]["content"].strip() == "Paris"
    assert choice["finish_reason"] == "stop"
    assert counted["choices"][0]["text"].startswith(COUNTING[1])
