"""Builds a Tokenizer from the metadata of a GGUF file.

Owns the meaning of the `tokenizer.*` keys; refuses to know the file's bytes (weights/gguf.py), and
to guess: a vocabulary model or pre-tokenizer that is not known here is refused by name.

Source for keys and token types: the GGUF specification, docs/gguf.md in ggml-org/ggml.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.text.cuts import SPACE_PIECE
from marlin.text.gaps import named_fill_tokens
from marlin.text.gguf_merges import MODEL, stated_merges
from marlin.text.gguf_word_pieces import plain_pieces, word_pieces
from marlin.text.pretokenizer import FAMILIES
from marlin.text.tokenizer import TOOL_TEMPLATE, Tokenizer, set_template

PREFIX = "tokenizer.ggml."
# Values of token_type; the others (unknown, unused, byte) need no treatment of their own.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

# What a key names, and what chat templates call it.
NAMES = {"bos": "bos_token", "eos": "eos_token", "eot": "", "eom": "", "unknown": "unk_token"}
NAMES |= {"seperator": "sep_token"}  # as the key is spelt
# Ids that a file means which does not say them: SentencePiece's trainer's, and BERT's own.
DEFAULT_IDS = {"llama": {"unknown": 0, "bos": 1, "eos": 2}}
DEFAULT_IDS["bert"] = {"unknown": 100, "bos": 101, "seperator": 102}

# SentencePiece trains pieces of 16 characters unless told otherwise; finding every way to split one
# takes time with the square of its length.
MAX_PIECE_CHARS = 512

# Ways to make a token of two others, on average; each takes about 100 bytes. Trained vocabularies
# have about two.
MAX_MERGES_PER_TOKEN = 16


def tokenizer_from_gguf(metadata, path):
    """Build the tokenizer that a GGUF file describes.

    Args:
        metadata: key to value; arrays are lists, or numpy arrays where they hold numbers.
        path: the file, for error messages.

    Returns:
        Tokenizer. It keeps nothing of `metadata`.

    Raises:
        ModelFileError: a key is missing or has a wrong value, a length or an id does not fit the
            vocabulary, or the vocabulary is of a kind this project does not know.
    """
    fields = file_fields(path, metadata, PREFIX)
    model = fields.choice("model", ("gpt2", "llama", "bert", MODEL))
    vocabulary = _Vocabulary.read(fields, model)
    adds_bos = True
    if model == "gpt2":
        backend, adds_bos = _byte_level(fields, vocabulary)
    elif model in ("llama", MODEL):
        backend = _sentencepiece(fields, vocabulary)
    else:
        backend = word_pieces(fields, vocabulary.ids, vocabulary.named("unknown"))
    suppressed = fields.raw("suppress_tokens")
    if suppressed is not None and np.size(suppressed):
        fields.fail("suppress_tokens", "no token: it is not supported")
    templates = _chat_templates(file_fields(path, metadata))
    return _finish(fields, vocabulary, backend, adds_bos, templates)


@dataclass
class _Vocabulary:
    tokens: list
    types: np.ndarray
    ids: dict
    named_ids: dict

    @classmethod
    def read(cls, fields, model):
        # Unused places of a vocabulary may be empty; no text makes them.
        tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(fields.texts("tokens"))]
        types = _numbers(fields, "token_type", len(tokens), default=NORMAL)
        if model == "bert":
            tokens = plain_pieces(tokens, types == CONTROL)
        ids = {token: id for id, token in enumerate(tokens)}
        if len(ids) < len(tokens):
            first = next(id for id, token in enumerate(tokens) if ids[token] > id)
            token = tokens[first]
            again = tokens.index(token, first + 1)
            _fail(fields, "tokens", f"{token!r} is both token {first} and {again}")
        last = len(tokens) - 1
        defaults = {name: id for name, id in DEFAULT_IDS.get(model, {}).items() if id <= last}

        def named_id(name):
            return fields.count(f"{name}_token_id", defaults.get(name), minimum=0, maximum=last)

        return cls(tokens, types, ids, {name: named_id(name) for name in NAMES})

    def of_type(self, type):
        return [self.tokens[id] for id in np.flatnonzero(self.types == type)]

    def named(self, name):
        """(id, text) of the bos, eos, ... token, or None."""
        id = self.named_ids[name]
        return None if id is None else (id, self.tokens[id])


def _byte_level(fields, vocabulary):
    family = FAMILIES[fields.choice("pre", sorted(FAMILIES))]
    merges = [merge.partition(" ")[::2] for merge in fields.texts("merges")]
    try:
        model = BPE(vocabulary.ids, merges, ignore_merges=family.whole_words)
    except Exception:  # the library has no narrower class, and names no merge
        _refuse_merges(fields, vocabulary.ids, merges)
        raise
    backend = Backend(model)
    backend.normalizer = family.normalizer()
    backend.pre_tokenizer = family.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, family.adds_bos


def _refuse_merges(fields, ids, merges):
    """Name the first merge that is of no tokens, or makes none; it is what the library refuses."""
    for rank, (left, right) in enumerate(merges):
        for needed in (left, right, left + right):
            if needed not in ids:
                merge = f"merge {rank} {f'{left} {right}'!r:.80}"
                _fail(fields, "merges", f"{merge} needs {needed!r:.80}, which is no token")


def _sentencepiece(fields, vocabulary):
    scores = _numbers(fields, "scores", len(vocabulary.tokens))
    unknown = vocabulary.named("unknown")
    backend = Backend(
        BPE(
            vocabulary.ids,
            stated_merges(fields, vocabulary.ids) or _implied_merges(fields, vocabulary, scores),
            unk_token=unknown and unknown[1],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace: Any = normalizers.Replace(" ", SPACE_PIECE)
    steps: list[Any] = [decoders.Replace(SPACE_PIECE, " ")]
    steps += [decoders.ByteFallback(), decoders.Fuse()]
    if fields.flag("add_space_prefix", fields.raw("model") != MODEL):
        replace = normalizers.Sequence([normalizers.Prepend(SPACE_PIECE), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = replace
    backend.decoder = decoders.Sequence(steps)
    return backend


def _implied_merges(fields, vocabulary, scores):
    """Every way to make a piece of two others, best piece first.

    SentencePiece joins the adjacent pair whose result has the highest score and stores no merges.
    Only normal pieces take part: the others are matched whole or stand for single bytes.
    """
    own = {piece: piece for piece in vocabulary.of_type(NORMAL)}
    max_merges = MAX_MERGES_PER_TOKEN * len(vocabulary.tokens)
    merges = []
    for id in np.argsort(-scores.astype(np.float64), kind="stable"):
        piece = vocabulary.tokens[id]
        if len(piece) > MAX_PIECE_CHARS:
            _fail(fields, "tokens", f"token {id} is longer than {MAX_PIECE_CHARS} characters")
        if piece in own:
            for cut in range(len(piece) - 1, 0, -1):
                left, right = own.get(piece[:cut]), own.get(piece[cut:])
                if left is not None and right is not None:
                    merges.append((left, right))
            if len(merges) > max_merges:
                ways = f"there are more than {max_merges} ways to join {len(own)} pieces"
                _fail(fields, "tokens", ways)
    return merges


def _finish(fields, vocabulary, backend, adds_bos, templates):
    bos, eos = vocabulary.named("bos"), vocabulary.named("eos")
    ends = fields.flag("add_sep_token", fields.raw("model") == "bert")
    separator = vocabulary.named("seperator") if ends else None
    control = vocabulary.of_type(CONTROL)
    # What a key names is special even where the types deny it.
    named = [vocabulary.tokens[id] for id in vocabulary.named_ids.values() if id is not None]
    special = dict.fromkeys(control + named)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    backend.add_tokens(
        [AddedToken(text, normalized=False) for text in vocabulary.of_type(USER_DEFINED)]
    )
    set_template(
        backend,
        bos if fields.flag("add_bos_token", adds_bos) else None,
        eos if fields.flag("add_eos_token", False) else separator,
    )
    known = [(name, vocabulary.named(key)) for key, name in NAMES.items() if name]
    return Tokenizer(
        backend,
        pieces=vocabulary.ids,
        named_tokens={name: token[1] for name, token in known if token is not None},
        eos_token_ids={vocabulary.named_ids[name] for name in ("eos", "eot", "eom")} - {None},
        chat_template=templates[0],
        tool_template=templates[1],
        fill=named_fill_tokens(fields, len(vocabulary.tokens) - 1),
    )


def _chat_templates(fields):
    """The default template and that for tools; others are for uses that no request asks for."""
    key = "tokenizer.chat_template"
    names = [name for name in fields.values if name.startswith(f"{key}.")]
    if names and fields.raw(key) is None:
        raise ModelFileError(fields.path, f"{key} is missing beside {names[0]!r:.200}")
    return fields.text(key, None), fields.text(f"{key}.{TOOL_TEMPLATE}", None)


def _fail(fields, key, message):
    """For what is wrong with a value beside its type."""
    raise ModelFileError(fields.path, f"{PREFIX}{key}: {message}") from None


def _numbers(fields, key, count, default=None):
    """The first `count` numbers; all `default` where the key is absent and a default is given."""
    value = fields.raw(key)
    if value is None and default is not None:
        return np.full(count, default)
    if isinstance(value, list) and all(type(item) in (int, float) for item in value):
        value = np.array(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        fields.fail(key, f"{count} numbers, one for each token")
    if value.ndim != 1 or len(value) < count:
        _fail(fields, key, f"has {value.size} values for {count} tokens")
    return value[:count]
