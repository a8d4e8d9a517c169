"""The tokenizer of a Hugging Face folder: which of its files says what.

Owns tokenizer.json's companions, and reads them as `transformers` does (docs/formats.md has the
table); refuses to know what a token stands for (tokenizer.py) and GGUF (gguf_tokenizer.py).
"""

import base64
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import AddedToken

from marlin.errors import ModelFileError
from marlin.files.fields import Fields, file_fields
from marlin.files.regular import read_regular
from marlin.files.snapshot import TEMPLATE_FOLDER
from marlin.files.strict_json import MAX_FILE_BYTES, parse_json_object, read_json_object
from marlin.text.pretokenizer import UnknownPatternError, make_safe
from marlin.text.special_tokens import NAMES, declared_token, declared_tokens
from marlin.text.tokenizer import DEFAULT_TEMPLATE, TOOL_TEMPLATE, Tokenizer, set_template

# Published chat templates have up to 30 kB.
MAX_TEMPLATE_BYTES = 1 << 20
# Token ids are indices of an embedding; no vocabulary comes near.
MAX_TOKEN_ID = 1 << 31

# How many times longer a text may become by all steps of a normalizer or decoder together, and how
# long a piece or word may be where a text costs as many tries for each character. Published ones
# replace a few characters by a few, and have pieces of 16, words of 100.
MAX_GROWTH, MAX_TRIES = 64, 512

# Letters, digits, blanks and lines, and characters of two to four bytes: what any chat may hold.
_TRIAL_TEXT = "Hello, world! 1 + 1 = 2\n\tNa\u00efve \u4f60\u597d \U0001f642"


@dataclass
class _Declared:
    """What the companions declare.

    Attributes:
        named: {name: token}, bos_token to mask_token first, then a model's own.
        listed: {id: token} of tokens that are said to have this id.
        extra: further special tokens.
    """

    named: dict[str, AddedToken] = field(default_factory=dict)
    listed: dict[int, AddedToken] = field(default_factory=dict)
    extra: list[AddedToken] = field(default_factory=list)


def load_tokenizer(
    folder: str | os.PathLike, *, allow_unknown_pretokenizer: bool = False
) -> Tokenizer:
    """The tokenizer of a Hugging Face or native model folder.

    Reads tokenizer.json, and where present tokenizer_config.json, special_tokens_map.json,
    added_tokens.json, the files of chat templates, generation_config.json and config.json.

    Args:
        allow_unknown_pretokenizer: take regular expressions that are not among the published ones.

    Raises:
        ModelFileError: tokenizer.json is missing or fails on ordinary text, or a file is not what
            its name says, or two of them contradict each other.
    """
    folder = os.fspath(folder)
    path = os.path.join(folder, "tokenizer.json")
    backend, pieces = _load_backend(path, allow_unknown_pretokenizer)
    config = _fields(folder, "tokenizer_config.json")
    declared = _declared(folder, config)
    _add(backend, declared, config.path)
    tokens = {name: token.content for name, token in declared.named.items()}
    ids = {name: _model_ids(folder, f"{name}_id") for name in ("bos_token", "eos_token")}
    if not config.values:
        # Without tokenizer_config.json a folder names its tokens by their ids alone.
        for name in ids.keys() - tokens.keys():
            if ids[name] and (text := backend.id_to_token(min(ids[name]))) is not None:
                tokens[name] = text
                backend.add_special_tokens([text])
    _apply_flags(backend, config, tokens)
    _check_generation(_fields(folder, "generation_config.json"))
    templates = _chat_templates(folder, config)
    with _tokenizer_faults(path):
        tokenizer = Tokenizer(
            backend,
            pieces=pieces,
            named_tokens=tokens,
            eos_token_ids=ids["eos_token"],
            chat_template=templates.get(DEFAULT_TEMPLATE),
            tool_template=templates.get(TOOL_TEMPLATE),
        )
        tokenizer.encode(_TRIAL_TEXT)
        if not tokenizer.byte_exact:
            tokenizer.decode(list(range(tokenizer.vocab_size)), skip_special_tokens=False)
    return tokenizer


def _fields(folder: str, name: str) -> Fields:
    path = os.path.join(folder, name)
    return file_fields(path, read_json_object(path, {}))


def _load_backend(
    path: str, allow_unknown: bool
) -> tuple[tokenizers.Tokenizer, dict[str, int] | None]:
    """The tokenizer that a file describes, and what its model's pieces are called, of BPE."""
    source = read_regular(path, MAX_FILE_BYTES, None)
    if source is None:
        raise ModelFileError(path, "file is missing; the folder needs a tokenizer.json")
    # The library takes the last of two equal keys; here a file has one meaning only.
    description = parse_json_object(path, source)
    if _make_safe(path, description, allow_unknown):
        source = json.dumps(description).encode()
    _check_costs(file_fields(path, description))
    added = file_fields(path, description).elements("added_tokens")
    with _tokenizer_faults(path):
        backend = tokenizers.Tokenizer.from_buffer(source)
    for place in added.values:
        token = added.object(place)
        _check_id(backend, path, token.text("content"), token.count("id", minimum=0))
    pieces = description["model"].get("vocab")  # an object in all whose pieces anybody asks for
    return backend, pieces if isinstance(pieces, dict) else None


