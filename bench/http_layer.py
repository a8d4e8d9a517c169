#!/usr/bin/env python3
"""What the HTTP layer costs by itself: the server over an engine that only counts time.

    .venv/bin/python bench/http_layer.py [--seconds 3] [--rounds 3]

Three figures, with the clients on the same cores:
  GET /health on keep-alive connections, 1 and 8 clients;
  one-token completions, 8 clients;
  64 streams fed together every 6.4 ms, 10,000 tokens a second in all: what arrives, and for each
  token the time from the engine's publishing it to the client's having read it (one monotonic
  clock for both).
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

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))


from marlin.config import serve_config
from marlin.engine.mock import MockEngine, MockTokenizer
from marlin.engine.request import FinishEvent, Request, TokenEvent
from marlin.engine.served_model import ServedModel
from marlin.server.process.serve import serve as run

NUM_STREAMS = 64
TICK_S = 0.0064
TEXT = re.compile(rb'"text":"(a*)"')
ID = re.compile(rb'"id":"([^"]+)"')


class BeatEngine(MockEngine):
    """Every running request gets the token "a" at each beat, all together, as a batch does."""

    def __init__(self, tokenizer, stamps_path):
        super().__init__(tokenizer, 1 << 20)
        self.stamps = {}
        self.stamps_path = stamps_path
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
            beat += TICK_S
            time.sleep(max(0.0, beat - time.monotonic()))
            with self._lock:
                running = list(self._running) if len(self._running) == NUM_STREAMS else []
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
            json.dump(self.stamps, file)
        os.replace(self.stamps_path + ".part", self.stamps_path)


def serve(port, stamps_path):
    """The server process: the real HTTP layer over a BeatEngine."""

    def load(_settings):
        tokenizer = MockTokenizer()
        return ServedModel("beat", BeatEngine(tokenizer, stamps_path), tokenizer)

    arguments = {"host": "127.0.0.1", "port": str(port), "model_path": "beat"}
    arguments["max_concurrent_requests"] = str(2 * NUM_STREAMS)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run(serve_config(arguments, {}), load)


def post(max_tokens, stream):
    body = {"model": "beat", "prompt": "x", "max_tokens": max_tokens, "stream": stream}
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


def read_streams(port, num_tokens):
    """{request id: time at which each of its tokens had been read}."""
    selector = selectors.DefaultSelector()
    arrivals = {}
    for _ in range(NUM_STREAMS):
        connection = connect(port)
        connection.sendall(post(num_tokens, True))
        selector.register(connection, selectors.EVENT_READ, [None, []])
    num_open = NUM_STREAMS
    while num_open:
        for key, _ in selector.select(timeout=30):
            data = key.fileobj.recv(1 << 16)
            now = time.monotonic()
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
    return arrivals


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, len(values) * share // 100)]


def measure_streams(port, stamps_path, num_tokens):
    arrivals = read_streams(port, num_tokens)
    while not os.path.exists(stamps_path):
        time.sleep(0.01)
    with open(stamps_path, encoding="ascii") as file:
        stamps = json.load(file)
    os.remove(stamps_path)
    delays, first, last, total = [], float("inf"), 0.0, 0
    for request_id, sent in stamps.items():
        read = arrivals[request_id.rpartition("-")[0]]  # a request is named after its choice
        assert len(read) == len(sent), (len(read), len(sent))
        delays += [b - a for a, b in zip(sent, read, strict=True)]
        first, last, total = min(first, sent[0]), max(last, read[-1]), total + len(read)
    print(
        f"{NUM_STREAMS} streams: {total / (last - first):,.0f} tokens/s; token to client p50 "
        f"{1000 * percentile(delays, 50):.2f} ms, p99 {1000 * percentile(delays, 99):.2f} ms"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="a figure")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(arguments.rounds):
        stamps_path = os.path.join(tempfile.mkdtemp(), "stamps.json")
        server = multiprocessing.Process(target=serve, args=(port, stamps_path), daemon=True)
        server.start()
        while True:
            try:
                connect(port).close()
                break
            except OSError:
                time.sleep(0.02)
        health = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        for clients in (1, 8):
            rate = requests_per_s(port, health, clients, arguments.seconds)
            print(f"GET /health, {clients} clients: {rate:,.0f} a second")
        rate = requests_per_s(port, post(1, False), 8, arguments.seconds)
        print(f"one-token completions, 8 clients: {rate:,.0f} a second")
        measure_streams(port, stamps_path, int(arguments.seconds / TICK_S))
        server.terminate()
        server.join()


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
