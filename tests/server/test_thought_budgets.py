"""How many tokens a thought may have, in the words of each dialect, whole and streamed."""

from itertools import chain, repeat

import numpy as np
import pytest
from clients import chat_body
from fakes import EOS_ID, FakeEngine
from scripted import Qwen, named_events, saying

from marlin.engine.thought_budget import ThoughtGuide

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
NO_BOUND = 10**12
CLOSING, GAP = "\n</think>", "\n\n"  # the end of a thought, and what comes before the answer


def obedient(request):
    """A model that thinks on and on, and answers once its thought has been closed for it."""
    limit, out = request.params.thought, np.zeros(8, np.uint32)
    forced, tokens = list(limit.forced.encode()), [bytes([byte]) for byte in range(256)]
    guide = ThoughtGuide(limit, forced, tokens, None)
    wanted = chain(b"<think>", repeat(ord("h"), 400))
    while True:
        guide.mask((), out)
        allowed = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little")).tolist()
        token_id = allowed[0] if len(allowed) == 1 else next(wanted, EOS_ID)
        yield [token_id]
        if token_id == EOS_ID:
            return
        guide.advance([token_id])
        if len(allowed) == 1 and request.output_token_ids[-len(forced) :] == forced:
            wanted = iter(b"Hi")


def chat_asking(budget):
    return CHAT, chat_body(thinking_token_budget=budget)


def router_asking(budget):
    return CHAT, chat_body(reasoning={"max_tokens": budget})


def responses_asking(budget):
    body = {"model": chat_body()["model"], "input": "Hi"}
    return RESPONSES, body | {"reasoning": {"effort": "high", "max_tokens": budget}}


def messages_asking(budget):
    body = chat_body(max_tokens=1000)
    return MESSAGES, body | {"thinking": {"type": "enabled", "budget_tokens": budget}}


def whole(path, body):
    """(thought, text, tokens of output, tokens of thoughts where the dialect counts them)."""
    if path == CHAT:
        message, usage = body["choices"][0]["message"], body["usage"]
        counted = usage["completion_tokens_details"]["reasoning_tokens"]
        thought = message.get("reasoning_content", "")
        return thought, message["content"], usage["completion_tokens"], counted
    if path == RESPONSES:
        texts = {item["type"]: item["content"][0]["text"] for item in body["output"]}
        usage = body["usage"]
        counted = usage["output_tokens_details"]["reasoning_tokens"]
        return texts.get("reasoning", ""), texts.get("message", ""), usage["output_tokens"], counted
    texts = {block["type"]: block[block["type"]] for block in body["content"]}
    thought, text = texts.get("thinking", ""), texts.get("text", "")
    return thought, text, body["usage"]["output_tokens"], None


def streamed(path, answer):
    """The same of a stream's events."""
    if path == CHAT:
        *chunks, last = answer.events()[:-1]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        text, thought = (
            "".join(delta.get(name) or "" for delta in deltas)
            for name in ("content", "reasoning_content")
        )
        usage = last["usage"]
        counted = usage["completion_tokens_details"]["reasoning_tokens"]
        return thought, text, usage["completion_tokens"], counted
    events = named_events(answer.body)
    if path == RESPONSES:
        thought, text = (
            "".join(data["delta"] for name, data in events if name == f"response.{kind}.delta")
            for kind in ("reasoning_text", "output_text")
        )
        _, _, *counts = whole(path, events[-1][1]["response"])
        return thought, text, *counts
    deltas = [data["delta"] for name, data in events if name == "content_block_delta"]
    thought, text = (
        "".join(delta.get(kind, "") for delta in deltas) for kind in ("thinking", "text")
    )
    return thought, text, events[-2][1]["usage"]["output_tokens"], None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("budget", [0, 5, NO_BOUND])
@pytest.mark.parametrize("asking", [chat_asking, router_asking, responses_asking, messages_asking])
def test_a_thought_is_closed_after_its_budget_and_counted(start_server, asking, budget, stream):
    path, body = asking(budget)
    if stream:
        body |= {"stream": True}
        body |= {"stream_options": {"include_usage": True}} if path == CHAT else {}
    with start_server(FakeEngine(obedient), Qwen()).connect() as client:
        answer = client.ask("POST", path, body)
    assert answer.status == 200
    told = streamed(path, answer) if stream else whole(path, answer.json())
    thought, text, num_output, counted = told
    num_thought = min(budget, 400)
    assert (thought.strip(), text) == ("h" * num_thought, "" if budget == NO_BOUND else "Hi")
    num_reasoning = 400 if budget == NO_BOUND else budget + len(CLOSING)
    assert counted in (None, num_reasoning)
    num_gap = len(GAP) if text else 0
    assert num_output == len("<think>") + num_reasoning + num_gap + len(text)


@pytest.mark.parametrize(
    ("asking", "param"),
    [
        (chat_asking, "thinking_token_budget"),
        (router_asking, "reasoning.max_tokens"),
        (responses_asking, "reasoning.max_tokens"),
    ],
)
def test_a_budget_is_told_to_the_engine_where_the_model_thinks(start_server, server, asking, param):
    thinking = start_server(*saying("Hi"))
    for one in (thinking, server):
        with one.connect() as client:
            assert client.ask("POST", *asking(7)).status == 200
            refused = client.ask("POST", *asking(-1))
            assert (refused.status, refused.error["param"]) == (422, param)
    assert thinking.engine.requests[-1].params.thought.num_tokens == 7
    assert server.engine.requests[-1].params.thought is None


def test_two_budgets_that_differ_are_refused(start_server):
    with start_server(*saying("Hi")).connect() as client:
        for asking in (router_asking, responses_asking):
            path, body = asking(7)
            assert client.ask("POST", path, body | {"thinking_token_budget": 7}).status == 200
            refused = client.ask("POST", path, body | {"thinking_token_budget": 8})
            assert (refused.status, refused.error["param"]) == (422, "thinking_token_budget")
