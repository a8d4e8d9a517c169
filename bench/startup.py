#!/usr/bin/env python3
"""From starting the server to its first /health answer, and what it keeps resident.

    .venv/bin/python bench/startup.py MODEL.gguf [--runs 5] [--threads 2] [--checkout FOLDER ...]

A run that does not count comes first: it leaves the model file in the page cache and the modules'
bytecode on the disk, whatever PYTHONDONTWRITEBYTECODE says here, since an installed server finds
both. Each run starts a server on a free port, waits for /health to say 200, reads what processor
time it took and its resident size, has it complete a prompt of the given length (which touches the
KV cache), reads the size again, and ends the server. Several checkouts take turns. Linux only
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

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
POLL_S = 0.005


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_mib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) / 1024


def processor_s(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


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


def one_run(checkout, model, threads, num_tokens):
    """(seconds to /health, of them on a processor, MiB then, MiB after the completion, tokens in
    the KV cache)."""
    port = free_port()
    command = [os.path.join(checkout, "bin", "metal-marlin"), "serve", model]
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)]
        + ["--threads", str(threads), "--log-level", "WARNING"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for_health(url, process)
        seconds = time.perf_counter() - start
        on_processor, before = processor_s(process.pid), resident_mib(process.pid)
        usage = complete(url, num_tokens)
        return seconds, on_processor, before, resident_mib(process.pid), usage["total_tokens"]
    finally:
        process.terminate()
        process.wait()


def show(runs):
    seconds, on_processor, before, after, tokens = map(statistics.median, zip(*runs, strict=True))
    extremes = min(run[0] for run in runs), max(run[0] for run in runs)
    print("start to /health    {:8.3f} s   ({:.3f} to {:.3f} s)".format(seconds, *extremes))
    print(f"processor time      {on_processor:8.3f} s   (least: {min(r[1] for r in runs):.3f} s)")
    print(f"resident then       {before:8.1f} MiB")
    print(f"resident later      {after:8.1f} MiB, with {tokens:.0f} tokens in the KV cache")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-words", type=int, default=1000)
    parser.add_argument("--checkout", action="append", help="default: this one")
    arguments = parser.parse_args()
    runs = {checkout: [] for checkout in arguments.checkout or [HERE]}
    for turn in range(1 + arguments.runs):
        for checkout in runs if turn % 2 else reversed(runs):
            run = one_run(checkout, arguments.model, arguments.threads, arguments.prompt_words)
            runs[checkout] += [run] if turn else []
    print(f"model file          {os.path.getsize(arguments.model) / 2**20:8.1f} MiB")
    for checkout, measured in runs.items():
        print(f"{checkout}, {arguments.runs} runs")
        show(measured)


if __name__ == "__main__":
    main()
