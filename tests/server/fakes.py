"""A tokenizer and an engine small enough to see through: a token is a byte, answers are
scripted."""

import threading

from marlin.engine.request import FinishEvent, Request, TokenEvent
from marlin.errors import ContextLengthError

EOS_ID = 256


class ByteTokenizer:
    """Token ids 0..255 are bytes; 256 is a special token."""

    vocab_size = 257
    bos_token = None
    eos_token = "<end>"
    byte_exact = True
    strips_leading_space = False
    chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    )

    def encode(self, text, *, add_special_tokens=True):
        return list(text.encode("utf-8"))

    def token_bytes(self, token_id):
        return bytes([token_id]) if token_id < 256 else b"<end>"

    def is_special(self, token_id):
        return token_id == EOS_ID


class FakeEngine:
    """Answers every request on a thread of its own.

    Args:
        script: callable(request) yielding bytes to publish as tokens; it may return early, block on
            `request` being aborted (wait_for_abort), or raise. None says "Hello there!".
        max_context_tokens: as the real engine's.

    Attributes:
        requests: all submitted requests, in order.
        aborted: set when a script saw its request aborted.
    """

    def __init__(self, script=None, max_context_tokens=64 * 1024):
        self.script = script or say(b"Hello there!")
        self.max_context_tokens = max_context_tokens
        self.requests = []
        self.alive = True
        self.closed = False
        self.submitted = threading.Semaphore(0)
        self.aborted = threading.Semaphore(0)

    def submit(self, prompt_token_ids, params, request_id):
        if len(prompt_token_ids) >= self.max_context_tokens:
            raise ContextLengthError(
                f"prompt has {len(prompt_token_ids)} tokens, the context holds "
                f"{self.max_context_tokens}"
            )
        request = Request(request_id, prompt_token_ids, params, seed=params.seed or 0)
        self.requests.append(request)
        threading.Thread(target=self._run, args=(request,), daemon=True).start()
        self.submitted.release()
        return request

    def _run(self, request):
        left = request.params.max_tokens
        reason = "stop"
        try:
            for piece in self.script(request):
                for token_id in piece:
                    if request.aborted:
                        break
                    if left == 0:
                        reason = "length"
                        break
                    left -= 1
                    request.output_token_ids.append(token_id)
                    request.events.put(TokenEvent((token_id,)))
        except EngineDown as error:
            request.events.put(FinishEvent("error", error))
            return
        except StoppedByEngine:
            reason = "abort"
        if request.aborted:
            self.aborted.release()
            reason = "abort"
        request.events.put(FinishEvent(reason))

    def stats(self):
        return {"num_running": 0, "num_waiting": 0, "num_generated_tokens": 0}

    def close(self):
        self.closed = True


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