def _make_safe(path: str, description: dict[str, Any], allow_unknown: bool) -> bool:
    is_changed = False
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        try:
            is_changed |= make_safe({part: description.get(part)}, allow_unknown)
        except UnknownPatternError as error:
            message = f"the regular expression {str(error)!r:.300} of its {part} is not known here"
            warning = "a hostile one can take the server for minutes with a line of text"
            option = "--allow-unknown-pretokenizer reads it"
            raise ModelFileError(path, f"{message}, and {warning}; {option}") from None
    return is_changed


def _check_costs(fields: Fields) -> None:
    """Refuse what takes time or memory out of proportion to a text."""
    for part in ("normalizer", "decoder"):
        if math.prod(_growths(fields.raw(part))) > MAX_GROWTH:
            message = f"its {part} makes texts more than {MAX_GROWTH} times longer"
            raise ModelFileError(fields.path, message)
    model: Any = fields.raw("model")
    if isinstance(model, dict) and model.get("type") in ("Unigram", "WordPiece"):
        vocabulary, longest = model.get("vocab"), model.get("max_input_chars_per_word")
        if isinstance(vocabulary, list):
            pieces = (entry[0] for entry in vocabulary if isinstance(entry, list) and entry)
            longest = max((len(piece) for piece in pieces if isinstance(piece, str)), default=0)
        if isinstance(longest, int) and longest > MAX_TRIES:
            message = f"its model tries up to {longest} characters at each; {MAX_TRIES} are allowed"
            raise ModelFileError(fields.path, message)


def _growths(step: Any) -> Iterator[float]:
    """How many times longer each of a component's steps makes a text at most."""
    if isinstance(step, list):
        for inner in step:
            yield from _growths(inner)
    elif isinstance(step, dict):
        found = step.get("pattern")
        pattern = found.get("String") if isinstance(found, dict) else None
        shortest = len(pattern) if isinstance(pattern, str) else 1
        for made in (step.get("content"), step.get("prepend")):
            if isinstance(made, str):
                yield max(1.0, len(made) / max(1, shortest))
        chars = step.get("precompiled_charsmap")
        if isinstance(chars, str):
            # A table, and texts that end with a zero byte: what characters become.
            with suppress(ValueError):  # the library says what is wrong with it
                data = base64.b64decode(chars + "==")
                texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
                yield max(1.0, *map(len, texts))
        yield from _growths(step.get("normalizers") or step.get("decoders"))


def _check_id(backend: tokenizers.Tokenizer, path: str, text: str, id: int) -> None:
    found = backend.token_to_id(text)
    if found != id:
        message = f"token {text!r:.80} is said to be {id}, and the vocabulary makes it {found}"
        raise ModelFileError(path, message)


def _declared(folder: str, config: Fields) -> _Declared:
    """The tokens of tokenizer_config.json, or where that lists none by id, of the older files."""
    found = _Declared()
    listed = config.section("added_tokens_decoder")
    # Where transformers finds that list, it does not look at the older files.
    tokens = file_fields(config.path, {}) if listed else _fields(folder, "special_tokens_map.json")
    own = [
        name
        for source in (config, tokens)
        for name, value in source.values.items()
        if name.endswith("_token") and name not in NAMES and _is_token(value)
    ]
    for name in (*NAMES, *own):
        is_mapped = tokens.raw(name) is not None
        token = declared_token(tokens, name, True) if is_mapped else declared_token(config, name)
        if token is not None:
            found.named[name] = token
    _read_extra(found, config, tokens)
    if listed:
        for id in listed.values:
            if (token := declared_token(listed, id)) is not None:
                found.listed[_token_id(listed, id)] = token
    else:
        _read_added_tokens(found, _fields(folder, "added_tokens.json"))
    return found


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "content" in value)


def _read_extra(found: _Declared, config: Fields, tokens: Fields) -> None:
    """extra_special_tokens, and additional_special_tokens where nothing says the newer name."""
    newer, older = "extra_special_tokens", "additional_special_tokens"
    is_said = False
    for fields in (config, tokens):
        if isinstance(fields.raw(newer), dict):
            section = fields.object(newer)
            for name in section.values:
                if (token := declared_token(section, name, True)) is not None:
                    found.named[name] = token
        else:
            found.extra += declared_tokens(fields, newer)
            is_said |= fields.raw(newer) is not None
        if not found.extra and (fields is config or not is_said):
            found.extra += declared_tokens(fields, older)
            is_said |= fields.raw(older) is not None


def _read_added_tokens(found: _Declared, fields: Fields) -> None:
    special = {token.content for token in (*found.named.values(), *found.extra)}
    for text in fields.values:
        is_special = text in special
        token = AddedToken(text, normalized=not is_special, special=is_special)
        found.listed[fields.count(text, minimum=0, maximum=MAX_TOKEN_ID)] = token


