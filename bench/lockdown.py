#!/usr/bin/env python3
"""What the audit log and --lock-down cost: three servers of one model, which take turns.

    .venv/bin/python bench/lockdown.py MODEL.gguf [--streams 16] [--rounds 30] [--output-tokens 64]

One has a key and nothing more, one an audit log, one all of --lock-down (manifest, audit log,
filter, hooks, strict API). In a round each gets the same requests, in an order that changes from
round to round; the others wait meanwhile. A loss is that of a round, beside the plain server in the
same round: the median over all rounds is what a busy machine leaves true. Processor time is the
server's, of all rounds together (Linux). Files are in a temporary folder: TMPDIR says which disk
the audit logs are synced to.
"""

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from streams import Prompts, Streams, cpu_s

ROOT = Path(__file__).resolve().parents[1]
KEY = "a key that only these three have"
START_S = 120
KINDS = ("plain", "audit log", "lock-down")


def options_of(kind, model, folder):
    """What `serve` is told beside the options of all three."""
    key, log = folder / "audit.key", folder / f"{kind.replace(' ', '-')}.jsonl"
    audit = ["--audit-log", log, "--audit-key-file", key]
    if kind == "plain":
        return []
    if kind == "audit log":
        return audit
    manifest = folder / "manifest.json"
    with open(manifest, "wb") as file:
        subprocess.run([*command(), "manifest", model], stdout=file, check=True)
    return [*audit, "--manifest", manifest, "--lock-down"]


def command():
    return [sys.executable, "-m", "marlin"]


@contextlib.contextmanager
def server(kind, model, folder, num_streams, num_threads):
    """(process id, Streams) of a server that is well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [*command(), "serve", model, "--host", "127.0.0.1", "--port", port]
    words += ["--enable-batching", "--threads", num_threads]
    words += ["--max-concurrent-requests", num_streams]
    words += options_of(kind, model, folder)
    environ = {**os.environ, "METAL_MARLIN_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    with open(folder / f"{kind}.log", "wb") as log:
        process = subprocess.Popen(
            list(map(str, words)), env=environ, stdout=subprocess.DEVNULL, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_well(process, url, folder / f"{kind}.log")
        yield process.pid, Streams(url, KEY)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_until_well(process, url, log):
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):
            return
        time.sleep(0.05)
    raise SystemExit(f"a server did not start: {log.read_text()}")


def rate_of(pid, streams, prompts, num_output_tokens):
    """(tokens a second, the server's processor seconds, tokens) of requests that begin at once."""
    began, before = time.perf_counter(), cpu_s(pid)
    asked = [streams.send(prompt, num_output_tokens) for prompt in prompts]
    num_open = len(asked)
    while num_open:
        num_open -= len(streams.receive())
    seconds, used = time.perf_counter() - began, cpu_s(pid) - before
    answers = [stream.answer() for stream in asked]
    for answer in answers:
        if answer.error:
            raise SystemExit(f"a request failed: {answer.error[:300]}")
    num_tokens = sum(answer.num_tokens for answer in answers)
    return num_tokens / seconds, used, num_tokens


def compare(servers, arguments):
    """{kind: [rate_of() of each round]}; a first round, which warms up, is left out."""
    found = {kind: [] for kind in servers}
    for number in range(arguments.rounds + 1):
        turn = number % len(servers)
        for kind in [*servers][turn:] + [*servers][:turn]:
            prompts = Prompts(number, arguments.vocab)
            asked = [prompts.next(arguments.prompt_tokens) for _ in range(arguments.streams)]
            pid, streams = servers[kind]
            figures = rate_of(pid, streams, asked, arguments.output_tokens)
            if number:
                found[kind].append(figures)
    return found


def tell(found, arguments):
    print(
        f"{arguments.streams} streams, {arguments.prompt_tokens} + {arguments.output_tokens} "
        f"tokens each, {arguments.rounds} rounds"
    )
    plain = found["plain"]
    for kind, rows in found.items():
        speed = statistics.median(row[0] for row in rows)
        cost = sum(row[1] for row in rows) / sum(row[2] for row in rows)
        print(f"{kind:10} {speed:7.0f} tokens/s, {1000 * cost:.3f} processor ms a token", end="")
        if rows is not plain:
            losses = sorted(1 - row[0] / one[0] for row, one in zip(rows, plain, strict=True))
            low, high = losses[len(losses) // 4], losses[3 * len(losses) // 4]
            more = cost / (sum(row[1] for row in plain) / sum(row[2] for row in plain)) - 1
            print(
                f"; loss {statistics.median(losses):.1%} (half of the rounds {low:.1%} to "
                f"{high:.1%}), processor time {more:+.1%}",
                end="",
            )
        print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=32000, help="prompt ids are below this")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    model = os.path.abspath(arguments.model)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "audit.key").write_text("0123456789abcdef" * 4)
        (folder / "audit.key").chmod(0o600)
        words = (model, folder, arguments.streams, arguments.threads)
        servers = {kind: stack.enter_context(server(kind, *words)) for kind in KINDS}
        tell(compare(servers, arguments), arguments)


if __name__ == "__main__":
    main()
