"""/tokenize and /detokenize: two servers' shapes, bounded like prompts, ended with their client."""

import threading

import pytest
from clients import CLIENT_TIMEOUT_S, MODEL, request_bytes
from fakes import ByteTokenizer, FakeEngine
from scripted import SCHEMA, Qwen

PATH, BACK = "/tokenize", "/detokenize"


def ask(server, path, body, headers=()):
    with server.connect() as client:
        return client.ask("POST", path, body, headers)


def test_content_gives_tokens_as_llama_server_does(server):
    assert ask(server, PATH, {"content": "Hi"}).json() == {"tokens": [72, 105]}
    assert ask(server, PATH, {"content": ""}).json() == {"tokens": []}
    pieces = ask(server, PATH, {"content": "é!", "with_pieces": True}).json()["tokens"]
    assert pieces == [
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
        {"id": 33, "piece": "!"},
    ]


def test_a_prompt_gives_tokens_their_count_and_the_context_as_vllm_does(start_server):
    server = start_server(FakeEngine(max_context_tokens=100))
    asked = {"model": MODEL, "prompt": "Hi"}
    told = {"count": 2, "max_model_len": 100, "tokens": [72, 105], "token_strs": None}
    assert ask(server, PATH, asked).json() == told
    texts = ask(server, PATH, {**asked, "return_token_strs": True}).json()
    assert texts == {**told, "token_strs": ["H", "i"]}


def test_messages_are_tokenized_as_chat_computes_them(start_server):
    server = start_server(FakeEngine(), Qwen())
    messages = [{"role": "user", "content": "Hi"}]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    asked = {"model": MODEL, "messages": messages, "tools": tools}
    told = ask(server, PATH, asked).json()
    assert ask(server, "/v1/chat/completions", asked).status == 200
    assert told["tokens"] == server.engine.requests[-1].prompt_token_ids
    assert told["count"] == len(told["tokens"])


def test_tokens_become_their_text_by_both_names(server):
    text = "é<end>"
    told = ask(server, BACK, {"model": MODEL, "tokens": [0xC3, 0xA9, 256]}).json()
    assert told == {"content": text, "prompt": text}
    assert ask(server, BACK, {"tokens": []}).json()["content"] == ""


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (PATH, {"content": "a", "add_speciale": True}, 422, "add_speciale"),
        (PATH, {"content": 1}, 422, "content"),
        (PATH, {"content": "a", "parse_special": 1}, 422, "parse_special"),
        (PATH, {"model": MODEL}, 422, "prompt"),
        (PATH, {"prompt": ["a"]}, 422, "prompt"),
        (PATH, {"prompt": "a", "messages": []}, 422, "prompt"),
        (PATH, {"messages": []}, 422, "messages"),
        (PATH, {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
         422, "add_special_tokens"),
        (PATH, {"content": "a", "model": "other"}, 404, "model"),
        (PATH, {"content": "x" * 100}, 400, None),
        (BACK, {"tokens": [257]}, 422, "tokens[0]"),
        (BACK, {"tokens": [72, -1]}, 422, "tokens[1]"),
        (BACK, {"tokens": ["a"]}, 422, "tokens[0]"),
        (BACK, {"tokens": "a"}, 422, "tokens"),
        (BACK, {}, 422, "tokens"),
        (BACK, {"tokens": [72] * 100}, 400, None),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_by_name(start_server, path, body, status, param):
    answer = ask(start_server(FakeEngine(max_context_tokens=100)), path, body)
    assert (answer.status, answer.error["param"]) == (status, param)


@pytest.mark.parametrize("path", [PATH, BACK])
def test_nothing_is_told_without_the_key(start_server, path):
    server = start_server(environ={"METAL_MARLIN_API_KEY": "secret"})
    body = {"content": "Hi"} if path == PATH else {"tokens": [72]}
    assert ask(server, path, body).status == 401
    assert ask(server, path, body, ["Authorization: Bearer secret"]).status == 200


def test_no_slot_is_waited_for(start_server):
    release = threading.Event()

    def script(request):
        release.wait(CLIENT_TIMEOUT_S)
        yield b"Hi"

    server = start_server(FakeEngine(script), options={"max_concurrent_requests": "1"})
    with server.connect() as first:
        first.send(request_bytes("POST", "/v1/completions", {"model": MODEL, "prompt": "a"}))
        assert server.engine.submitted.acquire(timeout=CLIENT_TIMEOUT_S)
        assert ask(server, PATH, {"content": "Hi"}).status == 200
        release.set()
        assert first.read().status == 200


def test_a_long_text_is_given_up_when_its_client_leaves(start_server):
    class Endless(ByteTokenizer):
        def __init__(self):
            self.first, self.ended = threading.Event(), threading.Event()

        def encode_parts(self, text, num_characters, **_):
            try:
                while True:
                    self.first.set()
                    yield []
            finally:
                self.ended.set()

    tokenizer = Endless()
    server = start_server(FakeEngine(), tokenizer, long_text_characters=10)
    with server.connect() as client:
        client.send(request_bytes("POST", PATH, {"content": "x" * 100}))
        assert tokenizer.first.wait(CLIENT_TIMEOUT_S)
    assert tokenizer.ended.wait(CLIENT_TIMEOUT_S)
