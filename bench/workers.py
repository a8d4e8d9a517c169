#!/usr/bin/env python3
"""What several workers of one model hold in memory, and what they answer together.

    .venv/bin/python bench/workers.py MODEL.gguf [--workers 1 2 4] [--threads 1] [--clients 4]

For each number of workers: starts a server, has clients complete prompts until every worker has
computed some (so that all weights are touched), reads /proc/PID/smaps of every process and adds up
the proportional shares in MiB (Pss: a page that four processes map counts a quarter in each).
`supervisor` is its part of `all`; `weights` is the shared file's, and `of one's` the same as a
multiple of what one worker has of it resident. A single worker has no supervisor and repacks into
memory of its own. `tokens/s` is over all clients. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from urllib.request import Request, urlopen

COMMAND = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bin", "metal-marlin")
WEIGHTS = "memfd:metal-marlin-weights"
ROUNDS = 6
OUTPUT_TOKENS = 64
COLUMNS = ("workers", "processes", "all", "supervisor", "weights", "of one's", "tokens/s")
LINE = "{:>7}  {:>9}  {:>6}  {:>10}  {:>7}  {:>8}  {:>8}"


def processes(parent):
    """The process ids of a process and its children."""
    with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
        return [parent, *map(int, file.read().split())]


def memory_kib(pid):
    """(Pss of everything, Pss and Rss of the shared weights) of a process, KiB."""
    everything = weights = resident = 0
    in_weights = False
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        for line in file:
            first, *rest = line.split()
            if not first.endswith(":"):
                in_weights = WEIGHTS in line
            elif first == "Pss:":
                everything += int(rest[0])
                weights += int(rest[0]) * in_weights
            elif first == "Rss:":
                resident += int(rest[0]) * in_weights
    return everything, weights, resident


class Server:
    def __init__(self, model, workers, threads):
        self.process = subprocess.Popen(
            [COMMAND, "serve", model, "--host", "127.0.0.1", "--port", "0"]
            + ["--workers", str(workers), "--threads", str(threads)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        words = self.process.stdout.readline().split()
        if not words:
            sys.exit(self.process.stderr.read())
        self.url = words[-1]
        num_ready = 0
        while workers > 1 and num_ready < workers:
            num_ready += " serves" in self.process.stderr.readline()
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        with urlopen(f"{self.url}/v1/models", timeout=5) as answer:
            self.model = json.load(answer)["data"][0]["id"]

    def complete(self):
        body = {
            "model": self.model,
            "prompt": "word " * 100,
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
        }
        request = Request(f"{self.url}/v1/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urlopen(request, timeout=120) as answer:
            answer.read()

    def close(self):
        self.process.terminate()
        self.process.wait()


def measure(model, workers, threads, clients):
    """A row of the table, as text."""
    server = Server(model, workers, threads)
    try:

        def client():
            for _ in range(ROUNDS):
                server.complete()

        started = [threading.Thread(target=client) for _ in range(clients)]
        begin = time.perf_counter()
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        rate = clients * ROUNDS * OUTPUT_TOKENS / (time.perf_counter() - begin)
        pids = processes(server.process.pid)
        return row(workers, [memory_kib(pid) for pid in pids], rate)
    finally:
        server.close()


def row(workers, processes, rate):
    """One line: counts, MiB and output tokens a second; `-` for what a single worker has not."""
    everything, weights, resident = zip(*processes, strict=True)
    supervisor = shared = times = "-"
    if workers > 1:
        supervisor = f"{everything[0] / 1024:.1f}"
        shared = f"{sum(weights) / 1024:.1f}"
        times = f"{sum(weights) / max(resident):.2f}"
    total = f"{sum(everything) / 1024:.1f}"
    return LINE.format(workers, len(processes), total, supervisor, shared, times, f"{rate:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    print(LINE.format(*COLUMNS))
    for workers in arguments.workers:
        print(measure(arguments.model, workers, arguments.threads, arguments.clients))


if __name__ == "__main__":
    main()
