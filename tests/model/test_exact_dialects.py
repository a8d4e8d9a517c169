"""One schema and one tool asked for in the words of every dialect, and vectors beside streams, of a
tiny model over HTTP: answers depend neither on the words, nor on the stream, nor on the company."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from served import Served
from tiny_models import random_tensors, tiny_config, write_folder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

MODEL = "tiny"
TEMPLATE = "Qwen-Qwen2.5-7B-Instruct.jinja"
TEMPLATES = Path(__file__).parents[1] / "data" / "chat_templates"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
QUESTION = "Tell me about Rome."
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "people": {"type": "integer", "minimum": 10, "maximum": 9999999},
        "tags": {"type": "array", "items": {"enum": ["old", "big", "warm"]}, "maxItems": 3},
        "twin": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/town"}]},
    },
    "required": ["city", "people", "tags", "twin"],
    "additionalProperties": False,
    "$defs": {"town": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"}},
}
NAMED = {"name": "town", "schema": SCHEMA, "strict": True}
SAMPLING = {"temperature": 0.9, "top_p": 0.9}


def chat(**asked):
    messages = [{"role": "user", "content": QUESTION}]
    return CHAT, {"messages": messages, "max_tokens": 250, "seed": 5, **asked}


ASKED = {
    "response_format": chat(response_format={"type": "json_schema", "json_schema": NAMED}),
    "structured_outputs": chat(structured_outputs={"json": SCHEMA}),
    "its text": chat(structured_outputs={"json": json.dumps(SCHEMA)}),
    "text.format": (
        RESPONSES,
        {"input": QUESTION, "max_output_tokens": 250, "seed": 5}
        | {"text": {"format": {"type": "json_schema", **NAMED}}},
    ),
}
# This API has no seed, so that only the most likely answer can be compared.
GREEDY = {
    "output_config": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "output_format": {"output_format": {"type": "json_schema", "schema": SCHEMA}},
}


def as_messages(asked):
    messages = [{"role": "user", "content": QUESTION}]
    return MESSAGES, {"messages": messages, "max_tokens": 250, **asked}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / MODEL
    config = tiny_config(vocab_size=258, max_context_tokens=8192, eos_token_ids=(257,))
    write_folder(folder, config, random_tensors(config, seed=3))
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: id for id, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text((TEMPLATES / TEMPLATE).read_text())
    options = ("--enable-batching", "--pooling", "mean", "--max-concurrent-requests", "32")
    with Served(folder, "--host", "127.0.0.1", *options) as served:
        yield served


def check(town):
    """That a value is what SCHEMA says."""
    assert list(town) == SCHEMA["required"]
    assert len(town["city"]) <= 12 and 10 <= town["people"] <= 9999999
    assert len(town["tags"]) <= 3 and {"old", "big", "warm"}.issuperset(town["tags"])
    assert town["twin"] is None or re.fullmatch("[A-Z][a-z]{2,8}", town["twin"])


def text_of(server, path, body, stream=False):
    body = {"model": MODEL, **SAMPLING, **body}
    if not stream:
        answer = server.post(path, body)
        if path == CHAT:
            return answer["choices"][0]["message"]["content"]
        if path == RESPONSES:
            return answer["output"][-1]["content"][0]["text"]
        return answer["content"][-1]["text"]
    status, _, content = server.send("POST", path, {**body, "stream": True})
    assert status == 200, content
    lines = [line.removeprefix("data: ") for line in content.decode().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    if path == CHAT:
        deltas = [event["choices"][0]["delta"] for event in events]
        return "".join(delta.get("content") or "" for delta in deltas)
    if path == RESPONSES:
        kind = "response.output_text.delta"
        return "".join(event["delta"] for event in events if event["type"] == kind)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return "".join(delta["text"] for delta in deltas)


def test_every_dialect_writes_the_same_exact_answer_alone_and_among_eight(server):
    greedy = {"temperature": 0}
    asked = list(ASKED.values())
    alone = {text_of(server, path, body, s) for path, body in asked for s in (False, True)}
    (text,) = alone
    check(json.loads(text))
    others = [as_messages(one) for one in GREEDY.values()]
    others = [(path, body | greedy) for path, body in (*others, asked[0])]
    (likeliest,) = {text_of(server, *one, s) for one in others for s in (False, True)}
    check(json.loads(likeliest))
    free = chat(max_tokens=40, seed=9)
    jobs = [*((*one, True) for one in asked), (*others[0], False), (*others[1], True)]
    jobs += [(*asked[0], False), (*free, True)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: text_of(server, *job), jobs))
    assert found[:7] == [text] * 4 + [likeliest] * 2 + [text]
    assert found[7] == text_of(server, *free)


def called(server, path, body, stream=False):
    """(name, arguments) of the one call of an answer."""
    body = {"model": MODEL, "temperature": 0, **body}
    if not stream:
        answer = server.post(path, body)
        if path == CHAT:
            message = answer["choices"][0]["message"]
            assert message["content"] is None
            (call,) = message["tool_calls"]
            return call["function"]["name"], json.loads(call["function"]["arguments"])
        if path == RESPONSES:
            (call,) = answer["output"]
            return call["name"], json.loads(call["arguments"])
        (call,) = answer["content"]
        return call["name"], call["input"]
    status, _, content = server.send("POST", path, {**body, "stream": True})
    assert status == 200, content
    lines = [line.removeprefix("data: ") for line in content.decode().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    if path == CHAT:
        deltas = [event["choices"][0]["delta"] for event in events]
        calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
        text = "".join(call.get("arguments", "") for call in calls)
        return calls[0]["name"], json.loads(text)
    if path == RESPONSES:
        (done,) = [e for e in events if e["type"] == "response.output_item.done"]
        return done["item"]["name"], json.loads(done["item"]["arguments"])
    (begun,) = [event for event in events if event["type"] == "content_block_start"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return begun["content_block"]["name"], json.loads("".join(d["partial_json"] for d in deltas))


TOOL = {"name": "town", "description": "A town", "parameters": SCHEMA, "strict": True}
CALLED = (
    chat(tools=[{"type": "function", "function": TOOL}], tool_choice="required"),
    chat(
        tools=[{"type": "function", "function": TOOL}],
        tool_choice={"type": "function", "function": {"name": "town"}},
    ),
    (RESPONSES, {"input": QUESTION, "tools": [{"type": "function", **TOOL}]}
     | {"max_output_tokens": 250, "tool_choice": "required"}),
    as_messages({"tools": [{"name": "town", "description": "A town", "input_schema": SCHEMA}]}
                | {"tool_choice": {"type": "any"}, "max_tokens": 250}),
)  # fmt: skip


def test_every_dialect_writes_the_same_call_alone_and_among_eight(server):
    jobs = [(*one, stream) for one in CALLED for stream in (False, True)]
    alone = [called(server, *job) for job in jobs]
    assert all(one == alone[0] for one in alone)
    name, arguments = alone[0]
    check(arguments)
    assert name == "town"
    with ThreadPoolExecutor(len(jobs)) as pool:
        assert list(pool.map(lambda job: called(server, *job), jobs)) == alone


def test_vectors_are_the_same_alone_and_beside_streams(server):
    texts = [f"Text {i}: " + "the quick brown fox " * (i % 5 + 1) for i in range(16)]

    def embedded(given):
        answer = server.post("/v1/embeddings", {"model": MODEL, "input": given})
        return [item["embedding"] for item in answer["data"]]

    alone = [embedded(text)[0] for text in texts]
    assert embedded(texts) == alone and np.isfinite(alone).all()
    streams = [chat(max_tokens=60, seed=i, ignore_eos=True) for i in range(8)]
    quiet = [text_of(server, *one) for one in streams]
    with ThreadPoolExecutor(24) as pool:
        written = [pool.submit(text_of, server, *one, True) for one in streams]
        beside = list(pool.map(lambda text: embedded(text)[0], texts))
        assert beside == alone
        assert [one.result() for one in written] == quiet
