"""A model in a program's own process: what `import marlin` offers, and all of it.

The engine, the parsers of requests and their refusals are the server's. Installs no signal handler,
no hook and no logging, reads no environment and opens no connection. Public names are listed in
marlin.__all__ (docs/embedding.md); everything else of the package may change.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from marlin.config import embedded_settings, serve_config
from marlin.engine.bounds import check_vocabulary
from marlin.engine.load import Batching, load_model
from marlin.engine.served_model import ServedModel
from marlin.engine.stream import merged
from marlin.errors import ConfigError, StoppingError, TimedOutError
from marlin.server.api.dialect import Call, ToolCall, Usage
from marlin.server.api.embeddings import EMBEDDINGS, EmbeddingsCall
from marlin.server.api.fields import refuse, request_fields
from marlin.server.api.generation import Deadline, Gathered, Generation
from marlin.server.api.openai_requests import CHAT, COMPLETIONS
from marlin.server.api.vectors import Vectors
from marlin.server.http.limits import Limits
from marlin.server.http.listener import HttpServer, open_listener
from marlin.server.process.serve import build_app

if TYPE_CHECKING:
    import numpy as np

# A library speaks when its program has said where to; Python would have it on standard error.
logging.getLogger("marlin").addHandler(logging.NullHandler())
_log = logging.getLogger("marlin.library")

_NEVER_S = 1e9  # of a call without a time limit
# What a Model says itself, and what an Answer and an array have no place for.
_OF_HTTP = ("model", "echo", "logprobs", "top_logprobs", "encoding_format")


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        text: what is neither a thought nor a call.
        reasoning: the model's thoughts, "" for none.
        calls: of tools; their arguments are JSON as the model wrote it.
        finish_reason: "stop", "tool_calls" or "length".
        usage: counts of tokens.
    """

    text: str
    reasoning: str
    calls: Sequence[ToolCall]
    finish_reason: str
    usage: Usage


@dataclass(frozen=True)
class Piece:
    """The next part of an answer.

    Attributes:
        kind: what the text belongs to: "content", "reasoning", "call" (the name of one that begins)
            or "arguments" (of the call that began last).
        finish_reason: of the last piece, whose text is "".
    """

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str
    finish_reason: str | None = None


