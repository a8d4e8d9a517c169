"""/tokenize and /detokenize, in the shapes of llama-server and of vLLM.

A request says which it means by the name of its text: `content` is llama-server's, `prompt` and
`messages` are vLLM's. Owns the fields and answers of both; generates nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from marlin.engine.bounds import check_prompt, check_prompt_fits
from marlin.engine.served_model import ServedModel
from marlin.server.api.dialect import ChatPrompt
from marlin.server.api.fields import checked_text, refuse, request_fields, required
from marlin.server.api.names import MESSAGE, PARAMETER, TOOL, Names
from marlin.server.api.openai_answers import error_body, error_events, error_status
from marlin.server.api.openai_logprobs import token_text
from marlin.server.api.openai_messages import parse_messages
from marlin.server.api.openai_requests import parse_token_ids
from marlin.server.api.openai_tools import parse_tools
from marlin.server.api.template_options import parse_conversation
from marlin.server.http.limits import Limits

_CONTENT = Names(PARAMETER, ("model", "content", "add_special", "parse_special", "with_pieces"))
_PROMPT = Names(
    PARAMETER,
    (
        *("model", "prompt", "messages", "add_special_tokens", "return_token_strs", "tools"),
        *("add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
    ),
    inside={"messages": MESSAGE, "tools": TOOL},
)
_TOKENS = Names(PARAMETER, ("model", "tokens"))


@dataclass(frozen=True, slots=True)
class _Text:
    """A text as it stands; adds: special tokens around it; parses: those that it spells out."""

    content: str
    adds: bool
    parses: bool

    def token_ids(self, model, still_wanted, client):
        kinds = {"add_special_tokens": self.adds, "parse_special": self.parses}
        return model.encode_text(self.content, still_wanted, client, **kinds)


@dataclass(frozen=True, slots=True)
class _Chat:
    prompt: ChatPrompt

    def token_ids(self, model, still_wanted, client):
        return self.prompt.encode(model, still_wanted, client).token_ids


@dataclass(frozen=True, slots=True)
class TokenizeCall:
    """A dialect.Question; the answer is vLLM's unless is_list, and `pieces` shows the tokens'
    texts."""

    model: str | None
    text: _Text | _Chat
    is_list: bool
    pieces: bool
    skipped: tuple[str, ...] = ()

    def told(
        self, model: ServedModel, still_wanted: Callable[[], None], client: str
    ) -> dict[str, Any]:
        token_ids = self.text.token_ids(model, still_wanted, client)
        check_prompt_fits(len(token_ids), model.engine.max_context_tokens)
        if self.is_list:
            return {"tokens": _pieces(model, token_ids) if self.pieces else token_ids}
        texts = [token_text(model.tokenizer, id) for id in token_ids] if self.pieces else None
        most = model.engine.max_context_tokens
        told = {"count": len(token_ids), "max_model_len": most, "tokens": token_ids}
        return told | {"token_strs": texts}


def _pieces(model, token_ids):
    """Texts of tokens, of those that are part of a character the bytes."""
    pieces: list[dict[str, Any]] = []
    for id in token_ids:
        data = model.tokenizer.token_bytes(id)
        try:
            pieces.append({"id": id, "piece": data.decode()})
        except UnicodeDecodeError:
            pieces.append({"id": id, "piece": list(data)})
    return pieces


@dataclass(frozen=True, slots=True)
class DetokenizeCall:
    """A dialect.Question, answered by both names of the text."""

    model: str | None
    token_ids: list[int]
    skipped: tuple[str, ...] = ()

    def told(
        self, model: ServedModel, still_wanted: Callable[[], None], client: str
    ) -> dict[str, Any]:
        if self.token_ids:
            check_prompt(self.token_ids, model.engine, "tokens")
        text = model.tokenizer.decode(self.token_ids, skip_special_tokens=False)
        return {"content": text, "prompt": text}


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """Parses the requests of an endpoint; its errors are the OpenAI API's."""

    parse: Callable[..., TokenizeCall | DetokenizeCall]
    error_status = staticmethod(error_status)
    error_body = staticmethod(error_body)
    error_events = staticmethod(error_events)


def _parse_tokenize(
    body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None = None
) -> TokenizeCall:
    fields = request_fields(body)
    if "content" in body:
        _CONTENT.check(body, ignored)
        adds, parses = fields.flag("add_special", False), fields.flag("parse_special", True)
        text = _Text(checked_text(body["content"], "content"), adds, parses)
        return TokenizeCall(_model(body), text, True, fields.flag("with_pieces", False))
    _PROMPT.check(body, ignored)
    pieces = fields.flag("return_token_strs", False)
    if "messages" not in body:
        prompt = checked_text(required(body, "prompt"), "prompt")
        adds = fields.flag("add_special_tokens", True)
        return TokenizeCall(_model(body), _Text(prompt, adds, True), False, pieces)
    if "prompt" in body:
        refuse("prompt", "and messages both say what the text is")
    if fields.flag("add_special_tokens", False):
        refuse("add_special_tokens", "must be false: the model's chat template writes its own")
    conversation = parse_conversation(body, parse_messages(body["messages"]), parse_tools(body))
    return TokenizeCall(_model(body), _Chat(ChatPrompt(conversation)), False, pieces)


def _parse_detokenize(
    body: dict[str, Any], limits: Limits, max_tokens: int, ignored: list[str] | None = None
) -> DetokenizeCall:
    _TOKENS.check(body, ignored)
    token_ids = request_fields(body).of_type(list, "tokens")
    return DetokenizeCall(_model(body), parse_token_ids(token_ids, "tokens"))


def _model(body):
    return None if body.get("model") is None else checked_text(body["model"], "model")


TOKENIZE_TEXT, DETOKENIZE_IDS = Tokenizing(_parse_tokenize), Tokenizing(_parse_detokenize)
