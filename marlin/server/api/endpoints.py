"""What each endpoint answers, from the served model and what is known about the process.

Which path and method lead here is api/routes.py; which error becomes which answer is api/app.py.
"""

import logging
import os
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from urllib.parse import unquote

from marlin.config import ServeConfig
from marlin.engine.gate import SlotGate
from marlin.engine.served_model import ServedModel
from marlin.errors import ModelNotFoundError, NoModelError
from marlin.files.fields import shown
from marlin.server.api import ollama, openai_answers, page
from marlin.server.api.dialect import Dialect, Questions, VectorDialect
from marlin.server.api.encoding import JSON_TYPE, encode
from marlin.server.api.event_stream import EventStream
from marlin.server.api.fields import memory_bytes, parse_json
from marlin.server.api.generation import Deadline, Generation
from marlin.server.api.keys import asked_by
from marlin.server.api.model_names import served_as
from marlin.server.api.names import MAX_IGNORED, taking
from marlin.server.api.vectors import Vectors
from marlin.server.http.handler import Handler
from marlin.server.http.limits import Limits
from marlin.server.observe.accept import preferred
from marlin.server.observe.audit import AuditLog, parameters_digest
from marlin.server.observe.health import Health
from marlin.server.observe.logs import log_fields
from marlin.server.observe.metrics import RequestRecord
from marlin.server.observe.metrics_page import MetricsPage
from marlin.server.observe.proof import StepProof

_log = logging.getLogger("marlin.server")


