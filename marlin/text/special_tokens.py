"""Tokens that steer a model: those that end its turn, and those that a folder declares beside its
vocabulary.

Knows what files may say of a token; refuses to know which file says it.
"""

from collections.abc import Callable

from tokenizers import AddedToken

from marlin.files.fields import Fields

# What chat formats end a turn with, so that a model stops whether or not its files name the token:
# they have room for one, base models of the same vocabulary end with another, and a model is tuned
# on more than one format. A vocabulary that holds one of these holds it for this use.
END_OF_TURN = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
    *("<end_of_turn>", "<turn|>", "<eos>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|return|>", "<|call|>", "<|calls|>"),
    *("<|flush|>", "[e~[", "<|observation|>", "<|tool_response>"),
    # Of code models, where a file or what fills a gap is over.
    *("<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "\u2581<EOT>"),
)
# These are text as well, in a vocabulary that has them as ordinary tokens.
END_OF_TURN_IF_SPECIAL = ("</s>", "[EOS]")
# In these formats <|end|> ends a message, and a turn has several.
_SEVERAL_MESSAGES = ("<|call|>", "<|calls|>")

NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def end_of_turn_ids(
    token_to_id: Callable[[str], int | None], is_special: Callable[[int], bool]
) -> set[int]:
    """Ids of the tokens of a vocabulary that end a turn by their text."""
    found = {text: token_to_id(text) for text in (*END_OF_TURN, *END_OF_TURN_IF_SPECIAL)}
    for text in END_OF_TURN_IF_SPECIAL:
        id = found[text]
        if id is not None and not is_special(id):
            found[text] = None
    if any(found[text] is not None for text in _SEVERAL_MESSAGES):
        found["<|end|>"] = None
    return {id for id in found.values() if id is not None}


def declared_token(fields: Fields, name: str, special: bool | None = None) -> AddedToken | None:
    """A token as a file spells it: its text, which is special, or an object with `content` and
    flags.

    Args:
        special: what an object counts as, whatever it says; None is what it says, or not.

    Returns:
        the token, or None where the field is absent.

    Raises:
        what fields raise: neither of the two, a flag that is not true or false, or text with half
        a character.
    """
    value = fields.raw(name)
    if value is None:
        return None
    if isinstance(value, str):
        _check_text(fields, name, value)
        return AddedToken(value, normalized=False, special=True)
    if not isinstance(value, dict):
        fields.fail(name, "a string, or an object with the token's content")
    section = fields.object(name)
    content = section.text("content")
    _check_text(section, "content", content)
    flags = {flag: section.flag(flag, None) for flag in _FLAGS}
    flags["special"] = bool(flags["special"]) if special is None else special
    said = {flag: value for flag, value in flags.items() if value is not None}
    return AddedToken(content, **said)


def declared_tokens(fields: Fields, name: str) -> list[AddedToken]:
    """A list of tokens, each as declared_token() reads it; [] where the field is absent."""
    items = fields.elements(name)
    found = [declared_token(items, place) for place in items.values]
    return [token for token in found if token is not None]


def _check_text(fields: Fields, name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        fields.fail(name, "text; half of a character is in it")
