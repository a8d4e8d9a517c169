"""The endpoints, one row each: the only list of them.

Metrics labels, the capabilities of a model card and the methods of a 405 follow from it. What an
endpoint answers is api/endpoints.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

from marlin.config import ServeConfig
from marlin.engine.served_model import ServedModel
from marlin.errors import MethodError
from marlin.server.api import ollama, openai_requests
from marlin.server.api.dialect import Dialect, Errors, Questions, VectorDialect
from marlin.server.api.embeddings import EMBEDDINGS
from marlin.server.api.endpoints import Endpoints
from marlin.server.api.infill import INFILL
from marlin.server.api.messages import COUNT_TOKENS, MESSAGES
from marlin.server.api.rerank import RERANK, RERANK_COHERE
from marlin.server.api.responses import RESPONSES
from marlin.server.api.tokenizing import DETOKENIZE_IDS, TOKENIZE_TEXT
from marlin.server.http.handler import Handler
from marlin.server.observe.metrics import NUM_ENDPOINTS, OTHER_ENDPOINT, RequestRecord

# Of errors at paths that have none.
DEFAULT_DIALECT: Errors = openai_requests.CHAT
_ID = "{id}"  # at the end of a path: the rest of it, whatever that is


class Route(NamedTuple):
    """One endpoint.

    Attributes:
        method: GET answers HEAD, too.
        path: its label in metrics as well; "{id}" at its end stands for any rest.
        answer: method of Endpoints.
        dialect: of its errors.
        needs_key: whether a client must present the API key, where there is one.
        scope: that its key must have.
        quiet: asked every few seconds for ever, and logged at DEBUG.
        setting: the switch of ServeConfig without which there is no such path; None for none.
        capability: what a model card calls it; None where it is no capability of a model.
        offered: whether a model has that capability.
    """

    method: str
    path: str
    answer: Callable[[Endpoints, Handler, RequestRecord], None]
    dialect: Errors = DEFAULT_DIALECT
    needs_key: bool = True
    scope: str = "generate"
    quiet: bool = False
    setting: str | None = None
    capability: str | None = None
    offered: Callable[[ServedModel], bool] = lambda _model: True


def generation_route(path: str, dialect: Dialect, **more: Any) -> Route:
    """An endpoint that generates."""
    answer = partial(Endpoints.generate, dialect=dialect)
    return Route("POST", path, answer, dialect=dialect, **more)


def question_route(path: str, dialect: Questions, **more: Any) -> Route:
    """An endpoint that a tokenizer answers."""
    answer = partial(Endpoints.ask, dialect=dialect)
    return Route("POST", path, answer, dialect=dialect, **more)


def vector_route(path: str, dialect: VectorDialect, **more: Any) -> Route:
    """An endpoint that makes vectors or scores of texts."""
    return Route("POST", path, partial(Endpoints.pool, dialect=dialect), dialect=dialect, **more)


def description_route(path: str, description: Callable[[ollama.Facts], dict[str, Any]]) -> Route:
    """An endpoint of Ollama's API that says what is served."""
    answer = partial(Endpoints.describe, description=description)
    return Route("GET", path, answer, dialect=ollama.ERRORS)


HEALTH = Route("GET", "/health", Endpoints.health, needs_key=False, quiet=True)
ROUTES = (
    Route("GET", "/", Endpoints.greeting, needs_key=False),
    HEALTH,
    Route("GET", "/health?deep=1", Endpoints.prove_step, scope="admin", quiet=True),
    Route(
        *("GET", "/metrics", Endpoints.metrics),
        scope="metrics",
        quiet=True,
        setting="enable_metrics",
    ),
    Route("GET", "/v1/models", Endpoints.models),
    Route("GET", f"/v1/models/{_ID}", Endpoints.model),
    generation_route(
        *("/v1/chat/completions", openai_requests.CHAT),
        capability="chat_completions",
        offered=lambda model: model.has_chat,
    ),
    generation_route(
        *("/v1/completions", openai_requests.COMPLETIONS),
        capability="completions",
        offered=lambda model: model.generates,
    ),
    generation_route(
        "/infill", INFILL, capability="infill", offered=lambda model: model.fills_gaps
    ),
    generation_route(
        "/v1/responses", RESPONSES, capability="responses", offered=lambda model: model.has_chat
    ),
    generation_route(
        "/v1/messages", MESSAGES, capability="messages", offered=lambda model: model.has_chat
    ),
    question_route("/v1/messages/count_tokens", COUNT_TOKENS),
    question_route("/tokenize", TOKENIZE_TEXT),
    question_route("/detokenize", DETOKENIZE_IDS),
    vector_route(
        *("/v1/embeddings", EMBEDDINGS), capability="embeddings", offered=lambda model: model.embeds
    ),
    vector_route("/v1/rerank", RERANK, capability="rerank", offered=lambda model: model.ranks),
    vector_route("/rerank", RERANK),
    vector_route("/v2/rerank", RERANK_COHERE),
    description_route("/api/version", ollama.version),
    description_route("/api/tags", ollama.tags),
    description_route("/api/ps", ollama.running),
    Route("POST", "/api/show", Endpoints.show_model, dialect=ollama.ERRORS),
)


def capabilities(model: ServedModel) -> dict[str, bool]:
    """Which of the routes' capabilities a model has."""
    return {route.capability: route.offered(model) for route in ROUTES if route.capability}


@dataclass(frozen=True)
class Path:
    """A path and its routes by method. endpoint: its index in Router.labels."""

    endpoint: int
    routes: dict[str, Route]

    @cached_property
    def needs_key(self) -> bool:
        return any(route.needs_key for route in self.routes.values())

    @cached_property
    def dialect(self) -> Errors:
        return next(iter(self.routes.values())).dialect

    @cached_property
    def is_quiet(self) -> bool:
        return all(route.quiet for route in self.routes.values())

    def route(self, method: str, path: str) -> Route:
        """The route of a method. Raises MethodError, which calls the path `path`."""
        route = self.routes.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(self.routes) + (", HEAD" if "GET" in self.routes else "")
            raise MethodError(f"{path} takes {allowed}", allowed)
        return route


class Router:
    """The paths of one server.

    Attributes:
        labels: of the endpoints in metrics, by their indices.
    """

    def __init__(self, config: ServeConfig, routes: Iterable[Route] = ROUTES):
        self._exact: dict[str, Path] = {}
        self._with_id: dict[str, Path] = {}
        for route in routes:
            if route.setting is None or getattr(config, route.setting):
                self._add(route)
        paths = {**self._exact, **{prefix + _ID: p for prefix, p in self._with_id.items()}}
        self.labels = sorted(paths, key=lambda path: paths[path].endpoint)
        assert len(self.labels) <= OTHER_ENDPOINT, f"more than {NUM_ENDPOINTS - 1} paths"

    def _add(self, route):
        table, path = self._exact, route.path
        if path.endswith(_ID):
            table, path = self._with_id, path.removesuffix(_ID)
        endpoint = len(self._exact) + len(self._with_id)
        table.setdefault(path, Path(endpoint, {})).routes[route.method] = route

    def find(self, path: str, query: str = "") -> Path | None:
        """The Path of a request's canonical path, or None. A query makes another of it only where
        a route names it."""
        found = self._exact.get(f"{path}?{query}") if query else None
        found = found or self._exact.get(path)
        if found is not None:
            return found
        return next((p for prefix, p in self._with_id.items() if path.startswith(prefix)), None)
