#!/usr/bin/env python3
"""What a long prompt does to the streams beside it, and what a shared beginning costs.

    python3 bench/serve_arrivals.py MODEL.gguf [--rounds 3]

Starts a server with --enable-batching and room for all of it.
  long prompt   16 streams decode; then a prompt of 4,000 tokens arrives. Inter-token times of the
                16 before it is sent, and from then to its first token.
  shared        16 requests at once whose prompts begin with the same 1,000 tokens: what each says
                it found cached, and what the server's counters say was computed.
Prompts are random token ids. Linux only (/proc).
"""

import argparse
import http.client
import statistics

from compare_serving import Server, our_command
from streams import Prompts, percentile

VOCAB = 32000
PROMPT_TOKENS = 128  # of the streams that are running
OWN_TOKENS = 30  # of each request after the shared beginning
SETTLED_TOKENS = 100  # that every stream has had before the long prompt is sent
# Streams are left long before; a long prompt gets 32 tokens in each of their steps.
ENDLESS = 2000
# 16 streams that reach 600 tokens each, and the long prompt.
NUM_BLOCKS, BLOCK_SIZE = 2048, 16


def long_prompt(streams, arguments, seed):
    """Figures of one round."""
    prompts = Prompts(seed, VOCAB)
    count = arguments.streams
    running = [streams.send(prompts.next(PROMPT_TOKENS), ENDLESS) for _ in range(count)]
    # The server writes a token a time: pieces are tokens, as far as waiting needs to know.
    while min(len(stream.pieces) for stream in running) < SETTLED_TOKENS:
        streams.receive()
    settled_s = max(stream.answer().text_s[0] for stream in running)
    late = streams.send(prompts.next(arguments.long_tokens), 1)
    while not late.pieces:
        streams.receive()
    first_s = late.answer().text_s[0]
    for stream in [late, *running]:
        if not stream.ended:
            streams.leave(stream)
    gaps = [gap for stream in running for gap in stream.answer().gaps_ms()]
    before = [length for end, length in gaps if settled_s < end <= late.sent_s]
    during = [length for end, length in gaps if late.sent_s < end <= first_s]
    return {
        "before_p50": percentile(before, 50),
        "before_p99": percentile(before, 99),
        "during_p50": percentile(during, 50),
        "during_p99": percentile(during, 99),
        "ratio_p99": percentile(during, 99) / percentile(before, 99),
        "first_token_s": first_s - late.sent_s,
    }


def shared_beginning(streams, arguments, seed):
    """(cached tokens that the answers name, prompt tokens, those of them computed)."""
    prompts = Prompts(seed, VOCAB)
    beginning = prompts.next(arguments.shared_tokens)
    before = prompt_counters(streams.address)
    sent = [streams.send(beginning + prompts.next(OWN_TOKENS), 8) for _ in range(arguments.streams)]
    while not all(stream.ended for stream in sent):
        streams.receive()
    answers = [stream.answer() for stream in sent]
    for error in {answer.error for answer in answers} - {None}:
        print(f"a request failed: {error}")
    given, cached = (
        now - then for now, then in zip(prompt_counters(streams.address), before, strict=True)
    )
    return [answer.num_cached_tokens for answer in answers], given, given - cached


def prompt_counters(address):
    """(prompt tokens given to the engine, those of them whose KV was reused), since the start."""
    connection = http.client.HTTPConnection(*address)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "text/plain"})
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    names = ("prompt_tokens_total", "cached_prompt_tokens_total")
    return [
        sum(float(value) for key, value in values.items() if key.startswith(f"metal_marlin_{name}"))
        for name in names
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--long-tokens", type=int, default=4000)
    parser.add_argument("--shared-tokens", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    pool = ["--num-kv-blocks", str(NUM_BLOCKS), "--block-size", str(BLOCK_SIZE)]
    # One place more than streams, or the long prompt would wait for one of them to end.
    command = our_command(arguments.model, arguments.threads, arguments.streams + 1, *pool)
    server = Server(command)
    try:
        shared = [
            shared_beginning(server.streams, arguments, seed) for seed in range(arguments.rounds)
        ]
        rounds = [
            long_prompt(server.streams, arguments, 100 + seed) for seed in range(arguments.rounds)
        ]
    finally:
        server.close()
    show_long_prompt(rounds, arguments)
    show_shared(shared, arguments)


def show_long_prompt(rounds, arguments):
    middle = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
    print(f"{arguments.streams} streams, a prompt of {arguments.long_tokens} tokens arrives")
    for when in ("before", "during"):
        p50, p99 = middle[f"{when}_p50"], middle[f"{when}_p99"]
        print(f"  inter-token ms {when}: p50 {p50:.1f}, p99 {p99:.1f}")
    ratios = ", ".join(f"{row['ratio_p99']:.2f}" for row in rounds)
    print(f"  p99 during, of that before: {middle['ratio_p99']:.2f} (rounds: {ratios})")
    print(f"  its first token after {middle['first_token_s']:.2f} s")


def show_shared(rounds, arguments):
    print(f"{arguments.streams} requests at once, {arguments.shared_tokens} tokens in common")
    for cached, given, computed in rounds:
        shown = ", ".join(f"{cached.count(value)} x {value}" for value in sorted(set(cached)))
        print(f"  cached tokens: {shown}; of {given:.0f} prompt tokens {computed:.0f} computed")


if __name__ == "__main__":
    main()
