"""What requests need is there before the server listens: no module is looked for while it serves,
and no thread started, where one descriptor or thread too few would end what asked for it.

A connection's own thread is the exception: there are as many of them as clients, a server that
cannot start one says 503 to that client alone, and their number was fitted to the system's limits.
"""

import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
from clients import CLIENT_TIMEOUT_S, RawClient, request_bytes
from tokenizers import Tokenizer as Backend
from tokenizers import models
from worker_processes import ROOT, until

from marlin.errors import TokenizerPoolError
from marlin.text.tokenizer import Tokenizer

TRACED = """
import gc, os, sys, threading
def tell(what):
    os.write(2, f"{what}\\n".encode())
gc.callbacks.append(lambda phase, _: phase == "stop" and tell("COLLECTED"))
sys.addaudithook(lambda event, given: event == "import" and tell(f"IMPORT {given[0]}"))
for name in ("_start_new_thread", "_start_joinable_thread"):
    def traced(run, *rest, start=getattr(threading, name, None), **named):
        target = getattr(getattr(run, "__self__", None), "_target", None) or run
        if target.__name__ != "process_request_thread":
            tell(f"THREAD {target.__qualname__}")
        return start(run, *rest, **named)
    setattr(threading, name, traced)
from marlin.cli import main
sys.exit(main())
"""
HEALTH, METRICS, MODELS = "/health", "/metrics", "/v1/models"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# Past what is tokenized at once, and not so long that it is refused unread.
MESSAGES = [{"role": "user", "content": "Hé\u0301llo 😀 " + "hello there, " * 5400}]
PENALTIES = {"repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": 0.5}
SAMPLED = {"temperature": 0.9, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "seed": 1}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": PARAMETERS}}
ASKED = [{"role": "user", "content": "Hi"}]
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = (
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "rain"},
)
GENERATIONS = (
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], **PENALTIES}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], **SAMPLED, "stream": True}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 5}),
    (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "echo": True, "stop": ["x"]}),
    (COMPLETIONS, {"prompt": [10, 11, 12], "logit_bias": {"5": 1.5}, "logprobs": 3}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "stream": True}),
    (CHAT, {"messages": [*ASKED, *CALLED], "tools": [TOOL], "tool_choice": "required"}),
    (CHAT, {"messages": ASKED, "reasoning_effort": "low", "response_format": SCHEMA}),
    (CHAT, {"messages": MESSAGES}),  # too long
    (CHAT, {"messages": [{"role": "tool"}]}),
    (CHAT, {"messages": [], "temperature": "hot"}),
)


@pytest.fixture(scope="module", params=[(), ("--enable-batching", "--speculative", "ngram")])
def traced(request, demo_model_path, tmp_path_factory):
    """(port, process id, what gives what the process has said: before it listened, since)"""
    log = tmp_path_factory.mktemp("traced") / "log"
    command = [sys.executable, "-c", TRACED, "serve", str(demo_model_path), "--port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--max-context", "4096", *request.param],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=os.environ,
        )
    try:
        port = int(re.search(r":(\d+)$", process.stdout.readline().strip())[1])
        answers(port, b"")  # whatever comes after the announcement has come
        before = len(log.read_text())
        yield port, process.pid, lambda: (log.read_text()[:before], log.read_text()[before:])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def answers(port, requests):
    sock = socket.create_connection(("127.0.0.1", port), timeout=4 * CLIENT_TIMEOUT_S)
    with RawClient(sock) as client:
        client.send(requests + request_bytes("GET", HEALTH, headers=["Connection: close"]))
        return b"".join(iter(lambda: client.sock.recv(65536), b""))


def threads_of(pid):
    return set(os.listdir(f"/proc/{pid}/task")) if sys.platform == "linux" else set()


def test_no_request_imports_anything_or_starts_a_thread(traced):
    port, pid, said = traced
    before = threads_of(pid)
    statuses = []
    for path, body in GENERATIONS:
        body = {"model": "SmolLM2-135M-Instruct.Q4_1", "max_tokens": 8, **body}
        received = answers(port, request_bytes("POST", path, body))
        statuses.append(int(received.split()[1]))
        assert b"internal error" not in received
    # This model's template has no tools; the last three are mistakes.
    assert statuses == [*[200] * 5, 422, 422, 200, 400, 422, 422]
    for path in (HEALTH, METRICS, MODELS, f"{MODELS}/SmolLM2-135M-Instruct.Q4_1", "/nowhere"):
        answers(port, request_bytes("GET", path))
    answers(port, request_bytes("GET", METRICS, headers=["Accept: text/plain"]))
    answers(port, request_bytes("PUT", CHAT))
    answers(port, b"\x00\x01\r\n\r\n")
    leave_in_the_middle(port)
    before_listening, since = said()
    assert "THREAD Engine.prepare" in before_listening
    assert re.findall(r"^(?:IMPORT|THREAD) .*$", since, re.MULTILINE) == []
    # Native code's threads are traced by none of this: those of ended connections aside, they are
    # the same. The last connection's thread may still be ending.
    until(lambda: threads_of(pid) <= before, "no thread more than there were")


def leave_in_the_middle(port):
    """A client that goes after the first of its stream."""
    body = {"model": "SmolLM2-135M-Instruct.Q4_1", "prompt": "a", "max_tokens": 400, "stream": True}
    with RawClient(socket.create_connection(("127.0.0.1", port), CLIENT_TIMEOUT_S)) as client:
        client.send(request_bytes("POST", COMPLETIONS, {**body, "ignore_eos": True}))
        assert client.sock.recv(1000)


def test_the_collector_rests_while_the_model_loads_and_works_once_requests_come(traced):
    port, _, said = traced
    loading = said()[0].partition("IMPORT marlin.server.process.serve\n")[2]
    assert loading
    assert "COLLECTED" not in loading
    with ExitStack() as clients:
        for _ in range(100):  # what each connection has goes beyond what is let grow unseen
            sock = socket.create_connection(("127.0.0.1", port), timeout=CLIENT_TIMEOUT_S)
            client = clients.enter_context(RawClient(sock))
            client.ask("GET", HEALTH)
        assert "COLLECTED" in said()[1]


class NoThreads:
    """A backend whose library cannot make its threads, as it tells of that: by a panic."""

    def __init__(self):
        self._backend = Backend(models.BPE())

    def encode_batch_fast(self, *_):
        raise Panic("The global thread pool has not been initialized")

    def __getattr__(self, name):
        return getattr(self._backend, name)


class Panic(BaseException):
    """As PyO3's."""


def test_a_tokenizer_without_threads_is_refused_when_it_is_made():
    with pytest.raises(TokenizerPoolError, match="thread pool has not been initialized"):
        Tokenizer(NoThreads())
