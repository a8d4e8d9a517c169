"""Streaming completions as a client sees them: many at once from one thread.

Owns connections, clocks and the reading of answers; knows no scenario. Bytes are only stored while
the streams run and parsed afterwards, so that the client takes little from a server on the same
cores. Each request has a connection of its own, which the server is asked to close: some servers
(llama-server's HTTP library) end the connection after a stream without having said so. Standard
library only.
"""

import http.client
import json
import os
import random
import selectors
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

# No stream here is silent for so long: a 4,000-token prompt on two slow cores takes about 20 s.
SILENCE_S = 120
# Ids below this are bytes and common words in every vocabulary measured.
FIRST_TOKEN_ID = 1000
# Named in full, because servers differ in what they take for granted.
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.0}


@dataclass(frozen=True)
class Answer:
    """One streamed answer; times are time.perf_counter() seconds.

    Attributes:
        sent_s: when the request was sent.
        text_s: arrivals of chunks with text.
        num_tokens, num_prompt_tokens, num_cached_tokens: the server's usage; 0 if it has none.
        error: None, or what was wrong.
    """

    sent_s: float
    text_s: tuple[float, ...] = ()
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None

    def gaps_ms(self):
        """(end, length in ms) of each time between two chunks with text."""
        pairs = zip(self.text_s, self.text_s[1:], strict=False)
        return [(later, 1000 * (later - earlier)) for earlier, later in pairs]


class Stream:
    """A request in flight, and the bytes that came.

    Attributes:
        sent_s: when it was sent.
        pieces: (arrival, bytes) as read from the socket.
        ended: whether the server has closed the connection.
    """

    def __init__(self, connection):
        self.connection = connection
        self.sent_s = time.perf_counter()
        self.pieces = []
        self.ended = False

    def answer(self):
        """What has come so far, as an Answer."""
        try:
            return self._parse()
        except (ValueError, KeyError, IndexError) as error:
            return Answer(self.sent_s, error=f"{type(error).__name__}: {error}")

    def _parse(self):
        text_s, usage, is_whole = [], {}, False
        for arrival, event in events(self.pieces):
            if event == b"data: [DONE]":
                is_whole = True
            elif event.startswith(b"data: {"):
                chunk = json.loads(event[6:])
                usage = chunk.get("usage") or usage
                if any(choice.get("text") for choice in chunk["choices"]):
                    text_s.append(arrival)
        return Answer(
            self.sent_s,
            tuple(text_s),
            usage.get("completion_tokens", 0),
            usage.get("prompt_tokens", 0),
            (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            None if is_whole or not self.ended else "the stream ended early",
        )


def events(pieces):
    """(arrival, event) of a response's server-sent events; ValueError unless it is a 200."""
    head, data = b"", b""
    for arrival, piece in pieces:
        data += piece
        if not head and b"\r\n\r\n" in data:
            head, _, data = data.partition(b"\r\n\r\n")
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise ValueError((head.partition(b"\r\n")[0] + b" " + data).decode("latin-1"))
        # Neither server cuts an event in two chunks, so that the lines between events which are not
        # theirs are the chunks' sizes.
        *lines, data = data.split(b"\n") if head else (data,)
        for line in lines:
            if line.startswith(b"data: "):
                yield arrival, line.rstrip()
    if not head:
        raise ValueError("no response")


class Streams:
    """Requests in flight to one server.

    Args:
        url: where it listens.
        key: of the client, if the server asks for one.
    """

    def __init__(self, url, key=None):
        parts = urlsplit(url)
        self._key = {"Authorization": f"Bearer {key}"} if key else {}
        self.address = parts.hostname, parts.port or 80
        self.model = self.get("/v1/models")["data"][0]["id"]
        self._selector = selectors.DefaultSelector()

    def get(self, path):
        """The JSON that a GET answers."""
        connection = http.client.HTTPConnection(*self.address, timeout=SILENCE_S)
        try:
            connection.request("GET", path, headers={"Accept": "application/json", **self._key})
            return json.load(connection.getresponse())
        finally:
            connection.close()

    def send(self, prompt, num_output_tokens):
        """Ask for a completion of token ids with exactly so many tokens; its Stream."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": num_output_tokens,
            **SAMPLING,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.address[0]}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        )
        head += "".join(f"{name}: {value}\r\n" for name, value in self._key.items()) + "\r\n"
        connection = socket.create_connection(self.address)
        stream = Stream(connection)
        connection.sendall(head.encode() + content)
        self._selector.register(connection, selectors.EVENT_READ, stream)
        return stream

    def receive(self):
        """Wait until bytes come and store them; the Streams that ended."""
        ready = self._selector.select(SILENCE_S)
        if not ready:
            raise TimeoutError(f"no stream got anything for {SILENCE_S} s")
        ended = []
        for entry, _ in ready:
            stream = entry.data
            piece = stream.connection.recv(1 << 16)
            stream.pieces.append((time.perf_counter(), piece))
            if not piece:
                self.leave(stream)
                stream.ended = True
                ended.append(stream)
        return ended

    def leave(self, stream):
        """Close a stream's connection."""
        self._selector.unregister(stream.connection)
        stream.connection.close()


class Prompts:
    """Prompts of random token ids, so that no prompt cache knows one; a function of the seed."""

    def __init__(self, seed, vocab_size):
        self._random = random.Random(seed)
        self._vocab_size = vocab_size

    def next(self, num_tokens):
        first, last = FIRST_TOKEN_ID, self._vocab_size - 1
        return [self._random.randint(first, last) for _ in range(num_tokens)]


def percentile(values, share):
    """The smallest value that `share` percent are not above; nan of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


def cpu_s(pid):
    """Processor seconds that a process has used; Linux (/proc/PID/stat in proc(5))."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
