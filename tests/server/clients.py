"""Clients that send exactly the bytes they are given, and the bodies that most tests send."""

import dataclasses
import json

MODEL = "tiny"
CLIENT_TIMEOUT_S = 10  # a client that waits this long has found a hang


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]

    def events(self):
        """Data of the server-sent events, [DONE] as it is, the others decoded."""
        blocks = self.body.decode("utf-8").split("\n\n")
        assert blocks.pop() == "", "the last event is not ended by an empty line"
        data = [block.removeprefix("data: ") for block in blocks]
        return [item if item == "[DONE]" else json.loads(item) for item in data]


class RawClient:
    """Sends exactly the bytes it is given and reads whole responses strictly."""

    def __init__(self, sock):
        self.sock = sock
        self.file = sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.file.close()
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)
        return self

    def ask(self, method, path, body=None, headers=()):
        """Send a well-formed request and read the answer; body: bytes or something for JSON."""
        self.send(request_bytes(method, path, body, headers))
        return self.read(method)

    def read(self, method="GET"):
        line = self.file.readline()
        if not line:  # as a reset is: which of the two a dying server's client sees is chance
            raise ConnectionAbortedError("the connection was closed before an answer")
        assert line.startswith(b"HTTP/1.1 "), f"no status line: {line!r}"
        status = int(line.split()[1])
        headers = {}
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"repeated {name}"
            headers[name.lower()] = value.strip()
        if status in (100, 204):
            return Answer(status, headers, b"")
        return Answer(status, headers, self._read_body(headers, method))

    def _read_body(self, headers, method):
        if method == "HEAD":
            return b""
        if headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in headers
            return b"".join(self.chunks())
        if "content-length" in headers:
            length = int(headers["content-length"])
            body = self.file.read(length)
            assert len(body) == length
            return body
        return self.file.read()

    def read_stream_head(self):
        """Status line and fields of a streamed answer, as bytes."""
        lines = []
        while (line := self.file.readline()) != b"\r\n":
            assert line, "closed within the head"
            lines.append(line)
        return b"".join(lines)

    def chunks(self):
        while size := int(self.file.readline(), 16):
            yield self.file.read(size)
            assert self.file.read(2) == b"\r\n"
        assert self.file.readline() == b"\r\n"

    def at_end(self):
        """Whether the server has closed the connection; waits for it or for more bytes."""
        return self.file.read(1) == b""


def request_bytes(method, path, body=None, headers=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
    if body is not None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chat_body(**changes):
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **changes}


def completion_body(**changes):
    return {"model": MODEL, "prompt": "Hi", **changes}
