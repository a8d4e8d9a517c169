#!/usr/bin/env python3
"""Metal Marlin beside llama-server on one GGUF file, in one run: 1 and 16 streams over HTTP.

    python3 bench/compare_serving.py MODEL.gguf --llama-server PATH/llama-server [--rounds 3]

Starts both servers on loopback ports, each with room for 16 requests at once, and lets them take
turns, so that a machine whose speed drifts favours neither; while one answers, the other waits for
requests. Figures are medians, a ratio is the median of the rounds' ratios. llama-server is yours to
build (llama.cpp, Release, for this machine). Linux only (/proc).
"""

import argparse
import os
import statistics
import subprocess
import sys

from serve_load import add_load_arguments, measure, medians, print_table
from startup import free_port, wait_for_health
from streams import Streams

COMMAND = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bin", "metal-marlin")
MAX_STREAMS = 16


class Server:
    """A server process of ours, ready to answer; `command` gets the port."""

    def __init__(self, command):
        port = free_port()
        self.process = subprocess.Popen(
            [*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for_health(url, self.process)
            self.streams = Streams(url)
        except BaseException:
            self.close()
            raise

    def close(self):
        self.process.terminate()
        self.process.wait()


def our_command(model, threads, max_streams=MAX_STREAMS, *more):
    command = [COMMAND, "serve", model, "--host", "127.0.0.1", "--log-level", "WARNING"]
    command += ["--threads", str(threads), "--enable-batching", *more]
    return [*command, "--max-concurrent-requests", str(max_streams), "--port"]


def their_command(llama_server, model, threads, num_tokens):
    """llama-server divides its context among its slots."""
    command = [llama_server, "-m", model, "--host", "127.0.0.1", "--threads", str(threads)]
    command += ["--parallel", str(MAX_STREAMS), "--ctx-size", str(MAX_STREAMS * num_tokens)]
    return [*command, "--port"]


def compare(servers, arguments):
    """{(server name, streams): [figures of each round]}."""
    found = {}
    for number in range(arguments.rounds):
        for count in map(int, arguments.streams.split(",")):
            for name, server in servers.items():
                arguments.pid = server.process.pid
                row = measure(server.streams, count, arguments, seed=1000 * number + count)
                found.setdefault((name, count), []).append(row)
                print(
                    f"round {number + 1}: {name}, {count} streams: "
                    f"{row['output_tokens_per_s']:.0f} tok/s",
                    file=sys.stderr,
                )
    return found


def ratio(ones, others, figure="output_tokens_per_s"):
    pairs = zip(ones, others, strict=True)
    return statistics.median(one[figure] / other[figure] for one, other in pairs)


def report(found, names, counts):
    for name in names:
        print(name)
        print_table([medians(found[name, count]) for count in counts])
    ours, theirs = names
    for count in counts:
        print(
            f"{count} streams: {ratio(found[ours, count], found[theirs, count]):.2f} times "
            f"the output tokens/s of {theirs}"
        )
    least, most = min(counts), max(counts)
    for name in names:
        print(
            f"{name}: {most} streams give {ratio(found[name, most], found[name, least]):.2f} "
            f"times the tokens/s of {least}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--threads", type=int, default=2)
    add_load_arguments(parser)
    arguments = parser.parse_args()
    counts = sorted(map(int, arguments.streams.split(",")))
    if counts[-1] > MAX_STREAMS:
        parser.error(f"the servers are started for {MAX_STREAMS} streams")
    # A power of two above what a request takes, so that no slot is full.
    num_tokens = 1 << (arguments.prompt_tokens + arguments.output_tokens).bit_length()
    commands = {
        "Metal Marlin": our_command(arguments.model, arguments.threads),
        "llama-server": their_command(
            arguments.llama_server, arguments.model, arguments.threads, num_tokens
        ),
    }
    servers = {}
    try:
        for name, command in commands.items():
            servers[name] = Server(command)
        report(compare(servers, arguments), list(commands), counts)
    finally:
        for server in servers.values():
            server.close()


if __name__ == "__main__":
    main()
