"""A completion's `echo`: the prompt before its text, and with `logprobs` the prompt's tokens.

Owns where each token of a prompt begins in the text that is shown of it.
"""

from marlin.engine.interface import ModelTokenizer
from marlin.engine.request import Request
from marlin.engine.stream import ShownToken
from marlin.server.api.dialect import Echo
from marlin.text.detokenizer import Detokenizer


def echo_of(
    content: str | list[int], scores: bool, request: Request, tokenizer: ModelTokenizer
) -> Echo:
    """What a choice begins with.

    Args:
        content: the prompt as its client gave it; a text is shown as it is, ids are spelled out.
        scores: show its tokens.
        request: with the prompt_logprobs.
    """
    token_ids = request.prompt_token_ids
    detokenizer = Detokenizer(tokenizer, continues=False, skip_special_tokens=False)
    pieces: list[str] = []
    if scores or not isinstance(content, str):
        pieces = [*map(detokenizer.push, token_ids), detokenizer.flush()]
    text = content if isinstance(content, str) else "".join(pieces)
    if not scores:
        return Echo(text)
    # What the tokenizer put before a text is not in it.
    begins = tokenizer.add_bos_token and token_ids[0] == tokenizer.bos_token_id
    if begins and isinstance(content, str) and not content.startswith(pieces[0]):
        pieces[0] = ""
    shown, at = [], 0
    for index, token_id in enumerate(token_ids):
        logprobs = request.prompt_logprobs[index - 1] if index else None
        # A normalized text may have other characters than the one that was given.
        shown.append(ShownToken(token_id, min(at, len(text)), logprobs))
        at += len(pieces[index])
    return Echo(text, shown)