class Endpoints:
    """The endpoints of one server; each method that has a row in api/routes.py answers a request.

    Args:
        model: None when none is loaded.
        created: when it was loaded, seconds since the epoch.
        gate: that generation requests pass.
        capabilities: what the routes do with this model, {name: whether they do}.
        audit: records requests, or None.
    """

    def __init__(
        self,
        model: ServedModel | None,
        created: int,
        config: ServeConfig,
        gate: SlotGate,
        limits: Limits,
        health: Health,
        metrics_page: MetricsPage,
        capabilities: dict[str, bool],
        audit: AuditLog | None = None,
    ):
        self._model = model
        self._names = served_as(config.served_names, "" if model is None else model.model_id)
        self._created = created
        self._config = config
        self._gate = gate
        self._limits = limits
        self._large_bodies = SlotGate(1, None, limits.poll_s)
        self._health = health
        self._metrics_page = metrics_page
        self._proof = StepProof(model, limits.proof_s, limits.proof_pause_s, limits.poll_s)
        self._capabilities = capabilities
        self._audit = audit

    @property
    def health_here(self) -> Health:
        return self._health

    def heartbeat(self) -> None:
        """As App.heartbeat()."""
        self._health.look()
        self._health.heartbeat()
        self._metrics_page.refresh()

    def greeting(self, handler: Handler, _record: RequestRecord) -> None:
        """The page for who prefers HTML, as browsers do, and a word for others."""
        kinds = (JSON_TYPE, page.HTML_TYPE) if self._config.web_page else (JSON_TYPE,)
        if preferred(handler.headers.get("accept"), kinds) == page.HTML_TYPE:
            handler.reply(200, page.CONTENT, page.HTML_TYPE, page.FIELDS)
            return
        message = {"message": "metal-marlin serves the OpenAI API under /v1"}
        reply_json(handler, message, headers=(("Vary", "Accept"),))

    def health(self, handler: Handler, _record: RequestRecord) -> None:
        is_well = self._health.is_well()
        content = _health_content(is_well, self._health.scarce, self._model is not None)
        handler.reply(200 if is_well else 503, content, JSON_TYPE)

    def prove_step(self, handler: Handler, _record: RequestRecord) -> None:
        reply_json(handler, *self._proof.now(handler.check_peer))

    def metrics(self, handler: Handler, _record: RequestRecord) -> None:
        content, kind = self._metrics_page.answer(handler.headers.get("accept"))
        handler.reply(200, content, kind, headers=(("Vary", "Accept"),))

    def models(self, handler: Handler, _record: RequestRecord) -> None:
        reply_json(handler, {"object": "list", "data": self._cards(handler)})

    def model(self, handler: Handler, _record: RequestRecord) -> None:
        model_id = unquote(canonical(handler.path).removeprefix("/v1/models/"))
        found = [card for card in self._cards(handler) if card["id"] == model_id]
        if self._model is None or not found:
            raise ModelNotFoundError(f"model {shown(model_id)} is not served here", param="model")
        details = openai_answers.model_details(self._model, self._capabilities)
        reply_json(handler, found[0] | details)

    def describe(
        self,
        handler: Handler,
        _record: RequestRecord,
        description: Callable[[ollama.Facts], dict[str, Any]],
    ) -> None:
        """What is served, in the words of another API."""
        reply_json(handler, description(self._facts(handler)))

    def show_model(self, handler: Handler, _record: RequestRecord) -> None:
        """Ollama's /api/show."""
        deadline = Deadline(self._config.timeout_s)
        asked = self._parse(handler, ollama.SHOW, handler.read_body(), deadline)
        self._check_name(handler, asked.model)
        reply_json(handler, ollama.show(self._facts(handler), self._loaded_model()))

    def _facts(self, handler):
        return ollama.Facts(self._model, self._names_for(handler), self._created)

    def _cards(self, handler):
        if self._model is None:
            return []
        facts = self._created, self._model.engine.max_context_tokens
        return [openai_answers.model_card(name, *facts) for name in self._names_for(handler)]

    def _names_for(self, handler):
        """The names that whoever asks may give."""
        who, names = handler.principal, self._names.names
        return tuple(name for name in names if who is None or who.may_name(name))

    def _check_name(self, handler, name):
        """Raise ModelNotFoundError for a name that is not served, or not to whoever asks."""
        self._names.check(name)
        who = handler.principal
        if who is not None and not who.may_name(self._names.names[0] if name is None else name):
            raise ModelNotFoundError(f"model {shown(name)} is not served here", param="model")

    def generate(self, handler: Handler, record: RequestRecord, dialect: Dialect) -> None:
        content = self._body(handler)
        deadline = Deadline(self._config.timeout_s)
        with record.generating():
            call = self._parse(handler, dialect, content, deadline)
            del content  # it may wait long for its slot
            model = self._loaded_model()
            self._check_name(handler, call.model)
            model.check_generates()
            key, created = os.urandom(12).hex(), int(time.time())
            answer = call.answer(model, self._names.names[0], key, created)
            events = EventStream(handler, self._limits.keep_alive_s)
            handler.failing = answer.failing
            generation = Generation(
                handler, events, record, model, call, answer, deadline, self._limits.poll_s
            )
            # Tokenizing is work, too: not without a place, but before a slot, so that a mistake in
            # a prompt is told at once and by a status.
            with self._gate.place(handler.client):
                prompts = generation.encode()
                with self._gate.slot(generation.keep_waiting, handler.client):
                    generation.run(prompts)

    def pool(self, handler: Handler, record: RequestRecord, dialect: VectorDialect) -> None:
        """The vectors or scores of a request's texts."""
        content = self._body(handler)
        deadline = Deadline(self._config.timeout_s)
        with record.generating():
            call = self._parse(handler, dialect, content, deadline)
            del content
            model = self._loaded_model()
            self._check_name(handler, call.model)
            vectors = Vectors(handler, record, model, call, deadline, self._limits.poll_s)
            with self._gate.place(handler.client):
                token_lists = vectors.encode()
                with self._gate.slot(vectors.check_wanted, handler.client):
                    vectors.run(token_lists, self._names.names[0])

    def ask(self, handler: Handler, _record: RequestRecord, dialect: Questions) -> None:
        """Answer a dialect.Question, which waits for no slot."""
        content = self._body(handler)
        deadline = Deadline(self._config.timeout_s)
        question = self._parse(handler, dialect, content, deadline)
        model = self._loaded_model()
        self._check_name(handler, question.model)

        wanted = partial(_check_wanted, handler, deadline)
        with self._gate.place(handler.client):
            told = question.told(model, wanted, handler.client)
        reply_json(handler, told)

    def _body(self, handler):
        """A request's body, recorded before anything is made of it."""
        content = handler.read_body()
        if self._audit is not None:
            whose = {"endpoint": canonical(handler.path), **asked_by(handler)}
            handler.witness = self._audit.begin(content, request_id=handler.request_id, **whose)
        return content

    def _parse(self, handler, dialect, content, deadline):
        """The dialect's Call. Large bodies one at a time: their JSON takes many times their size,
        and what is left of it is held like the body."""
        if len(content) <= self._limits.small_body_bytes:
            return self._call(handler, dialect, parse_json(content, self._limits.num_values))

        wanted = partial(_check_wanted, handler, deadline)
        with self._large_bodies.slot(wanted, handler.client):
            handler.body_share.wait_for_room()
            body = parse_json(content, self._limits.num_values)
            handler.body_share.set(memory_bytes(body))
            return self._call(handler, dialect, body)

    def _call(self, handler, dialect, body):
        self._loaded_model()
        if handler.witness is not None:
            handler.witness.parameters = parameters_digest(body)
        ignored = taking(self._config.unknown_parameters)
        limits = handler.principal.within(self._limits) if handler.principal else self._limits
        most = limits.num_output_tokens
        max_tokens = min(self._config.max_tokens, most or self._config.max_tokens)
        call = dialect.parse(body, limits, max_tokens, ignored)
        if left_out := [*(ignored or ()), *call.skipped]:
            _tell_of_ignored(handler, ", ".join(left_out[:MAX_IGNORED]))
        return call

    def _loaded_model(self):
        if self._model is None:
            raise NoModelError("no model is loaded: the server was started without one")
        return self._model


def _check_wanted(handler, deadline):
    handler.check_peer()
    deadline.check()


@cache
def _health_content(is_well, scarce, is_loaded):
    if is_well or scarce is None:
        return encode({"status": "ok" if is_well else "error", "model_loaded": is_loaded})
    return encode({"status": "degraded", "model_loaded": is_loaded, "part": scarce})


def _tell_of_ignored(handler, names):
    handler.answer_fields.append(("X-Ignored-Parameters", names))
    fields = log_fields(handler)
    _log.warning("%s: ignored what is unknown here: %s", handler.request_id, names, extra=fields)


def canonical(path: str) -> str:
    """A path without the slashes at its end, which some clients add to a base URL."""
    return path.rstrip("/") or "/"


def reply_json(handler: Handler, body: Any, status: int = 200, headers=()) -> None:
    """Send a whole response that is JSON."""
    handler.reply(status, encode(body), JSON_TYPE, headers)
