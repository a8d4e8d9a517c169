"""Gemma 3 270M, the real file: it counts on, and chats through the server in its native form.

The file is the base model's and brings no chat template, so the tests write one of plain text.
"""

import os

import pytest
from served import Served

from marlin.commands.quantize import quantize
from marlin.engine.load import load_model
from marlin.engine.request import FinishEvent
from marlin.engine.sampling import SamplingParams

pytestmark = pytest.mark.downloads

EVENT_TIMEOUT_S = 60
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
def gguf(fetched_model):
    return fetched_model("gemma3-270m")


@pytest.fixture(scope="module")
def folder(gguf, tmp_path_factory):
    """The model in int8, with TEMPLATE."""
    path = tmp_path_factory.mktemp("native") / "gemma3"
    quantize(gguf, path, "int8", 64, progress=lambda done, total: None)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def counted_on(path):
    """The nine greedy tokens after four numbers, as text."""
    served = load_model(path, max_context_tokens=256, device_kind="cpu")
    try:
        prompt = served.tokenizer.encode("1, 2, 3, 4,")
        params = SamplingParams(temperature=0.0, max_tokens=9)
        request = served.engine.submit(prompt, params, "count")
        token_ids = []
        while not isinstance(event := request.events.get(timeout=EVENT_TIMEOUT_S), FinishEvent):
            token_ids += event.token_ids
        assert event.reason == "length"
        return served.tokenizer.decode(token_ids)
    finally:
        served.engine.close()


def test_it_counts_on(gguf):
    assert counted_on(gguf) == " 5, 6, 7,"


def test_it_counts_on_in_its_native_form(folder):
    assert counted_on(folder) == " 5, 6, 7,"


def test_it_chats_through_the_server(folder):
    body = {"model": "gemma3", "messages": CONVERSATION, "temperature": 0, "stop": "\n"}
    with Served(folder, "--host", "127.0.0.1", "--max-context", "512") as server:
        answer = server.post("/v1/chat/completions", body)
    [choice] = answer["choices"]
    assert choice["message"]["content"].strip() == "Paris"
    assert choice["finish_reason"] == "stop"


def test_without_a_template_it_completes_and_says_why_it_does_not_chat(gguf):
    name = os.path.basename(gguf).removesuffix(".gguf")
    with Served(gguf, "--host", "127.0.0.1", "--max-context", "512") as server:
        body = {"model": name, "prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 9}
        assert server.post("/v1/completions", body)["choices"][0]["text"] == " 5, 6, 7,"
        body = {"model": name, "messages": CONVERSATION}
        status, refused = server.ask("POST", "/v1/chat/completions", body)
    assert status == 400 and "no_chat_template" in str(refused)
