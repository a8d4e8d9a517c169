"""The dialects of /v1/rerank and /v2/rerank: a query's documents by their relevance.

Jina's and Cohere's, which ask in the same words; where they differ is in their errors. What a model
makes of a query and a document is text/rank_prompt.py's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from marlin.engine.served_model import ServedModel
from marlin.errors import MarlinError, NotServedError
from marlin.files.fields import type_name
from marlin.server.api.dialect import Text, VectorCall, VectorDialect
from marlin.server.api.fields import checked_text, refuse, request_fields, required
from marlin.server.api.names import PARAMETER, Names
from marlin.server.api.openai_answers import error_body, error_events, error_status
from marlin.server.http.limits import Limits
from marlin.text.rank_prompt import INSTRUCTION, rank_prompt

_NAMES = Names(
    PARAMETER,
    ("model", "query", "documents", "top_n", "return_documents", "instruction"),
    {"user": str, "priority": int},
    # These leave out a part of what was asked about.
    {
        **{"max_tokens_per_doc": (), "max_chunks_per_doc": (), "rank_fields": ()},
        **{"truncate_prompt_tokens": (), "truncate": (False, "NONE")},
    },
    {"documents": Names("field of a document", ("text",))},
)


@dataclass(frozen=True, slots=True)
class RerankCall(VectorCall):
    """Attributes:
    query, documents, instruction: as rank_prompt() takes them.
    top_n: results to give; None is all.
    returns_documents: results have their documents.
    """

    query: str
    documents: list[str]
    instruction: str
    top_n: int | None
    returns_documents: bool

    def texts(self, model: ServedModel) -> list[Text]:
        if not model.ranks:
            raise NotServedError(
                f"model {model.model_id!r} ranks no documents; --pooling rank says that one does "
                "which answers yes or no",
                param="model",
            )
        asked = [rank_prompt(self.query, text, self.instruction) for text in self.documents]
        return [Text(text, f"documents[{i}]", False) for i, text in enumerate(asked)]

    def item(self, index: int, vector: np.ndarray) -> float:
        return float(vector[0])

    def body(self, items: list[Any], name: str, key: str, num_tokens: int) -> dict[str, Any]:
        order = sorted(range(len(items)), key=lambda index: -items[index])  # stable: ties by index
        return {
            "id": f"rerank-{key}",
            "model": name,
            "results": [self._result(index, items[index]) for index in order[: self.top_n]],
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }

    def _result(self, index, score):
        result = {"index": index, "relevance_score": score}
        if self.returns_documents:
            result["document"] = {"text": self.documents[index]}
        return result


@dataclass(frozen=True, slots=True)
class Rerank:
    """A VectorDialect."""

    error_body: Callable[[MarlinError], dict[str, Any]]
    error_status = staticmethod(error_status)
    error_events = staticmethod(error_events)

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> RerankCall:
        _NAMES.check(body, ignored)
        model = checked_text(required(body, "model"), "model")
        query = checked_text(required(body, "query"), "query")
        documents = _parse_documents(required(body, "documents"), limits)
        given = request_fields(body)
        instruction = checked_text(given.text("instruction", INSTRUCTION), "instruction")
        top_n = given.count("top_n", None)
        returned = given.flag("return_documents", False)
        return RerankCall(model, (), query, documents, instruction, top_n, returned)


def _parse_documents(value, limits):
    if type(value) is not list:
        refuse("documents", f"must be an array of strings or objects, got {type_name(value)}")
    if not value:
        refuse("documents", "must not be empty")
    if len(value) > limits.num_inputs:
        refuse("documents", f"may have {limits.num_inputs} items, got {len(value)}")
    return [_parse_document(item, f"documents[{index}]") for index, item in enumerate(value)]


def _parse_document(value, param):
    if type(value) is dict:
        return checked_text(request_fields(value, f"{param}.").text("text"), f"{param}.text")
    return checked_text(value, param)


def _cohere_error(error: MarlinError) -> dict[str, Any]:
    """Cohere's SDKs read `message`."""
    return {"message": error.message, **error_body(error)}


RERANK: VectorDialect = Rerank(error_body)
RERANK_COHERE: VectorDialect = Rerank(_cohere_error)
