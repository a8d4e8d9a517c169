"""The routes: what each endpoint does with an Exchange, and how every error becomes an answer.

Sits between HTTP (server/exchange.py) and the model (server/service.py) and knows the details of
neither.
"""

import hmac
import logging
import os
import time
from contextlib import closing
from dataclasses import dataclass, replace
from urllib.parse import unquote

from marlin.engine.stream import TextStream
from marlin.errors import MarlinError, ModelNotFoundError, OverloadedError
from marlin.server import fields, openai, responses
from marlin.server.connection import PeerGone
from marlin.server.http import HttpError
from marlin.server.metrics import resident_bytes

_log = logging.getLogger("marlin.server")
_MODEL_PATH = "/v1/models/"
_MB = 1024 * 1024
_FINISHED = ("stop", "length")  # an answer that is whole, as far as it was asked for


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator chose.

    Attributes:
        default_max_tokens: output tokens of a request that names no limit.
        timeout_s: from a request's last byte to the end of its answer.
        api_key: what clients must present, or None; bytes.
    """

    default_max_tokens: int
    timeout_s: float
    api_key: bytes | None = None


class App:
    """Answers Exchanges.

    Args:
        service: server.service.Service, or None when no model is loaded.
        settings: Settings.
        gate: server.gate.SlotGate that generation requests pass.
        metrics: server.metrics.Metrics.
        limits: server.limits.Limits.
    """

    def __init__(self, service, settings, gate, metrics, limits):
        self._service = service
        self._settings = settings
        self._gate = gate
        self._metrics = metrics
        self._limits = limits
        self._routes = {
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._show_metrics},
            "/v1/models": {"GET": self._list_models},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._complete},
        }
        self._model_route = {"GET": self._show_model}

    def handle(self, exchange):
        """Answer one request. Raises PeerGone when the client leaves before its answer is out."""
        try:
            self._authorize(exchange.head)
            self._handler(exchange.head)(exchange)
        except PeerGone:
            exchange.notes += " (client left)"
            raise
        except MarlinError as error:
            if error.status >= 500:
                _log.warning("%s: %s", exchange.request_id, error.message)
            self._answer_error(exchange, error)
        # The one boundary: a bug in one request must not take down its neighbours.
        except Exception:
            _log.exception("%s: internal error", exchange.request_id)
            self._answer_error(exchange, MarlinError("internal error", code="internal_error"))

    def error_content(self, error):
        """(bytes, content type) that answer a MarlinError."""
        return responses.encode(responses.error_body(error)), responses.JSON_TYPE

    def _answer_error(self, exchange, error):
        if exchange.stream_open:
            event = responses.event(responses.error_body(error))
            exchange.stream(responses.SSE_TYPE, event + responses.DONE_EVENT, last=True)
            return
        if exchange.status is not None:  # it failed after its answer: nothing can be added to that
            exchange.keep_open = False
            return
        headers = ()
        if isinstance(error, HttpError):
            headers = error.headers
            exchange.keep_open &= not error.close
        elif isinstance(error, OverloadedError):
            headers = (("Retry-After", str(self._limits.retry_after_s)),)
        content, content_type = self.error_content(error)
        exchange.reply(error.status, content, content_type, headers)

    def _authorize(self, head):
        key = self._settings.api_key
        if key is None or head.path == "/health":
            return
        scheme, _, presented = head.headers.get("authorization", "").partition(" ")
        # Bytes on both sides: compare_digest raises on text that is not ASCII.
        given = presented.strip().encode("latin-1")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, key):
            raise HttpError(
                401,
                "missing or wrong API key; send it as Authorization: Bearer KEY",
                type="authentication_error",
                code="invalid_api_key",
                headers=(("WWW-Authenticate", "Bearer"),),
            )

    def _handler(self, head):
        methods = self._routes.get(head.path)
        if methods is None and head.path.startswith(_MODEL_PATH):
            methods = self._model_route
        if methods is None:
            raise HttpError(404, f"no such path: {head.path[:200]}", code="not_found")
        handler = methods.get("GET" if head.method == "HEAD" else head.method)
        if handler is None:
            allowed = ", ".join(methods) + (", HEAD" if "GET" in methods else "")
            raise HttpError(
                405,
                f"{head.path} takes {allowed}",
                code="method_not_allowed",
                headers=(("Allow", allowed),),
            )
        return handler

    def _health(self, exchange):
        service = self._service
        alive = service is None or service.engine.alive
        body = {"status": "ok" if alive else "error", "model_loaded": service is not None}
        self._reply_json(exchange, body, 200 if alive else 503)

    def _show_metrics(self, exchange):
        stats = {} if self._service is None else self._service.engine.stats()
        body = self._metrics.snapshot()
        body["memory_usage_mb"] = round(resident_bytes() / _MB, 1)
        body["gpu_memory_usage_mb"] = round(stats.get("gpu_memory_bytes", 0) / _MB, 1)
        self._reply_json(exchange, body)

    def _list_models(self, exchange):
        service = self._service
        cards = []
        if service is not None:
            cards.append(responses.model_card(service.model_id, service.created))
        self._reply_json(exchange, {"object": "list", "data": cards})

    def _show_model(self, exchange):
        model_id = unquote(exchange.head.path[len(_MODEL_PATH) :])
        service = self._service
        if service is None or model_id != service.model_id:
            raise _model_not_found(model_id)
        self._reply_json(exchange, responses.model_card(service.model_id, service.created))

    def _chat(self, exchange):
        def tokenize(service, request):
            return service.chat_token_ids(request.messages)

        self._generate(exchange, openai.parse_chat, tokenize, responses.ChatAnswer)

    def _complete(self, exchange):
        def tokenize(service, request):
            return service.completion_token_ids(request.prompt)

        self._generate(exchange, openai.parse_completion, tokenize, responses.CompletionAnswer)

    def _generate(self, exchange, parse, tokenize, answer_kind):
        """Answer a generation request; parse and tokenize are its endpoint's, see the two above."""
        content = exchange.read_body()
        deadline = time.monotonic() + self._settings.timeout_s
        with self._metrics.request():
            body = fields.parse_json(content)
            service = self._loaded_service()
            request = parse(body, self._limits, self._settings.default_max_tokens)
            _check_model(request, service)
            options = request.options
            answer = answer_kind(_envelope(service, answer_kind), options.include_usage)

            def still_wanted():
                exchange.check_peer()
                if time.monotonic() >= deadline:
                    raise self._timed_out()

            # Tokenizing a long prompt is work, too, and waits for its slot.
            with self._gate.slot(still_wanted):
                token_ids = tokenize(service, request)
                stream = self._start(exchange, service, token_ids, answer, options, deadline)
                send = self._send_stream if options.stream else self._send_whole
                with closing(iter(stream)) as deltas:
                    send(exchange, answer, deltas, len(token_ids), options)

    def _loaded_service(self):
        if self._service is None:
            raise HttpError(
                503,
                "no model is loaded: the server was started without one",
                type="model_not_loaded",
                code="model_not_loaded",
            )
        return self._service

    def _start(self, exchange, service, token_ids, answer, options, deadline):
        # No output can be longer than the context; a larger wish means "until it is full".
        max_tokens = min(options.sampling.max_tokens, service.engine.max_context_tokens)
        params = replace(options.sampling, max_tokens=max_tokens)
        return TextStream(
            service.engine.submit(token_ids, params, answer.id),
            service.tokenizer,
            options.stop,
            deadline,
            continues=answer.continues_prompt,
            heartbeat=exchange.check_peer,
            poll_s=self._limits.poll_s,
        )

    def _send_whole(self, exchange, answer, deltas, num_prompt_tokens, _options):
        texts = []
        num_tokens = 0
        for delta in deltas:
            texts.append(delta.text)
            num_tokens += delta.num_tokens
            self._metrics.add_tokens(delta.num_tokens)
            self._check_finish(delta.finish_reason)
        usage = responses.Usage(num_prompt_tokens, num_tokens)
        exchange.notes = _token_notes(usage)
        self._reply_json(exchange, answer.body("".join(texts), delta.finish_reason, usage))

    def _send_stream(self, exchange, answer, deltas, num_prompt_tokens, options):
        """One write for each delta; the head waits for the first, so that an early failure has
        its status."""
        num_tokens = 0
        for delta in deltas:
            num_tokens += delta.num_tokens
            self._metrics.add_tokens(delta.num_tokens)
            finished = delta.finish_reason in _FINISHED
            chunks = [] if exchange.stream_open else answer.opening_chunks()
            if delta.text:
                chunks.append(answer.text_chunk(delta.text))
            if finished:
                usage = responses.Usage(num_prompt_tokens, num_tokens)
                exchange.notes = _token_notes(usage)
                chunks.append(answer.final_chunk(delta.finish_reason))
                if options.include_usage:
                    chunks.append(answer.usage_chunk(usage))
            if delta.text or finished:
                _send_events(exchange, chunks, finished)
            self._check_finish(delta.finish_reason)

    def _check_finish(self, reason):
        if reason is None or reason in _FINISHED:
            return
        if reason == "timeout":
            raise self._timed_out()
        raise HttpError(
            503, "the server is stopping", type="server_error", code="server_stopping"
        )

    def _timed_out(self):
        return HttpError(
            504,
            f"the answer was not complete within {self._settings.timeout_s:g} s",
            type="timeout_error",
            code="timeout",
        )

    def _reply_json(self, exchange, body, status=200):
        exchange.reply(status, responses.encode(body), responses.JSON_TYPE)


def _envelope(service, answer_kind):
    answer_id = answer_kind.id_prefix + os.urandom(12).hex()
    return responses.Envelope(answer_id, int(time.time()), service.model_id)


def _send_events(exchange, chunks, last):
    data = b"".join(responses.event(chunk) for chunk in chunks)
    exchange.stream(responses.SSE_TYPE, data + responses.DONE_EVENT if last else data, last)


def _token_notes(usage):
    return f" prompt={usage.num_prompt_tokens} output={usage.num_output_tokens}"


def _check_model(request, service):
    if request.model != service.model_id:
        raise _model_not_found(request.model)


def _model_not_found(model_id):
    return ModelNotFoundError(f"model {fields.shown(model_id)} is not served here", param="model")
