"""What a request must keep to, checked where it is taken: the one place, whoever asks."""

from collections.abc import Sequence
from typing import Protocol

from marlin.engine.sampling import MAX_LOGIT_BIASES
from marlin.errors import ContextLengthError, RequestError


class Bounds(Protocol):
    """An engine's.

    Attributes:
        max_context_tokens: prompt and output together.
        vocab_size: token ids below it may be in prompts and biases.
    """

    max_context_tokens: int
    vocab_size: int


def check_prompt(token_ids: Sequence[int], bounds: Bounds, name: str = "prompt") -> None:
    """Refuse a prompt that cannot be computed.

    Args:
        name: what errors call it.

    Raises:
        RequestError: it has no tokens, or one outside the vocabulary.
        ContextLengthError: it leaves no room for a token of output; the message has both numbers.
    """
    _check_any(token_ids, name)
    check_prompt_fits(len(token_ids), bounds.max_context_tokens)
    check_vocabulary(token_ids, bounds, name)


def check_text(token_ids: Sequence[int], bounds: Bounds, name: str = "input") -> None:
    """As check_prompt(), of a text that nothing follows, so that it may fill the context."""
    _check_any(token_ids, name)
    check_text_fits(len(token_ids), bounds.max_context_tokens, name)
    check_vocabulary(token_ids, bounds, name)


def _check_any(token_ids, name):
    if len(token_ids) == 0:
        raise RequestError(f"{name} has no tokens; at least 1 is needed", param=name)


def check_vocabulary(token_ids: Sequence[int], bounds: Bounds, name: str) -> None:
    """Refuse ids, of which there may be none, that are no tokens; RequestError."""
    if len(token_ids) and not 0 <= min(token_ids) <= max(token_ids) < bounds.vocab_size:
        index, token_id = next(
            (index, token_id)
            for index, token_id in enumerate(token_ids)
            if not 0 <= token_id < bounds.vocab_size
        )
        raise RequestError(
            f"{name}[{index}] is {token_id}, but the vocabulary has {bounds.vocab_size} tokens",
            param=f"{name}[{index}]",
        )


def check_prompt_fits(num_tokens: int, max_context_tokens: int, bound: str = "") -> None:
    """The length alone; bound: "at least " when there may be more tokens."""
    if num_tokens >= max_context_tokens:
        raise ContextLengthError(
            f"the prompt has {bound}{num_tokens} tokens; the context holds {max_context_tokens}, "
            "and at least 1 of them must be left for the answer",
            num_tokens,
            max_context_tokens - 1,
        )


def check_text_fits(
    num_tokens: int, max_context_tokens: int, name: str = "input", bound: str = ""
) -> None:
    """The length alone, as check_prompt_fits()."""
    if num_tokens > max_context_tokens:
        raise ContextLengthError(
            f"{name} has {bound}{num_tokens} tokens; a text may have {max_context_tokens}",
            num_tokens,
            max_context_tokens,
        )


def check_biases(logit_bias: Sequence[tuple[int, float]], bounds: Bounds) -> None:
    """Refuse too many (token id, bias) pairs, or one of no token; RequestError."""
    check_num_biases(len(logit_bias))
    for token_id, _ in logit_bias:
        if not 0 <= token_id < bounds.vocab_size:
            param = f"logit_bias.{token_id}"
            raise RequestError(
                f"{param} is no token; the vocabulary has {bounds.vocab_size}", param=param
            )


def check_num_biases(count: int) -> None:
    """Refuse more entries of logit_bias than an engine has room for."""
    if count > MAX_LOGIT_BIASES:
        raise RequestError(
            f"logit_bias may hold {MAX_LOGIT_BIASES} tokens, got {count}", param="logit_bias"
        )