def _token_id(fields: Fields, name: str) -> int:
    """A key that is a token id."""
    if not (name.isascii() and name.isdecimal() and len(name) <= len(str(MAX_TOKEN_ID))):
        fields.fail(name, "named by a token id")
    return int(name)


def _add(backend: tokenizers.Tokenizer, declared: _Declared, path: str) -> None:
    """Have the declared tokens read as such, in the order of transformers: new ones take ids."""
    tokens = [declared.listed[id] for id in sorted(declared.listed)]
    known = {token.content for token in (*backend.get_added_tokens_decoder().values(), *tokens)}
    for token in (*declared.named.values(), *declared.extra):
        if token.content not in known and token not in tokens:
            tokens.append(token)
        elif token in tokens and [t for t in tokens if t.content == token.content][-1] != token:
            # Which one counts depends in transformers on how each was spelled.
            message = f"token {token.content!r:.80} is declared with two sets of flags in turns"
            raise ModelFileError(path, message)
    named = {token.content for token in declared.named.values()}
    for token in tokens:
        token.special |= token.content in named
    backend.add_tokens(tokens)
    for id, token in declared.listed.items():
        _check_id(backend, path, token.content, id)


# Keys of generation_config.json that change a text in ways that no request can ask for here, and
# the values that change nothing. Defaults of sampling are each request's own.
_NEUTRAL = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale"), (1,)),
    **dict.fromkeys(
        ("no_repeat_ngram_size", "min_length", "min_new_tokens", "penalty_alpha"), (0,)
    ),
    **dict.fromkeys(
        ("bad_words_ids", "force_words_ids", "stop_strings", "sequence_bias"), ([], {})
    ),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"), ()),
    **dict.fromkeys(("dola_layers", "watermarking_config"), ()),
    "exponential_decay_length_penalty": (),
}


def _check_generation(fields: Fields) -> None:
    for name, neutral in _NEUTRAL.items():
        value = fields.raw(name)
        if value is not None and value not in neutral:
            others = " or ".join(map(repr, neutral))
            fields.fail(name, f"nothing{others and ' or '}{others}: it is not supported")


def _model_ids(folder: str, name: str) -> set[int]:
    """The token ids that the model's configs hold under a name."""
    sources = [_fields(folder, file) for file in ("generation_config.json", "config.json")]
    return {id for fields in sources for id in fields.counts(name, 0, MAX_TOKEN_ID)}


def _apply_flags(backend: tokenizers.Tokenizer, config: Fields, tokens: dict[str, str]) -> None:
    """tokenizer_config.json's own flags, where it has any, overrule tokenizer.json's template."""
    backend.encode_special_tokens = config.flag("split_special_tokens", False)
    flags = {name: config.flag(f"add_{name}", None) for name in ("bos_token", "eos_token")}
    if set(flags.values()) == {None}:
        return
    chosen = []
    for name, wanted in flags.items():
        text = tokens.get(name) if wanted else None
        id = None if text is None else backend.token_to_id(text)
        chosen.append(None if id is None else (id, text))
    set_template(backend, *chosen)


@contextmanager
def _tokenizer_faults(path: str) -> Iterator[None]:
    """Make a ModelFileError of what the library raises for a file that it cannot parse or use.

    That is a bare Exception (ValueError in some versions), or a panic, which is a BaseException.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelFileError(path, f"is not a tokenizer: {error}") from None
        raise


def _chat_templates(folder: str, config: Fields) -> dict[str, str]:
    """{name: template}: of files of their own first, as newer folders have them."""
    read = {DEFAULT_TEMPLATE: _read_template(os.path.join(folder, "chat_template.jinja"))}
    others = os.path.join(folder, TEMPLATE_FOLDER)
    for name in sorted(os.listdir(others)) if os.path.isdir(others) else ():
        if name.endswith(".jinja"):
            read[name.removesuffix(".jinja")] = _read_template(os.path.join(others, name))
    found = {name: template for name, template in read.items() if template is not None}
    if not found:
        older = _fields(folder, "chat_template.json")
        found = _config_templates(config) or _config_templates(older)
    if found and DEFAULT_TEMPLATE not in found:
        names = ", ".join(map(repr, found))
        message = f"there are the chat templates {names:.200}, and none is the default"
        raise ModelFileError(folder, message)
    return found


def _config_templates(fields: Fields) -> dict[str, str]:
    """{name: template}: of a string, of an object, or of a list of {name, template}."""
    value: Any = fields.raw("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE: value}
    if isinstance(value, dict):
        section = fields.object("chat_template")
        return {name: section.text(name) for name in value}
    items = fields.elements("chat_template")
    entries = [items.object(place) for place in items.values]
    return {entry.text("name"): entry.text("template") for entry in entries}


def _read_template(path: str) -> str | None:
    source = read_regular(path, MAX_TEMPLATE_BYTES, None)
    if source is None:
        return None
    try:
        # As reading in text mode ends lines.
        return source.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ModelFileError(path, f"is not UTF-8 at byte {error.start}") from None
