"""The application: one request after another to its endpoint, and every error to its answer; and
what stands in for it while no worker does.

Sits between HTTP (http/handler.py) and the endpoints (api/endpoints.py) and knows the details of
neither.
"""

import logging
import time
from collections.abc import Callable

from marlin.config import ServeConfig
from marlin.errors import (
    AuthenticationError,
    ForbiddenError,
    InternalError,
    MarlinError,
    NoMemoryError,
    OverloadedError,
    UnknownPathError,
)
from marlin.server.api.browsers import Browsers
from marlin.server.api.encoding import SSE_TYPE
from marlin.server.api.endpoints import Endpoints, canonical, reply_json
from marlin.server.api.keys import Guesses, Keys
from marlin.server.api.quotas import Quotas
from marlin.server.api.routes import DEFAULT_DIALECT, HEALTH, Path, Router
from marlin.server.http.connection import PeerGone
from marlin.server.http.handler import Handler, Progress, client_of
from marlin.server.observe.health import MEMORY, Failures, Shortages
from marlin.server.observe.logs import log_access, log_fields, log_refusal
from marlin.server.observe.metrics import DISCONNECTED, OTHER_ENDPOINT, Metrics, RequestRecord
from marlin.turns import client_of_key

_log = logging.getLogger("marlin.server")


