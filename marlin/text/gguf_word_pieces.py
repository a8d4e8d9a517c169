"""The WordPiece vocabulary of a GGUF file, as `bert` files have it.

Owns how such a file spells pieces, and what it says of letters and marks; the keys that all files
share are gguf_tokenizer.py's.
"""

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from marlin.files.fields import Fields
from marlin.text.cuts import SPACE_PIECE

# What a piece within a word begins with, in every other file.
INSIDE = "##"
# BERT's own: a longer word is unknown.
MAX_WORD_CHARS = 100
# Unused places of older files, which have nothing before them.
_BRACKETED = re.compile(r"\[.+\]", re.DOTALL)


def plain_pieces(tokens: list[str], is_control: Iterable[bool]) -> list[str]:
    """The pieces as BERT's vocab.txt has them: a file marks those that begin a word, not the
    others, and leaves control tokens as they are."""
    found = []
    for token, is_plain in zip(tokens, is_control, strict=True):
        if is_plain or (_BRACKETED.fullmatch(token) and len(token) > len("[]")):
            found.append(token)
        elif token.startswith(SPACE_PIECE):
            found.append(token.removeprefix(SPACE_PIECE))
        else:
            found.append(INSIDE + token)
    return found


def word_pieces(fields: Fields, ids: dict[str, int], unknown: tuple[int, str] | None) -> Backend:
    """The tokenizer of a vocabulary.

    Args:
        fields: those that begin with `tokenizer.ggml.`.
        ids: {piece: id}, as plain_pieces() spells them.
        unknown: id and piece of a word that has no others.

    Raises:
        ModelFileError: there is no unknown, or a flag is none.
    """
    if unknown is None:
        fields.fail("unknown_token_id", "a token's id")
    # Files of before these keys do not say it; in a vocabulary that has capitals they count.
    implied = not any(_has_capitals(piece) for piece in ids if not _BRACKETED.fullmatch(piece))
    lowercase = fields.flag("normalizer.lowercase", implied)
    backend = Backend(
        WordPiece(
            ids,
            unk_token=unknown[1],
            max_input_chars_per_word=MAX_WORD_CHARS,
            continuing_subword_prefix=INSIDE,
        )
    )
    normalizer: Any = normalizers.BertNormalizer(
        strip_accents=fields.flag("normalizer.strip_accents", lowercase), lowercase=lowercase
    )
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=INSIDE)
    return backend


def _has_capitals(piece: str) -> bool:
    return piece.isascii() and piece != piece.lower()
