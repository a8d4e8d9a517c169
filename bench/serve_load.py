#!/usr/bin/env python3
"""N streaming clients against a running OpenAI-compatible server: throughput and latencies.

    python3 bench/serve_load.py http://127.0.0.1:8000 --streams 1,16 [--requests 32]

Each stream sends /v1/completions requests one after another, with prompts of token ids that differ
from each other, so that no prompt cache answers for a prefill. Times are the client's: first token
is the first chunk with text, inter-token the gap between chunks that carry text. Standard library
only.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
from urllib.parse import urlsplit


class Load:
    """One round: requests shared out over streams, and what they measured."""

    def __init__(self, address, model, arguments, seed):
        self.address = address
        self.model = model
        self.arguments = arguments
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.left = arguments.requests
        self.first_ms, self.gaps_ms, self.num_tokens, self.errors = [], [], 0, 0

    def take(self):
        """The body of the next request, or None when all are sent."""
        with self.lock:
            if self.left == 0:
                return None
            self.left -= 1
            count = self.arguments.prompt_tokens
            prompt = [self.random.randrange(1000, self.arguments.vocab) for _ in range(count)]
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.arguments.output_tokens,
            "temperature": 0.8,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def client(self):
        connection = http.client.HTTPConnection(*self.address, timeout=600)
        while (body := self.take()) is not None:
            try:
                self.one_request(connection, json.dumps(body))
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                with self.lock:
                    self.errors += 1
                print(f"request failed: {error}")
        connection.close()

    def one_request(self, connection, body):
        last = start = time.perf_counter()
        first, gaps, tokens = None, [], 0
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {response.read(300)!r}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            if any(choice.get("text") for choice in chunk["choices"]):
                now = time.perf_counter()
                if first is None:
                    first = now - start
                else:
                    gaps.append(now - last)
                last = now
        with self.lock:
            self.num_tokens += tokens
            self.gaps_ms += [1000 * gap for gap in gaps]
            if first is not None:
                self.first_ms.append(1000 * first)

    def run(self, num_streams):
        """Output tokens a second, and latencies in ms."""
        threads = [threading.Thread(target=self.client) for _ in range(num_streams)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        return {
            "streams": num_streams,
            "output_tokens_per_s": self.num_tokens / seconds,
            "first_token_ms_p50": percentile(self.first_ms, 50),
            "first_token_ms_p99": percentile(self.first_ms, 99),
            "inter_token_ms_p50": percentile(self.gaps_ms, 50),
            "inter_token_ms_p99": percentile(self.gaps_ms, 99),
            "errors": self.errors,
        }


def percentile(values, share):
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


def served_model(address):
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request("GET", "/v1/models")
    return json.load(connection.getresponse())["data"][0]["id"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--streams", default="1,16", help="numbers of clients, in turn")
    parser.add_argument("--requests", type=int, default=32, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=32000, help="prompt ids are below this")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    parts = urlsplit(arguments.url)
    address = (parts.hostname, parts.port or 80)
    model = served_model(address)
    streams = [int(part) for part in arguments.streams.split(",")]
    rounds = {count: [] for count in streams}
    for number in range(arguments.rounds):
        for count in streams:
            load = Load(address, model, arguments, seed=1000 * number + count)
            rounds[count].append(load.run(count))
    rows = [
        {key: statistics.median(row[key] for row in found) for key in found[0]}
        for found in rounds.values()
    ]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{model}: medians of {arguments.rounds} rounds of {arguments.requests} requests")
    print("streams  output tok/s  first token p50, p99 ms  inter-token p50, p99 ms  errors")
    for row in rows:
        print(
            f"{row['streams']:7.0f}{row['output_tokens_per_s']:14.1f}"
            f"{row['first_token_ms_p50']:16.0f}{row['first_token_ms_p99']:9.0f}"
            f"{row['inter_token_ms_p50']:16.2f}{row['inter_token_ms_p99']:9.2f}"
            f"{row['errors']:8.0f}"
        )


if __name__ == "__main__":
    main()
