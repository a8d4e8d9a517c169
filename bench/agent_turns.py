#!/usr/bin/env python3
"""An agent's turns against a running server: how much of a prompt that it knew it computes again.

    python3 bench/agent_turns.py http://127.0.0.1:8000 [--conversations 1,8] [--turns 70]
        [--dialects chat,messages,responses]

All conversations share a system prompt of 7 KB and 24 tools; each has a task of its own and then so
many short calls, each with the tool's result behind it, one request a turn. What the client sends
is scripted, so that the model's answers, which may be random, change nothing. A perfect cache would
know of a prompt what the conversation's last one had, and of a first one the system prompt and the
tools, once any request had them. Cached tokens are the server's own counts; times are the
client's. Any server of these APIs will do that tells cached tokens. Standard library only.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

SYSTEM_BYTES, NUM_TOOLS = 7 << 10, 24
NUM_OUTPUT_TOKENS = 8
TIMEOUT_S = 600
WORDS = (
    "file path line error build test run value change branch commit module function class import "
    "return check request server client token cache memory block queue state step index table"
).split()


def sentence(rng, num_bytes):
    """Words of so many bytes."""
    text = ""
    while len(text) < num_bytes:
        text += f"{rng.choice(WORDS)} {rng.randint(0, 999) if rng.random() < 0.2 else ''} "
    return text[:num_bytes]


def made_tools():
    """[(name, description, JSON Schema of its arguments)] that all conversations share."""
    rng = random.Random(24)
    return [
        (
            f"{rng.choice(WORDS)}_{number}",
            sentence(rng, 120),
            {
                "type": "object",
                "properties": {
                    name: {"type": "string", "description": sentence(rng, 40)}
                    for name in rng.sample(WORDS, 3)
                },
                "required": [],
            },
        )
        for number in range(NUM_TOOLS)
    ]


class Conversation:
    """One agent's history: a task, then calls with results; a function of the seed."""

    def __init__(self, tools, seed):
        self._rng, self._tools = random.Random(seed), tools
        self.task = f"Task {seed}: {sentence(self._rng, 200)}"
        self.calls = []  # (id, name, arguments, result)

    def call(self):
        """A short call and its result, of 200 to 800 bytes."""
        name, _, schema = self._rng.choice(self._tools)
        given = {key: sentence(self._rng, 24) for key in schema["properties"]}
        result = sentence(self._rng, self._rng.randint(200, 800))
        self.calls.append((f"call_{len(self.calls):05d}", name, given, result))


def chat_body(system, tools, talk):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": talk.task}]
    for id, name, given, result in talk.calls:
        function = {"name": name, "arguments": json.dumps(given)}
        call = {"id": id, "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": id, "content": result})
    functions = [
        {"name": name, "description": text, "parameters": schema} for name, text, schema in tools
    ]
    return {
        "messages": messages,
        "tools": [{"type": "function", "function": function} for function in functions],
        "max_tokens": NUM_OUTPUT_TOKENS,
    }


def messages_body(system, tools, talk):
    messages = [{"role": "user", "content": talk.task}]
    for id, name, given, result in talk.calls:
        call = {"type": "tool_use", "id": id, "name": name, "input": given}
        answer = {"type": "tool_result", "tool_use_id": id, "content": result}
        messages.append({"role": "assistant", "content": [call]})
        messages.append({"role": "user", "content": [answer]})
    named = [
        {"name": name, "description": text, "input_schema": schema} for name, text, schema in tools
    ]
    return {
        "system": system,
        "messages": messages,
        "tools": named,
        "max_tokens": NUM_OUTPUT_TOKENS,
    }


def responses_body(system, tools, talk):
    items = [{"role": "user", "content": talk.task}]
    for id, name, given, result in talk.calls:
        arguments = json.dumps(given)
        items.append({"type": "function_call", "call_id": id, "name": name, "arguments": arguments})
        items.append({"type": "function_call_output", "call_id": id, "output": result})
    functions = [
        {"type": "function", "name": name, "description": text, "parameters": schema}
        for name, text, schema in tools
    ]
    return {
        "instructions": system,
        "input": items,
        "tools": functions,
        "max_output_tokens": NUM_OUTPUT_TOKENS,
        "store": False,
    }