class Stream(Iterator[Piece]):
    """An answer while it is written. Leaving it early (close(), the end of a `with` block, or of
    its last name) frees what it takes of the engine; any thread may do so."""

    def __init__(self, pieces: Iterator[Piece], abort: Callable[[], None]):
        self._pieces = pieces
        self._abort = abort

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer here; another thread's next() then ends with StoppingError."""
        self._abort()

    __del__ = close  # of one that is dropped, begun or not

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Model:
    """A loaded model. Every method may be called from any thread; calls beside one another share
    the model's steps with `batching`, and take turns without. Made by open_model()."""

    def __init__(self, served: ServedModel):
        self._served = served
        self._limits = Limits()

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._served.model_id

    @property
    def max_context_tokens(self) -> int:
        """Of prompt and output together."""
        return self._served.engine.max_context_tokens

    def generate(self, prompt: str | list[int], **parameters: Any) -> Answer:
        """Continue a text, or token ids.

        Args:
            parameters: those of POST /v1/completions (docs/serving.md) for one choice, and
                timeout_s, within which it must be done.

        Raises:
            RequestError: the prompt or a parameter is refused; `param` names it.
            TimedOutError: it took longer than timeout_s.
            StoppingError: the model was closed.
            MarlinError: the device failed; the model may be used again unless it has ended.
        """
        return self._whole(COMPLETIONS, {"prompt": prompt}, parameters)

    def stream(self, prompt: str | list[int], **parameters: Any) -> Stream:
        """As generate(), piece by piece; what is refused is refused at once."""
        return self._stream(COMPLETIONS, {"prompt": prompt}, parameters)

    def chat(self, messages: list[dict[str, Any]], **parameters: Any) -> Answer:
        """Answer a conversation by the model's own chat template.

        Args:
            messages: as POST /v1/chat/completions takes them.
            parameters: the rest of such a request for one choice (tools, response_format,
                temperature, ...), and timeout_s.

        Raises:
            TemplateError: there is no template, or it refuses the conversation; else as generate().
        """
        return self._whole(CHAT, {"messages": messages}, parameters)

    def stream_chat(self, messages: list[dict[str, Any]], **parameters: Any) -> Stream:
        """As chat(), piece by piece; what is refused is refused at once."""
        return self._stream(CHAT, {"messages": messages}, parameters)

    def check_chat(self, messages: list[dict[str, Any]], **parameters: Any) -> None:
        """Raise what chat() refuses of this; nothing is generated."""
        self._prepared(CHAT, {"messages": messages}, parameters).encode()

    def embed(self, texts: str | list[str], **parameters: Any) -> "np.ndarray":
        """Vectors of texts, float32 [num_texts, dim]; parameters: of POST /v1/embeddings, and
        timeout_s. Raises NotServedError where the model makes none (open_model's pooling)."""
        import numpy as np

        limits, body, deadline = self._asked({"input": texts}, parameters)
        call = EMBEDDINGS.parse(body, limits, 0, None)
        assert isinstance(call, EmbeddingsCall)
        caller: Any = _Caller()
        vectors = Vectors(caller, caller, self._served, call, deadline, limits.poll_s)
        return np.stack([call.cut(vector) for vector in vectors.vectors(vectors.encode())])

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, as a prompt has them."""
        return self._served.encode_text(
            text, lambda: None, "", add_special_tokens=add_special_tokens
        )

    def detokenize(self, token_ids: Iterable[int]) -> str:
        """Their text; bytes that are no UTF-8 become U+FFFD. Raises RequestError for an id outside
        the vocabulary."""
        ids = list(token_ids)
        check_vocabulary(ids, self._served.engine, "token_ids")
        data = b"".join(map(self._served.tokenizer.token_bytes, ids))
        return data.decode("utf-8", "replace")

    def log_probabilities(self, prompt: str | list[int]) -> "np.ndarray":
        """What the model says of the token after a prompt: float64 [vocab_size], the logits less
        their log-sum."""
        import numpy as np

        token_ids = self._served.encode_prompt(prompt)
        call = COMPLETIONS.parse({"model": self.name, "prompt": token_ids}, self._limits, 1, None)
        size = self._served.tokenizer.vocab_size
        # An end token that is drawn would end the answer before anything is told.
        sampling = replace(call.sampling, num_logprobs=size, temperature=0.0, ignore_eos=True)
        call = replace(call, sampling=sampling)
        found = np.full(size, -np.inf)
        run = self._run(call, Deadline(_NEVER_S), self._limits)
        with closing(merged(run.start(run.encode()))) as deltas:
            for _, delta in deltas:
                _check(delta.finish_reason)
                for shown in delta.tokens:
                    assert shown.logprobs is not None
                    ids, values = zip(*shown.logprobs.top, strict=True)
                    found[list(ids)] = values
        return found

    def close(self) -> None:
        """Free the model's memory; answers under way end with StoppingError."""
        self._served.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _asked(self, fields, parameters):
        """(limits, the body of a request, its Deadline)."""
        timeout_s = request_fields(parameters).number("timeout_s", _NEVER_S)
        parameters.pop("timeout_s", None)
        for name in _OF_HTTP:
            if parameters.get(name) is not None and parameters[name] is not False:
                refuse(name, "is of the HTTP API alone: there is no place for it here")
        body = {"model": self.name, **fields, **parameters}
        return self._limits, body, Deadline(timeout_s)

    def _prepared(self, dialect, fields, parameters):
        limits, body, deadline = self._asked(fields, parameters)
        call = dialect.parse(body, limits, self.max_context_tokens, None)
        if call.stream or call.num_choices * len(call.prompts) != 1:
            name = "stream" if call.stream else "n" if call.num_choices != 1 else "prompt"
            raise ConfigError(f"{name}: a call gives one answer, and stream methods stream it")
        return self._run(call, deadline, limits)

    def _run(self, call: Call, deadline, limits):
        self._served.check_generates()
        answer = call.answer(self._served, self.name, os.urandom(12).hex(), 0)
        caller: Any = _Caller()
        whose = caller, caller, caller
        return Generation(*whose, self._served, call, answer, deadline, limits.poll_s)

    def _whole(self, dialect, fields, parameters):
        run = self._prepared(dialect, fields, parameters)
        streams = run.start(run.encode())
        gathered, stream = Gathered(), streams[0]
        with closing(merged(streams)) as deltas:
            for _, delta in deltas:
                _check(delta.finish_reason)
                gathered.add(delta)
        choice, request = gathered.whole(0), stream.request
        usage = Usage(
            *(len(request.prompt_token_ids), stream.num_tokens),
            *(request.num_cached_tokens, stream.num_reasoning_tokens),
        )
        assert choice.finish_reason is not None
        return Answer(choice.text, choice.reasoning, choice.calls, choice.finish_reason, usage)

    def _stream(self, dialect, fields, parameters):
        run = self._prepared(dialect, fields, parameters)
        streams = run.start(run.encode())
        return Stream(_pieces(streams), streams[0].request.abort)


