#!/usr/bin/env python3
"""What the HTTP layer costs by itself: the server over an engine that only counts time.

    .venv/bin/python bench/http_layer.py [--seconds 3] [--rounds 3]
    .venv/bin/python bench/http_layer.py --streams 16,64,256 --beat-ms 50 --connections 2000

Three figures, with the clients on the same cores:
  GET /health on keep-alive connections, 1 and 8 clients;
  one-token completions, 8 clients;
  streams fed together at every beat (64 every 6.4 ms, 10,000 tokens a second in all, unless other
  numbers are given): what arrives, for each token the time from the engine's publishing it to the
  client's having read it (one monotonic clock for both), and the processor time of the server's
  process between the first beat and the last. A server that is behind sends several tokens at once,
  which makes them cheaper: compare where there is one token a write. With --connections so many are
  open meanwhile, those that do not stream idle behind a first request. With --streams only the
  last figure is made. Linux only (/proc).
"""

import argparse
import json
import multiprocessing
import os
import re
import selectors
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from streams import percentile

from marlin.config import serve_config
from marlin.engine.mock import MockEngine, MockTokenizer
from marlin.engine.request import FinishEvent, Request, TokenEvent
from marlin.engine.served_model import ServedModel
from marlin.server.process.serve import serve as run

NUM_STREAMS = 64
MOST_STREAMS = 256
BEAT_MS = 6.4
TEXT = re.compile(rb'"text":"(a*)"')
ID = re.compile(rb'"id":"([^"]+)"')


class BeatEngine(MockEngine):
    """Every running request gets the token "a" at each beat, all together, as a batch does, once
    there are as many as the prompt of each is long."""

    def __init__(self, tokenizer, stamps_path, beat_s):
        super().__init__(tokenizer, 1 << 20)
        self.stamps = {}
        self.stamps_path = stamps_path
        self.beat_s = beat_s
        self.cpu_s = [0.0, 0.0]
        threading.Thread(target=self._beat, daemon=True).start()

    def submit(self, prompt_token_ids, params, request_id, client=""):
        request = Request(request_id, prompt_token_ids, params, 0)
        if params.max_tokens == 1:
            self._end(request)
        else:
            self.stamps[request_id] = []
            with self._lock:
                self._running.add(request)
        return request

    def _end(self, request):
        request.events.put(TokenEvent((97,)))
        request.events.put(FinishEvent("length"))

    def _beat(self):
        beat = time.monotonic()
        while True:
            beat = max(beat + self.beat_s, time.monotonic())
            time.sleep(max(0.0, beat - time.monotonic()))
            with self._lock:
                running = list(self._running)
            if not running or len(running) != len(running[0].prompt_token_ids):
                continue
            is_first = not self.stamps[running[0].request_id]
            self.cpu_s[0 if is_first else 1] = time.process_time()
            for request in running:
                stamps = self.stamps[request.request_id]
                stamps.append(time.monotonic())
                if len(stamps) == request.params.max_tokens:
                    self._end(request)
                    with self._lock:
                        self._running.discard(request)
                        if not self._running:
                            self._write_stamps()
                else:
                    request.events.put(TokenEvent((97,)))

    def _write_stamps(self):
        with open(self.stamps_path + ".part", "w", encoding="ascii") as file:
            json.dump([self.stamps, self.cpu_s], file)
        self.stamps = {}
        os.replace(self.stamps_path + ".part", self.stamps_path)


def serve(port, stamps_path, beat_s):
    """The server process: the real HTTP layer over a BeatEngine."""

    def load(_settings):
        tokenizer = MockTokenizer()
        return ServedModel("beat", BeatEngine(tokenizer, stamps_path, beat_s), tokenizer)

    arguments = {"host": "127.0.0.1", "port": str(port), "model_path": "beat"}
    arguments["max_concurrent_requests"] = str(MOST_STREAMS)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run(serve_config(arguments, {}), load)


def post(max_tokens, num_streams=0):
    prompt = "x" * max(1, num_streams)
    body = {"model": "beat", "prompt": prompt, "max_tokens": max_tokens, "stream": num_streams > 0}
    data = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(data) + data


