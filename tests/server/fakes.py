"""A tokenizer and an engine small enough to see through: a token is a byte, answers are
scripted. What they share with any engine is the mock model's."""

import threading
from types import MappingProxyType

from marlin.engine.mock import MockEngine, MockTokenizer

EOS_ID = 256


class ByteTokenizer(MockTokenizer):
    """Token ids 0..255 are bytes; 256 is a special token."""

    vocab_size = 257
    named_tokens = MappingProxyType({"eos_token": "<end>"})
    eos_token_ids = frozenset({EOS_ID})
    chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    )

    def __init__(self):
        pass

    def encode(self, text, *, add_special_tokens=True, parse_special=True):
        return list(text.encode("utf-8"))

    def token_bytes(self, token_id):
        return bytes([token_id]) if token_id < 256 else b"<end>"

    def is_special(self, token_id):
        return token_id == EOS_ID


class FakeEngine(MockEngine):
    """Answers every request on a thread of its own.

    Args:
        script: callable(request) yielding bytes to publish as tokens; it may return early, block on
            `request` being aborted (wait_for_abort), or raise. None says "Hello there!".
        max_context_tokens: as the real engine's.

    Attributes:
        requests: all submitted requests, in order.
        submitted, aborted: released when a request came, and when a script saw its one aborted.
    """

    alive = True

    def __init__(self, script=None, max_context_tokens=64 * 1024):
        super().__init__(ByteTokenizer(), max_context_tokens, step_s=0, answer=self._follow)
        self.script = script or say(b"Hello there!")
        self.requests = []
        self.submitted = threading.Semaphore(0)
        self.aborted = threading.Semaphore(0)

    @property
    def closed(self):
        return self._closed

    def submit(self, prompt_token_ids, params, request_id, client=""):
        request = super().submit(prompt_token_ids, params, request_id, client)
        self.requests.append(request)
        self.submitted.release()
        return request

    def _follow(self, request):
        try:
            for piece in self.script(request):
                yield from piece
        except StoppedByEngine:
            request.abort()
        finally:
            if request.aborted:
                self.aborted.release()


class EngineDown(Exception):
    """A bug in the engine, as the server sees one."""


class StoppedByEngine(Exception):
    """Script control: the engine gives the request up by itself."""


def say(*pieces):
    """A script that publishes these byte strings and stops."""

    def script(_request):
        yield from pieces

    return script


def say_then_hang(*pieces):
    """A script that publishes these and then produces nothing until the request is aborted."""

    def script(request):
        yield from pieces
        wait_for_abort(request)

    return script


def wait_for_abort(request, seconds=20):
    """Block until request.abort(); fails the test's thread after far too long."""
    assert request._aborted.wait(seconds), "request was never aborted"