class Server:
    """The HTTP server of docs/serving.md on a thread of this process.

    Args:
        model: to serve; it stays the caller's to close, after the server.
        host: numeric address or "localhost".
        port: 0 picks a free one.
        api_key: that clients must present.
        settings: options of `serve` as text, by their names with underscores: max_tokens="100".

    Raises:
        ConfigError: a setting that it does not have, or an address that cannot be bound.

    Attributes:
        url: of the server.
    """

    def __init__(
        self,
        model: Model,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        api_key: str | None = None,
        **settings: str,
    ):
        environ = {} if api_key is None else {"METAL_MARLIN_API_KEY": api_key}
        place = {"host": host, "port": str(port)}
        config = serve_config(place | embedded_settings(settings), environ)
        takes_many = model._served.new_pooler is not None
        limits = Limits().for_context(model.max_context_tokens, takes_many)
        app = build_app(config, model._served, limits)
        try:
            listener = open_listener(config.host, config.port, limits.backlog)
        except OSError as error:
            raise ConfigError(f"cannot listen on {config.host}: {error.strerror}") from None
        bound, number = listener.getsockname()[:2]
        self.url = f"http://[{bound}]:{number}" if ":" in bound else f"http://{bound}:{number}"
        self._server = HttpServer(listener, app, limits)
        self._is_closed = threading.Event()
        works = self._server.serve_forever, partial(self._beat, app, limits.heartbeat_s)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def _beat(self, app, pause_s):
        """Without signs of life /health takes the server for stuck, and keys stay as they were."""
        while not self._is_closed.wait(pause_s):
            try:
                app.heartbeat()
            except OSError as error:
                _log.warning("this server's sign of life is late: %s", error.strerror)
            except MemoryError:
                app.missed("memory")

    def close(self, grace_s: float = 10.0) -> bool:
        """Accept nothing more and wait for requests in flight; whether all were done in time."""
        is_done = self._server.drain(grace_s)
        self._is_closed.set()
        for thread in self._threads:
            thread.join()
        return is_done

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def open_model(
    path: str | os.PathLike[str],
    *,
    device: Literal["cpu", "metal"] | None = None,
    threads: int | None = None,
    max_context_tokens: int | None = None,
    batching: Batching | None = None,
    speculative: Literal["ngram", "draft"] | None = None,
    draft_model: str | os.PathLike[str] | None = None,
    kv_cache_dtype: Literal["float16", "float32"] = "float16",
    pooling: Literal["last", "mean", "cls", "rank"] | None = None,
    allow_special_tokens_in_text: bool = False,
) -> Model:
    """Open a GGUF file or a model folder, and start its engine. A process may have several.

    Args:
        device: None is Metal where there is one, and else the CPU.
        threads: of the CPU device; None is as many cores as the process may use.
        max_context_tokens: prompt and output together; None is what memory holds of its own.
        batching: a KV cache in blocks that answers share; None computes one answer after another.
        speculative, draft_model, kv_cache_dtype, pooling, allow_special_tokens_in_text: of `serve`.

    Raises:
        ModelFileError: the model cannot be read.
        ConfigError: a setting that it, or the device, cannot have.
        DeviceError: the device cannot be opened, or its memory does not suffice.
    """
    served = load_model(
        *(os.fspath(path), threads, max_context_tokens, None, batching, None, device),
        *(speculative, draft_model),
        kv_cache_dtype=kv_cache_dtype,
        pooling=pooling,
    )
    served.trusts_texts = allow_special_tokens_in_text
    return Model(served)


class _Caller:
    """The program, in the place of a handler's client: it is always there, and asks for itself."""

    client = ""

    def check_peer(self) -> None: ...


def _check(reason):
    if reason == "timeout":
        raise TimedOutError("the answer was not complete within timeout_s")
    if reason == "abort":
        raise StoppingError("the answer was ended, or the model closed")


def _pieces(streams):
    with closing(merged(streams)) as deltas:
        for _, delta in deltas:
            _check(delta.finish_reason)
            if delta.parts is None and delta.text:
                yield Piece("content", delta.text)
            for part in delta.parts or ():
                if part.kind != "called" and part.text:
                    yield Piece(part.kind, part.text)
            if delta.finish_reason is not None:
                yield Piece("content", "", delta.finish_reason)
