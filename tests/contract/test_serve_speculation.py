"""`--speculative` as a client sees it: the same answers, sooner, and counted."""

import re

import pytest
from served import Served

TEXT = (
    "The marlin is a large fish of the open sea. It has a long body, a spear-like snout and a tall "
    "fin along its back. Marlins are among the fastest swimmers. They hunt smaller fish such as "
    "mackerel and tuna, and strike them with the snout before eating them."
)
QUESTION = f"Repeat the following text word for word:\n\n{TEXT}"
BATCHING = ("--enable-batching", "--num-kv-blocks", "64", "--max-concurrent-requests", "4")


@pytest.fixture(scope="module", params=[(), BATCHING], ids=["sequential", "batching"])
def servers(request, demo_model_path):
    """(a server that does not speculate, one that does)."""
    words = (demo_model_path, "--host", "127.0.0.1", "--max-context", "1024", *request.param)
    with Served(*words) as plain, Served(*words, "--speculative", "ngram") as speculating:
        yield plain, speculating


def body(**changes):
    messages = [{"role": "user", "content": QUESTION}]
    wanted = {"model": "SmolLM2-135M-Instruct.Q4_1", "messages": messages, "max_tokens": 90}
    return {**wanted, "temperature": 0, **changes}


def counted(server, name):
    server.wait_for_active(0)  # what a stream's tokens were is counted behind its last byte
    text = server.send("GET", "/metrics", headers={"Accept": "text/plain"})[2].decode()
    return int(float(re.search(rf"^metal_marlin_{name}_total (\S+)$", text, re.MULTILINE)[1]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.8, "seed": 7},
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 30},
        {"temperature": 0.5, "seed": 1, "frequency_penalty": 0.3, "n": 3},
        {"max_tokens": 17},
    ],
    ids=str,
)
def test_answers_and_token_counts_are_the_same(servers, changes):
    plain, speculating = (
        server.post("/v1/chat/completions", body(**changes)) for server in servers
    )
    assert speculating["choices"] == plain["choices"]
    assert speculating["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]


@pytest.mark.parametrize("stop", ["spear-like snout", "swimm", "fin along its back. Mar"])
def test_a_stop_string_cuts_the_same_text_inside_a_run_of_guesses(servers, stop):
    for server in servers:
        choices = [
            e["choices"] for e in server.events("/v1/chat/completions", body(stop=stop))[:-1]
        ]
        text = "".join(choice["delta"].get("content") or "" for [choice] in choices)
        assert text == TEXT[: TEXT.index(stop)]
        assert choices[-1][0]["finish_reason"] == "stop"


def test_guesses_are_counted_and_most_of_a_copy_is_guessed(servers):
    plain, speculating = servers
    before = [counted(speculating, f"{kind}draft_tokens") for kind in ("", "accepted_")]
    usage = speculating.post("/v1/chat/completions", body())["usage"]
    after = [counted(speculating, f"{kind}draft_tokens") for kind in ("", "accepted_")]
    drafted, accepted = (new - old for new, old in zip(after, before, strict=True))
    assert usage["completion_tokens"] / 2 < accepted <= drafted < usage["completion_tokens"] * 1.5
    assert counted(plain, "draft_tokens") == counted(plain, "accepted_draft_tokens") == 0


def test_a_draft_model_answers_the_same_and_is_counted(servers, demo_model_path):
    """The model itself guesses: it is always right, and soon asked no more."""
    draft = ("--speculative", "draft", "--draft-model", str(demo_model_path))
    words = (demo_model_path, "--host", "127.0.0.1", "--max-context", "1024", *BATCHING, *draft)
    changes = {"temperature": 0.8, "seed": 7, "max_tokens": 40}
    wanted = servers[0].post("/v1/chat/completions", body(**changes))["choices"]
    with Served(*words) as drafting:
        assert drafting.post("/v1/chat/completions", body(**changes))["choices"] == wanted
        drafted, accepted = (counted(drafting, f"{k}draft_tokens") for k in ("", "accepted_"))
    assert drafted == accepted > 0
