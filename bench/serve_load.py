#!/usr/bin/env python3
"""N streaming clients against a running OpenAI-compatible server: throughput and latencies.

    python3 bench/serve_load.py http://127.0.0.1:8000 --streams 1,16 [--requests 32] [--pid PID]

Each stream sends /v1/completions requests one after another, with prompts of token ids that differ
from each other, so that no prompt cache answers for a prefill. Times are the client's: first token
is the first chunk with text, inter-token the gap between chunks that carry text. With the server's
process id the processor time of both sides is shown, too (Linux). Standard library only.
"""

import argparse
import json
import statistics
import time

from streams import Prompts, Streams, cpu_s, percentile


def measure(streams, num_streams, arguments, seed):
    """One round: arguments.requests requests, num_streams at a time.

    Args:
        arguments: has requests, prompt_tokens, output_tokens, vocab and pid (or None).

    Returns:
        dict of figures; processor times are shares of one core.
    """
    prompts = Prompts(seed, arguments.vocab)
    waiting = [prompts.next(arguments.prompt_tokens) for _ in range(arguments.requests)]
    started = []

    def send_next():
        started.append(streams.send(waiting.pop(), arguments.output_tokens))

    start_s, client_s, server_s = clocks(arguments.pid)
    for _ in range(min(num_streams, len(waiting))):
        send_next()
    num_ended = 0
    while num_ended < len(started):
        for _ in streams.receive():
            num_ended += 1
            if waiting:
                send_next()
    end_s, client_end_s, server_end_s = clocks(arguments.pid)
    seconds = end_s - start_s
    figures = {"streams": num_streams, **summary([stream.answer() for stream in started], seconds)}
    figures["client_cores"] = (client_end_s - client_s) / seconds
    figures["server_cores"] = (server_end_s - server_s) / seconds
    return figures


def clocks(pid):
    """Now, and the processor seconds of this process and of the server's, nan if not known."""
    return time.perf_counter(), time.process_time(), cpu_s(pid) if pid else float("nan")


def summary(answers, seconds):
    good = [answer for answer in answers if answer.error is None and answer.text_s]
    first_ms = [1000 * (answer.text_s[0] - answer.sent_s) for answer in good]
    gaps_ms = [gap for answer in good for _, gap in answer.gaps_ms()]
    for error in sorted({answer.error for answer in answers if answer.error}):
        print(f"a request failed: {error[:300]}")
    return {
        "output_tokens_per_s": sum(answer.num_tokens for answer in good) / seconds,
        "first_token_ms_p50": percentile(first_ms, 50),
        "first_token_ms_p99": percentile(first_ms, 99),
        "inter_token_ms_p50": percentile(gaps_ms, 50),
        "inter_token_ms_p99": percentile(gaps_ms, 99),
        "errors": len(answers) - len(good),
    }


def medians(rows):
    """Of each figure over the rounds."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def add_load_arguments(parser):
    parser.add_argument("--streams", default="1,16", help="numbers of clients, in turn")
    parser.add_argument("--requests", type=int, default=32, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=32000, help="prompt ids are below this")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    add_load_arguments(parser)
    parser.add_argument("--pid", type=int, help="the server's process id")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    streams = Streams(arguments.url)
    rounds = {int(count): [] for count in arguments.streams.split(",")}
    for number in range(arguments.rounds):
        for count, rows in rounds.items():
            rows.append(measure(streams, count, arguments, seed=1000 * number + count))
    found = [medians(rows) for rows in rounds.values()]
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{streams.model}: medians of {arguments.rounds} rounds of {arguments.requests} requests")
    print_table(found)


def print_table(rows):
    print(
        "streams  tok/s  first ms p50, p99  inter-token ms p50, p99  cores client, server  errors"
    )
    for row in rows:
        print(
            f"{row['streams']:7.0f}{row['output_tokens_per_s']:7.0f}"
            f"{row['first_token_ms_p50']:11.0f}{row['first_token_ms_p99']:7.0f}"
            f"{row['inter_token_ms_p50']:16.2f}{row['inter_token_ms_p99']:8.2f}"
            f"{row['client_cores']:14.2f}{row['server_cores']:8.2f}"
            f"{row['errors']:8.0f}"
        )


if __name__ == "__main__":
    main()