def chat_counts(usage):
    details = usage.get("prompt_tokens_details") or {}
    return usage["prompt_tokens"], details.get("cached_tokens", 0)


def messages_counts(usage):
    cached = usage.get("cache_read_input_tokens") or 0
    written = usage.get("cache_creation_input_tokens") or 0
    return usage["input_tokens"] + cached + written, cached


def responses_counts(usage):
    details = usage.get("input_tokens_details") or {}
    return usage["input_tokens"], details.get("cached_tokens", 0)


# {dialect: (path, body of a Conversation, (prompt tokens, cached ones) of an answer's usage)}.
DIALECTS = {
    "chat": ("/v1/chat/completions", chat_body, chat_counts),
    "messages": ("/v1/messages", messages_body, messages_counts),
    "responses": ("/v1/responses", responses_body, responses_counts),
}


class Agents:
    """Conversations with one server in one dialect.

    Args:
        url: where the server listens.
        dialect: a key of DIALECTS.
        key: of the client, or None.
        salt: begins the system prompt, so that runs do not find each other's.
    """

    def __init__(self, url, dialect, key, salt):
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port or 80
        self._headers = {"Content-Type": "application/json"}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._path, self._body, self._counts = DIALECTS[dialect]
        self._system = f"{salt} " + sentence(random.Random(7), SYSTEM_BYTES)
        self._tools = made_tools()
        models = self._ask(self._connect(), "GET", "/v1/models", None)
        self.model = models["data"][0]["id"]

    def _connect(self):
        return http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)

    def _ask(self, connection, method, path, body):
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, self._headers)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise ValueError(f"{path}: {response.status} {text[:500].decode(errors='replace')}")
        return json.loads(text)

    def turn(self, connection, talk):
        """(prompt tokens, cached ones, seconds) of a request with what was said so far."""
        body = {"model": self.model, **self._body(self._system, self._tools, talk)}
        start = time.perf_counter()
        usage = self._ask(connection, "POST", self._path, body)["usage"]
        return *self._counts(usage), time.perf_counter() - start

    def shared_tokens(self):
        """Tokens of the system prompt and the tools, which the server knows from then on."""
        talk = Conversation(self._tools, 0)
        talk.task = "."
        return self.turn(self._connect(), talk)[0]

    def run(self, num_conversations, num_turns):
        """Every conversation in a thread of its own; [(known tokens, prompt, cached, seconds)]."""
        shared = self.shared_tokens()
        with ThreadPoolExecutor(num_conversations) as pool:
            talks = [
                pool.submit(self._talk, 1 + number, num_turns, shared)
                for number in range(num_conversations)
            ]
            return [row for talk in talks for row in talk.result()]

    def _talk(self, seed, num_turns, known):
        talk, connection, rows = Conversation(self._tools, seed), self._connect(), []
        for _ in range(num_turns):
            prompt, cached, seconds = self.turn(connection, talk)
            rows.append((known, prompt, cached, seconds))
            known = prompt
            talk.call()
        return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--conversations", default="1,8", help="numbers of them, in turn")
    parser.add_argument("--turns", type=int, default=70, help="of each conversation")
    parser.add_argument("--dialects", default="chat,messages,responses")
    parser.add_argument("--key", help="of the client")
    parser.add_argument(
        "--at-most", type=float, help="exit with 1 if more percent are computed again"
    )
    arguments = parser.parse_args()
    print(
        "dialect    conversations  prompt tokens  known before  computed again  a turn's median s"
    )
    worst = 0.0
    for dialect in arguments.dialects.split(","):
        for count in map(int, arguments.conversations.split(",")):
            salt = f"{dialect} {count} {time.time():.3f}"
            agents = Agents(arguments.url, dialect, arguments.key, salt)
            rows = agents.run(count, arguments.turns)
            known, prompt, cached, seconds = zip(*rows, strict=True)
            again = 100 * (1 - sum(cached) / sum(known))
            worst = max(worst, again)
            print(
                f"{dialect:<11}{count:13}{sum(prompt):15,}{sum(known):14,}{again:14.2f} %"
                f"{statistics.median(seconds):18.2f}",
                flush=True,
            )
    sys.exit(1 if arguments.at_most is not None and worst > arguments.at_most else 0)


if __name__ == "__main__":
    main()
