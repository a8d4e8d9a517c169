"""The dialect of /v1/embeddings: OpenAI's, its requests and its answers.

How texts become vectors is the engine's and the model's; how many tokens one may have, too.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from marlin.engine.pooler import unit
from marlin.engine.served_model import ServedModel
from marlin.errors import NotServedError
from marlin.files.fields import type_name
from marlin.server.api.dialect import Text, VectorCall, VectorDialect
from marlin.server.api.encoding import Encoded, encode
from marlin.server.api.fields import checked_text, refuse, request_fields, required
from marlin.server.api.names import PARAMETER, Names
from marlin.server.api.openai_answers import error_body, error_events, error_status
from marlin.server.api.openai_requests import parse_token_ids
from marlin.server.http.limits import Limits

FLOAT, BASE64 = "float", "base64"
_NAMES = Names(
    PARAMETER,
    ("model", "input", "encoding_format", "dimensions"),
    {"user": str},
    # What clients of other servers may say where it asks for what is done.
    {
        **{"truncate_prompt_tokens": (), "truncate": (False, "NONE"), "normalize": (True,)},
        **{"add_special_tokens": (True,), "normalized": (True,), "embedding_type": ("float",)},
    },
)


@dataclass(frozen=True, slots=True)
class EmbeddingsCall(VectorCall):
    """Attributes:
    inputs: to be embedded.
    encoding: FLOAT or BASE64, of little-endian float32.
    dimensions: the first values to keep, made of length 1 again; None is all.
    """

    inputs: list[Text]
    encoding: str
    dimensions: int | None

    def texts(self, model: ServedModel) -> list[Text]:
        if not model.embeds:
            raise NotServedError(
                f"model {model.model_id!r} makes no embeddings: its files do not say how; "
                "--pooling last, mean or cls does",
                param="model",
            )
        if self.dimensions is not None and self.dimensions > model.vector_dim:
            given = f"from 1 to {model.vector_dim}, as many as the model has"
            refuse("dimensions", f"must be an integer {given}, got {self.dimensions}")
        return self.inputs

    def cut(self, vector: np.ndarray) -> np.ndarray:
        """A vector of as many dimensions as were asked for."""
        if self.dimensions is None or self.dimensions >= len(vector):
            return vector
        return unit(vector[: self.dimensions].astype(np.float64)).astype(np.float32)

    def item(self, index: int, vector: np.ndarray) -> Encoded:
        head = b'{"object":"embedding","index":%d,"embedding":' % index
        return Encoded(head + _encoded(self.cut(vector), self.encoding) + b"}")

    def body(self, items: list[Any], name: str, key: str, num_tokens: int) -> dict[str, Any]:
        return {
            "object": "list",
            "data": Encoded(b"[%b]" % b",".join(item.data for item in items)),
            "model": name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }


def _encoded(vector, encoding):
    if encoding == BASE64:
        return encode(base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"))
    # Nine digits tell every float32 from its neighbours.
    return b"[%b]" % ",".join(map("{:.9g}".format, vector.tolist())).encode("ascii")


class Embeddings:
    """A VectorDialect."""

    error_status = staticmethod(error_status)
    error_body = staticmethod(error_body)
    error_events = staticmethod(error_events)

    def parse(
        self, body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None
    ) -> EmbeddingsCall:
        _NAMES.check(body, ignored)
        model = checked_text(required(body, "model"), "model")
        inputs = _parse_inputs(required(body, "input"), limits)
        given = request_fields(body)
        encoding = given.choice("encoding_format", (FLOAT, BASE64), FLOAT)
        return EmbeddingsCall(model, (), inputs, encoding, given.count("dimensions", None))


def _parse_inputs(value, limits):
    if type(value) is list:
        if not value:
            refuse("input", "must not be empty")
        if type(value[0]) in (str, list):
            return _parse_array(value, "input", limits)
    return [_parse_input(value, "input")]


def _parse_array(values, name, limits):
    if len(values) > limits.num_inputs:
        refuse(name, f"may have {limits.num_inputs} items, got {len(values)}")
    return [_parse_input(value, f"{name}[{index}]") for index, value in enumerate(values)]


def _parse_input(value, param):
    if type(value) is list:
        if not value:
            refuse(param, "must not be empty")
        return Text(parse_token_ids(value, param), param)
    if type(value) is not str:
        got = type_name(value)
        refuse(param, f"must be a string or an array of token ids, got {got}")
    return Text(checked_text(value, param), param)


EMBEDDINGS: VectorDialect = Embeddings()