def connect(port):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection, request):
    """Send a request and read its whole, sized response."""
    connection.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(65536)


def requests_per_s(port, request, num_clients, seconds):
    counts = [0] * num_clients
    end = time.monotonic() + seconds

    def client(index):
        with connect(port) as connection:
            while time.monotonic() < end:
                exchange(connection, request)
                counts[index] += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(num_clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - start)


def read_streams(port, num_streams, num_tokens):
    """({request id: time at which each of its tokens had been read}, number of reads)."""
    selector = selectors.DefaultSelector()
    arrivals, num_reads = {}, 0
    for _ in range(num_streams):
        connection = connect(port)
        connection.sendall(post(num_tokens, num_streams))
        selector.register(connection, selectors.EVENT_READ, [None, []])
    num_open = num_streams
    while num_open:
        for key, _ in selector.select(timeout=30):
            data = key.fileobj.recv(1 << 16)
            now = time.monotonic()
            num_reads += 1
            state = key.data
            if state[0] is None and (found := ID.search(data)):
                state[0] = found[1].decode()
            # A server writes whole events, and loopback does not cut writes of this size.
            state[1] += [now] * sum(len(text) for text in TEXT.findall(data))
            if b"[DONE]" in data or not data:
                arrivals[state[0]] = state[1]
                selector.unregister(key.fileobj)
                key.fileobj.close()
                num_open -= 1
    return arrivals, num_reads


def measure_streams(port, stamps_path, num_streams, num_tokens):
    arrivals, num_reads = read_streams(port, num_streams, num_tokens)
    while not os.path.exists(stamps_path):
        time.sleep(0.01)
    with open(stamps_path, encoding="ascii") as file:
        stamps, (first_cpu_s, last_cpu_s) = json.load(file)
    os.remove(stamps_path)
    delays, first, last, total = [], float("inf"), 0.0, 0
    for request_id, sent in stamps.items():
        read = arrivals[request_id.rpartition("-")[0]]  # a request is named after its choice
        assert len(read) == len(sent), (len(read), len(sent))
        delays += [b - a for a, b in zip(sent, read, strict=True)]
        first, last, total = min(first, sent[0]), max(last, read[-1]), total + len(read)
    token_us = 1e6 * (last_cpu_s - first_cpu_s) / (total - num_streams)
    print(
        f"{num_streams} streams: {total / (last - first):,.0f} tokens/s; token to client p50 "
        f"{1000 * percentile(delays, 50):.2f} ms, p99 {1000 * percentile(delays, 99):.2f} ms; "
        f"{token_us:.0f} us of processor time a token, {total / num_reads:.2f} tokens a read",
        flush=True,
    )


def measure_requests(port, seconds):
    health = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    for clients in (1, 8):
        rate = requests_per_s(port, health, clients, seconds)
        print(f"GET /health, {clients} clients: {rate:,.0f} a second")
    rate = requests_per_s(port, post(1), 8, seconds)
    print(f"one-token completions, 8 clients: {rate:,.0f} a second")


def idle_connections(port, count, stack):
    """So many connections that have asked once."""
    for _ in range(count):
        exchange(stack.enter_context(connect(port)), b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="a figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=numbers)
    parser.add_argument("--beat-ms", type=float, default=BEAT_MS)
    parser.add_argument("--connections", type=int, default=0)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(arguments.rounds):
        stamps_path = os.path.join(tempfile.mkdtemp(), "stamps.json")
        beat_s = arguments.beat_ms / 1000
        server = multiprocessing.Process(
            target=serve, args=(port, stamps_path, beat_s), daemon=True
        )
        server.start()
        while True:
            try:
                connect(port).close()
                break
            except OSError:
                time.sleep(0.02)
        if arguments.streams is None:
            measure_requests(port, arguments.seconds)
        for num_streams in arguments.streams or (NUM_STREAMS,):
            with ExitStack() as stack:
                idle_connections(port, arguments.connections - num_streams, stack)
                num_tokens = int(arguments.seconds / beat_s)
                measure_streams(port, stamps_path, num_streams, num_tokens)
        server.terminate()
        server.join()


def numbers(text):
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
