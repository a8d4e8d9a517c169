"""Four read-only endpoints of Ollama's API, by which some editors list models and their abilities.

They then talk to /v1. Owns what is told and the shape of errors; nothing here generates, loads or
deletes. The version is that of the API that these answers follow, which clients compare with what
they need.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from marlin.engine.served_model import ServedModel
from marlin.errors import MarlinError, MissingFieldError
from marlin.server.api.encoding import event
from marlin.server.api.fields import checked_text
from marlin.server.api.names import PARAMETER, Names
from marlin.server.api.openai_answers import fingerprint
from marlin.server.http.limits import Limits

VERSION = "0.12.6"
_TAG = ":latest"  # what that API puts behind a name without a tag
_ARCHITECTURE = "marlin"
_SHOW = Names(PARAMETER, ("model", "name"), {"verbose": bool, "system": str})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is served.

    Attributes:
        model: None when none is loaded.
        names: that it has.
        created: when it was loaded, seconds since the epoch.
    """

    model: ServedModel | None
    names: tuple[str, ...]
    created: int


class Errors:
    """dialect.Errors of this API."""

    def error_status(self, error: MarlinError) -> int:
        return error.status

    def error_body(self, error: MarlinError) -> dict[str, Any]:
        return {"error": error.message}

    def error_events(self, error: MarlinError) -> bytes:
        return event(self.error_body(error))


ERRORS = Errors()


def version(_facts: Facts) -> dict[str, Any]:
    """/api/version"""
    return {"version": VERSION}


def tags(facts: Facts) -> dict[str, Any]:
    """/api/tags: the models that there are."""
    return {"models": [_card(facts, name) for name in _names(facts)]}


def running(facts: Facts) -> dict[str, Any]:
    """/api/ps: the same, since what is served is loaded, and stays."""
    more = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": _context(facts)}
    return {"models": [_card(facts, name) | more for name in _names(facts)]}


@dataclass(frozen=True, slots=True)
class ShowCall:
    """A request to /api/show.

    Attributes:
        model: the name it gives, without the tag that stands for none.
        skipped: as dialect.Call's.
    """

    model: str
    skipped: tuple[str, ...] = ()


class Show(Errors):
    """Parses such requests."""

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> ShowCall:
        """As dialect.Dialect's."""
        _SHOW.check(body, ignored)
        given = "name" if body.get("model") is None and "name" in body else "model"
        if body.get(given) is None:
            raise MissingFieldError("model is required", param="model")
        return ShowCall(checked_text(body[given], given).removesuffix(_TAG))


SHOW = Show()


def show(facts: Facts, model: ServedModel) -> dict[str, Any]:
    """/api/show: what a model can do."""
    offered = {
        "completion": model.generates,
        "tools": model.has_tools,
        "insert": model.fills_gaps,
        "embedding": model.embeds,
    }
    return {
        "modelfile": "",
        "parameters": "",
        "template": model.tokenizer.chat_template or "",
        "details": _details(model),
        "model_info": {
            "general.architecture": _ARCHITECTURE,
            f"{_ARCHITECTURE}.context_length": _context(facts),
            f"{_ARCHITECTURE}.block_count": model.num_layers,
            f"{_ARCHITECTURE}.vocab_size": model.tokenizer.vocab_size,
        },
        "capabilities": [name for name, is_offered in offered.items() if is_offered],
        "modified_at": _time(facts),
    }


def _names(facts):
    return () if facts.model is None else facts.names


def _card(facts, name):
    return {
        "name": name,
        "model": name,
        "modified_at": _time(facts),
        "size": 0,
        "digest": hashlib.sha256(fingerprint(facts.model).encode()).hexdigest(),
        "details": _details(facts.model),
    }


def _details(model):
    return {
        "parent_model": "",
        "format": model.format,
        "family": _ARCHITECTURE,
        "families": [_ARCHITECTURE],
        "parameter_size": "",
        "quantization_level": "",
    }


def _context(facts):
    return 0 if facts.model is None else facts.model.engine.max_context_tokens


def _time(facts):
    return datetime.fromtimestamp(facts.created, timezone.utc).isoformat().replace("+00:00", "Z")
