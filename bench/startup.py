#!/usr/bin/env python3
"""From starting the server to its first /health answer, and what it keeps resident.

    python3 bench/startup.py MODEL.gguf [--runs 5] [--threads 2]

The model file is read once first, so that it is in the page cache. Each run starts a server on a
free port, waits for /health to say 200, reads the process' resident size, has it complete a prompt
of the given length (which touches the KV cache), reads it again, and ends the server. Linux only
(/proc).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import Request, urlopen

COMMAND = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bin", "metal-marlin")
POLL_S = 0.005


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_mib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) / 1024


def wait_for_health(url, process):
    while True:
        try:
            with urlopen(f"{url}/health", timeout=1) as answer:
                if answer.status == 200:
                    return
        except (URLError, ConnectionError, TimeoutError):
            if process.poll() is not None:
                sys.exit("the server ended before it answered")
        time.sleep(POLL_S)


def complete(url, num_tokens):
    with urlopen(f"{url}/v1/models", timeout=5) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = {"model": model, "prompt": "word " * num_tokens, "max_tokens": 8, "temperature": 0}
    request = Request(f"{url}/v1/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=120) as answer:
        return json.load(answer)["usage"]


def one_run(model, threads, num_tokens):
    """(seconds to /health, MiB then, MiB after the completion, tokens in the KV cache)."""
    port = free_port()
    command = [COMMAND, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--threads", str(threads), "--log-level", "WARNING"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for_health(url, process)
        seconds = time.perf_counter() - start
        before = resident_mib(process.pid)
        usage = complete(url, num_tokens)
        return seconds, before, resident_mib(process.pid), usage["total_tokens"]
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-words", type=int, default=1000)
    arguments = parser.parse_args()
    with open(arguments.model, "rb") as file:
        while file.read(1 << 24):
            pass
    runs = [
        one_run(arguments.model, arguments.threads, arguments.prompt_words)
        for _ in range(arguments.runs)
    ]
    columns = zip(*runs, strict=True)
    seconds, before, after, tokens = (statistics.median(column) for column in columns)
    print(f"model file          {os.path.getsize(arguments.model) / 2**20:8.1f} MiB")
    print(f"start to /health    {seconds:8.3f} s   (most: {max(run[0] for run in runs):.3f} s)")
    print(f"resident then       {before:8.1f} MiB")
    print(f"resident later      {after:8.1f} MiB, with {tokens:.0f} tokens in the KV cache")


if __name__ == "__main__":
    main()
