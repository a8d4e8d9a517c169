"""The routes: what each endpoint does with a request, and how every error becomes an answer.

Sits between HTTP (http/handler.py) and the model (engine/served_model.py) and knows the details of
neither.
"""

import hmac
import logging
import os
import time
from urllib.parse import unquote

from marlin.errors import (
    AuthenticationError,
    InternalError,
    MarlinError,
    MethodError,
    ModelNotFoundError,
    NoModelError,
    UnknownPathError,
)
from marlin.files.fields import shown
from marlin.server.api import openai_answers, openai_requests
from marlin.server.api.fields import parse_json
from marlin.server.api.generation import Generation, timed_out
from marlin.server.api.model_names import served_as
from marlin.server.http.connection import PeerGone
from marlin.server.http.handler import Answer
from marlin.server.observe.logs import log_access, log_fields, log_refusal
from marlin.server.observe.metrics import DISCONNECTED

_log = logging.getLogger("marlin.server")
_MODEL_PATH = "/v1/models/"
_OPEN_PATHS = ("/", "/health")  # they tell nothing of model or requests


class App:
    """An http.handler.Application.

    Args:
        service: engine.served_model.ServedModel, or None when no model is loaded.
        created: when it was loaded, seconds since the epoch.
        config: ServeConfig.
        gate: engine.gate.SlotGate that generation requests pass.
        metrics: observe.metrics.Metrics.
        limits: http.limits.Limits.
        health: observe.health.Health.
        metrics_page: observe.metrics_page.MetricsPage, or None for no /metrics.
    """

    def __init__(self, service, created, config, gate, metrics, limits, health, metrics_page=None):
        self._service = service
        self._created = created
        self._config = config
        self._names = service and served_as(config.served_names, service.model_id)
        self._gate = gate
        self._metrics = metrics
        self._limits = limits
        self._vitals = health
        self._metrics_page = metrics_page
        self._routes = {
            "/": {"GET": self._greet},
            "/health": {"GET": self._health},
            "/v1/models": {"GET": self._list_models},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._complete},
        }
        if metrics_page is not None:
            self._routes["/metrics"] = {"GET": self._show_metrics}
        self._model_route = {"GET": self._show_model}

    def handle(self, handler):
        """Answer one request. Raises PeerGone when the client leaves before its answer is out."""
        record = self._metrics.record()
        try:
            self._answer(handler, record)
        finally:
            path = _canonical(handler.path)
            self._metrics.answered(path, record.outcome or handler.status)
            log_access(handler, record, time.monotonic() - handler.started)

    def refuse(self, handler, error):
        """Answer what was not a readable request."""
        self._metrics.answered(None, error.status)
        self._reply_error(handler, error)
        log_refusal(handler, error)

    def _answer(self, handler, record):
        try:
            self._authorize(handler)
            self._endpoint(handler)(handler, record)
        except PeerGone:
            record.outcome = DISCONNECTED
            raise
        except MarlinError as error:
            if error.status >= 500:
                _log.warning("%s: %s", handler.request_id, error.message, extra=log_fields(handler))
            self._answer_error(handler, record, error)
        except (KeyboardInterrupt, SystemExit):
            raise
        # The one boundary: a bug in one request must not take down its neighbours. A panic of the
        # tokenizers library is a BaseException.
        except BaseException:  # noqa: BLE001
            _log.exception("%s: internal error", handler.request_id, extra=log_fields(handler))
            self._answer_error(handler, record, InternalError())

    def beat(self):
        """Bring up to date what the other workers tell about this one; several times a second."""
        self._vitals.beat()
        if self._metrics_page is not None:
            self._metrics_page.refresh()

    def _answer_error(self, handler, record, error):
        if handler.answer is Answer.STREAMING:
            record.outcome = error.status
            event = openai_answers.event(openai_answers.error_body(error))
            handler.stream(openai_answers.SSE_TYPE, event + openai_answers.DONE_EVENT, last=True)
        elif handler.answer is Answer.NOT_BEGUN:
            self._reply_error(handler, error)
        else:  # it failed after its answer: nothing can be added to that
            handler.close_connection = True

    def _reply_error(self, handler, error):
        handler.close_connection |= error.close
        body = openai_answers.error_body(error)
        self._reply_json(handler, body, error.status, error.headers)

    def _authorize(self, handler):
        key = self._config.api_key
        if key is None or _canonical(handler.path) in _OPEN_PATHS:
            return
        scheme, _, token = handler.headers.get("authorization", "").partition(" ")
        presented = [token] if scheme.lower() == "bearer" else []
        presented.append(handler.headers.get("x-api-key", ""))
        # Bytes on both sides: compare_digest raises on text that is not ASCII.
        # Only blanks: in this text 0x85 and 0xA0 are parts of a key's characters, and strip() alone
        # would take them for blanks, too.
        given = [text.strip(" \t").encode("latin-1") for text in presented]
        if not any(hmac.compare_digest(one, key) for one in given):
            raise AuthenticationError(
                "missing or wrong API key; send it as Authorization: Bearer KEY or x-api-key: KEY"
            )

    def _endpoint(self, handler):
        path, method = _canonical(handler.path), handler.command
        methods = self._routes.get(path)
        if methods is None and path.startswith(_MODEL_PATH):
            methods = self._model_route
        if methods is None:
            raise UnknownPathError(f"no such path: {path[:200]}")
        endpoint = methods.get("GET" if method == "HEAD" else method)
        if endpoint is None:
            allowed = ", ".join(methods) + (", HEAD" if "GET" in methods else "")
            raise MethodError(f"{path} takes {allowed}", allowed)
        return endpoint

    def _greet(self, handler, _record):
        self._reply_json(handler, {"message": "metal-marlin serves the OpenAI API under /v1"})

    def _health(self, handler, _record):
        alive = self._vitals.is_well()
        loaded = self._service is not None
        body = {"status": "ok" if alive else "error", "model_loaded": loaded}
        self._reply_json(handler, body, 200 if alive else 503)

    def _show_metrics(self, handler, _record):
        answer = self._metrics_page.answer(handler.headers.get("accept"))
        handler.reply(200, *answer, headers=(("Vary", "Accept"),))

    def _cards(self):
        if self._service is None:
            return []
        facts = self._created, self._service.engine.max_context_tokens
        return [openai_answers.model_card(name, *facts) for name in self._names.names]

    def _list_models(self, handler, _record):
        self._reply_json(handler, {"object": "list", "data": self._cards()})

    def _show_model(self, handler, _record):
        model_id = unquote(_canonical(handler.path)[len(_MODEL_PATH) :])
        found = [card for card in self._cards() if card["id"] == model_id]
        if not found:
            raise ModelNotFoundError(f"model {shown(model_id)} is not served here", param="model")
        self._reply_json(handler, found[0] | openai_answers.model_details(self._service))

    def _chat(self, handler, record):
        def tokenize(service, request, still_wanted):
            return [service.encode_chat(request.messages, still_wanted)]

        parse, answer_kind = openai_requests.parse_chat, openai_answers.ChatAnswer
        self._generate(handler, record, parse, tokenize, answer_kind)

    def _complete(self, handler, record):
        def tokenize(service, request, still_wanted):
            return [
                service.encode_prompt(prompt.content, prompt.param, still_wanted)
                for prompt in request.prompts
            ]

        parse, answer_kind = openai_requests.parse_completion, openai_answers.CompletionAnswer
        self._generate(handler, record, parse, tokenize, answer_kind)

    def _generate(self, handler, record, parse, tokenize, answer_kind):
        """Answer a generation request; parse and tokenize are its endpoint's, see the two above."""
        content = handler.read_body()
        timeout_s = self._config.timeout_s
        deadline = time.monotonic() + timeout_s
        with record.generating():
            body = parse_json(content)
            service = self._loaded_service()
            request = parse(body, self._limits, self._config.max_tokens)
            self._names.check(request.model)
            options = request.options
            shows_logprobs = options.sampling.num_logprobs is not None
            answer = answer_kind(
                self._envelope(answer_kind),
                options.include_usage,
                service.tokenizer if shows_logprobs else None,
            )

            def still_wanted():
                handler.check_peer()
                if time.monotonic() >= deadline:
                    raise timed_out(timeout_s)

            generation = Generation(
                *(handler, record, service, answer, options, self._limits, deadline, timeout_s)
            )
            # Tokenizing a long prompt is work, too, and waits for its slot.
            with self._gate.slot(still_wanted):
                generation.run(tokenize(service, request, still_wanted))

    def _envelope(self, answer_kind):
        return openai_answers.Envelope(
            answer_kind.id_prefix + os.urandom(12).hex(),
            int(time.time()),
            self._names.names[0],
            openai_answers.fingerprint(self._service),
        )

    def _loaded_service(self):
        if self._service is None:
            raise NoModelError("no model is loaded: the server was started without one")
        return self._service

    def _reply_json(self, handler, body, status=200, headers=()):
        handler.reply(status, openai_answers.encode(body), openai_answers.JSON_TYPE, headers)


def _canonical(path):
    """A path without the slashes at its end, which some clients add to a base URL."""
    return path.rstrip("/") or "/"
