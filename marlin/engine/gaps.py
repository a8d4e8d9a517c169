"""Prompts for gaps in a text: put together of ids, so that no text around one spells a mark."""

from collections.abc import Callable

from marlin.engine.bounds import check_prompt
from marlin.engine.served_model import ServedModel
from marlin.errors import RequestError
from marlin.text.gaps import Gap


def encode_gap(
    model: ServedModel,
    gap: Gap,
    name: str,
    still_wanted: Callable[[], None],
    client: str = "",
) -> list[int]:
    """Prompt token ids of a gap to be filled; name: of the field that asks for it in errors, the
    rest as ServedModel.encode_prompt()."""
    tokenizer = model.tokenizer
    marks = tokenizer.fill_tokens
    if marks is None:
        raise RequestError(
            f"{name} is not supported by model {model.model_id!r}: its tokenizer has no tokens "
            "that mark a gap (fill-in-the-middle)",
            param=name,
        )
    token_ids: list[int] = []
    if tokenizer.add_bos_token and tokenizer.bos_token_id is not None:
        token_ids.append(tokenizer.bos_token_id)
    for text, ids in gap.parts(marks):
        token_ids += ids
        token_ids += _encode_within(model, text, still_wanted, client) if text else []
    check_prompt(token_ids, model.engine)
    return token_ids


def _encode_within(model, text, still_wanted, client):
    """A text's ids that is none of its own: no blank is put before it, and what it spells is
    not special."""
    kinds = {"add_special_tokens": False, "parse_special": False}
    if not model.tokenizer.strips_leading_space:
        return model.encode_text(text, still_wanted, client, **kinds)
    # No piece of such a vocabulary has a line end and more.
    before = model.tokenizer.encode("\n", **kinds)
    token_ids = model.encode_text("\n" + text, still_wanted, client, **kinds)
    if token_ids[: len(before)] == before:
        return token_ids[len(before) :]
    return model.encode_text(text, still_wanted, client, **kinds)