class App:
    """An http.handler.Application.

    Args:
        keys: that clients must present one of, if there are any.
        guesses: what wrong ones cost.
        failures: is told of every generation request's answer.
        shortages: are told of what could not be had for one.
        browsers: what web pages may send.
        quotas: what each key may.
    """

    def __init__(
        self,
        router: Router,
        endpoints: Endpoints,
        metrics: Metrics,
        keys: Keys,
        guesses: Guesses,
        failures: Failures,
        shortages: Shortages,
        browsers: Browsers,
        quotas: Quotas,
    ):
        self._failures = failures
        self._shortages = shortages
        self._router = router
        self._endpoints = endpoints
        self._metrics = metrics
        self._keys = keys
        self._guesses = guesses
        self._quotas = quotas
        self._browsers = browsers

    def handle(self, handler: Handler) -> None:
        """Answer one request. Raises PeerGone when the client leaves before its answer is out."""
        record = self._metrics.record()
        path = self._router.find(canonical(handler.path), handler.head.query)
        try:
            self._answer(handler, record, path)
        finally:
            if handler.witness is not None:
                handler.witness.end(
                    outcome=record.outcome or handler.status,
                    prompt_tokens=record.num_prompt_tokens,
                    output_tokens=record.num_output_tokens,
                )
            endpoint = OTHER_ENDPOINT if path is None else path.endpoint
            self._metrics.answered(endpoint, record.outcome or handler.status)
            if record.is_generation:
                self._failures.answered(record.outcome or handler.status)
            seconds = time.monotonic() - handler.started
            log_access(handler, record, seconds, quiet=path is not None and path.is_quiet)

    def refuse(self, handler: Handler, error: MarlinError) -> None:
        """Answer what was not a readable request."""
        self._metrics.answered(OTHER_ENDPOINT, error.status)
        _reply_error(handler, DEFAULT_DIALECT, error)
        log_refusal(handler, error)

    def missed(self, what: str) -> None:
        self._shortages.missed(what)

    def depends_on(self, part: Callable[[], str | None]) -> None:
        """One more part that /health looks at (observe.health.Health)."""
        self._endpoints.health_here.add(part)

    def heartbeat(self) -> None:
        """Bring up to date what the other workers tell about this one; several times a second."""
        self._keys.look()
        self._quotas.look(self._keys.named)
        self._endpoints.heartbeat()

    def read_keys_again(self) -> None:
        """The key file is read at the next heartbeat, changed or not."""
        self._keys.forget()

    def waited_s(self) -> float:
        """How long the engine's work has waited for a step; inf when it has ended."""
        return self._endpoints.health_here.waited_s()

    def failing(self, seconds: float) -> str | None:
        """What keeps this process from answering, and has for so long; None when nothing does."""
        return self._endpoints.health_here.failing(seconds)

    def gives_way(self) -> bool:
        """Whether new connections should go to another worker, whose engine is faster."""
        return self._endpoints.health_here.gives_way()

    def _answer(self, handler: Handler, record: RequestRecord, path: Path | None) -> None:
        dialect = DEFAULT_DIALECT if path is None else path.dialect
        try:
            handler.answer_fields += self._browsers.fields(handler)
            if self._browsers.answers_preflight(handler):
                return
            self._browsers.check(handler)
            if handler.is_extra and (path is None or not path.is_quiet):
                raise OverloadedError("all connections are in use; try again")
            if path is None or path.needs_key:
                self._authorize(handler)
            if path is None:
                raise UnknownPathError(f"no such path: {canonical(handler.path)[:200]}")
            route = path.route(handler.command, canonical(handler.path))
            self._answer_by(route, handler, record)
        except PeerGone:
            record.outcome = DISCONNECTED
            raise
        except MarlinError as error:
            if isinstance(error, NoMemoryError):
                self.missed(MEMORY)
            if error.status >= 500:
                _log.warning("%s: %s", handler.request_id, error.message, extra=log_fields(handler))
            self._answer_error(handler, record, dialect, error)
        except (KeyboardInterrupt, SystemExit):
            raise
        # The one boundary: a bug in one request must not take down its neighbours. A panic of the
        # tokenizers library is a BaseException.
        except BaseException as error:  # noqa: BLE001
            if isinstance(error, MemoryError):
                self.missed(MEMORY)
            _log.exception("%s: internal error", handler.request_id, extra=log_fields(handler))
            self._answer_error(handler, record, dialect, InternalError())

    def _answer_by(self, route, handler, record):
        principal = handler.principal
        if principal is None:
            route.answer(self._endpoints, handler, record)
            return
        if route.needs_key and route.scope not in principal.scopes:
            raise ForbiddenError(f"key {principal.name} may not {route.scope}")
        with self._quotas.use(principal, route.method == "POST", record) as handler.give_back:
            route.answer(self._endpoints, handler, record)

    def _answer_error(self, handler, record, dialect, error):
        if handler.progress is Progress.STREAMING:
            record.outcome = error.status
            events = handler.failing and handler.failing(error)
            handler.stream(SSE_TYPE, events or dialect.error_events(error), last=True)
        elif handler.progress is Progress.NOT_BEGUN:
            _reply_error(handler, dialect, error)
        else:  # it failed after its answer: nothing can be added to that
            handler.close_connection = True

    def _authorize(self, handler):
        if not self._keys.are_asked_for:
            return
        scheme, _, token = handler.headers.get("authorization", "").partition(" ")
        presented = [token] if scheme.lower() == "bearer" else []
        presented.append(handler.headers.get("x-api-key", ""))
        # Only blanks: in this text 0x85 and 0xA0 are parts of a key's characters, and strip() alone
        # would take them for blanks, too.
        given = [text.strip(" \t").encode("latin-1") for text in presented]
        handler.principal = self._keys.find(given)
        if handler.principal is None:
            if any(given) and not self._guesses.cost(client_of(handler.client_address[0])):
                handler.close_connection = True
            raise AuthenticationError(
                "missing or wrong API key; send it as Authorization: Bearer KEY or x-api-key: KEY"
            )
        if not handler.principal.shares:
            handler.known_as = client_of_key(handler.principal.name)


class NoWorker:
    """The http.handler.Application of a supervisor without workers: 503, whatever was asked."""

    def __init__(self, config: ServeConfig):
        self._router = Router(config)

    def handle(self, handler: Handler) -> None:
        handler.close_connection = True  # the next request shall find a worker
        error = OverloadedError("no worker process is running; one is being started")
        path = self._router.find(canonical(handler.path))
        if path is not None and HEALTH in path.routes.values():
            body = {"status": "error", "model_loaded": False}
            reply_json(handler, body, error.status, error.headers)
        else:
            _reply_error(handler, DEFAULT_DIALECT if path is None else path.dialect, error)

    def refuse(self, handler: Handler, error: MarlinError) -> None:
        _reply_error(handler, DEFAULT_DIALECT, error)

    def missed(self, what: str) -> None:
        """/health is 503 as it is."""


def _reply_error(handler, dialect, error):
    handler.close_connection |= error.close
    reply_json(handler, dialect.error_body(error), dialect.error_status(error), error.headers)
