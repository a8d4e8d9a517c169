"""Log-probabilities in the OpenAI API: the fields that ask for them, and the shapes that show them.

The numbers come from the engine as they are; a token's text comes from its bytes.
"""

from marlin.engine.sampling import MAX_LOGPROBS
from marlin.server.api.fields import refuse, request_fields

MAX_COMPLETION_LOGPROBS = 5  # what the API allows; chat allows MAX_LOGPROBS
# Stands for everything below it, down to a probability of 0, whose logarithm JSON cannot hold.
LOWEST_LOGPROB = -9999.0


def parse_chat(body):
    """SamplingParams.num_logprobs of a chat request's `logprobs` and `top_logprobs`."""
    given = request_fields(body)
    wanted = given.flag("logprobs", False)
    num_top = given.count("top_logprobs", 0, minimum=0, maximum=MAX_LOGPROBS)
    if num_top and not wanted:
        refuse("top_logprobs", "needs logprobs to be true")
    return num_top if wanted else None


def parse_completion(body):
    """SamplingParams.num_logprobs of a completion request's `logprobs`."""
    maximum = MAX_COMPLETION_LOGPROBS
    return request_fields(body).count("logprobs", None, minimum=0, maximum=maximum)


def chat_shape(tokenizer, tokens):
    """The `logprobs` object of a chat choice.

    Args:
        tokens: engine.stream.ShownTokens.
    """
    content = [
        _chat_entry(tokenizer, token.token_id, token.logprobs.logprob)
        | {"top_logprobs": [_chat_entry(tokenizer, *pair) for pair in token.logprobs.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_shape(tokenizer, tokens):
    """The `logprobs` object of a completion choice; arguments as chat_shape's.

    A token that was sampled is in its `top_logprobs` whether or not it is among the likeliest, so
    that there may be one more of them than was asked for.
    """
    return {
        "tokens": [token_text(tokenizer, token.token_id) for token in tokens],
        "token_logprobs": [token.logprobs and _finite(token.logprobs.logprob) for token in tokens],
        "top_logprobs": [token.logprobs and _top_by_text(tokenizer, token) for token in tokens],
        "text_offset": [token.text_offset for token in tokens],
    }


def token_text(tokenizer, token_id):
    """A token by itself as text, or as `bytes:` and escapes where it is part of a character."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _chat_entry(tokenizer, token_id, logprob):
    return {
        "token": token_text(tokenizer, token_id),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _top_by_text(tokenizer, token):
    top = {}
    for token_id, logprob in (*token.logprobs.top, (token.token_id, token.logprobs.logprob)):
        # Two ids may spell the same text; the likelier one, which comes first, is shown.
        top.setdefault(token_text(tokenizer, token_id), _finite(logprob))
    return top


def _finite(logprob):
    return max(LOWEST_LOGPROB, logprob)  # in this order NaN becomes the lowest, too
