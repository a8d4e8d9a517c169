"""Turns token ids into text while they arrive.

Owns the bytes of a character that is not complete yet; refuses to know about stop strings, requests
and how ids were chosen. One Detokenizer serves one generation, on one thread.
"""

import codecs

# A character has at most 4 bytes, so at most 4 tokens; past twice that, U+FFFD is the model's own
# text and waiting for its missing bytes would be for ever.
MAX_HELD_TOKENS = 8
REPLACEMENT = "\ufffd"


class Detokenizer:
    """Incremental decoding that never emits part of a character.

    The joined results of `push` and `flush` equal `tokenizer.decode(ids)`, except for the leading
    space described under `continues`. Each push takes constant time.

    Args:
        tokenizer: the Tokenizer of the ids.
        continues: True when the text goes on from a prompt: the space a SentencePiece vocabulary
            writes at the head of a word then belongs to the text (" jumps" after "The fox").
            False when the ids are a text of their own, whose first space the encoder had added.
        skip_special_tokens: leave special tokens out of the text.
        shown_ids: special tokens that are text all the same.
    """

    def __init__(
        self, tokenizer, continues=True, *, skip_special_tokens=True, shown_ids=frozenset()
    ):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._shown_ids = shown_ids
        reader = _ByteReader if tokenizer.byte_exact else _WindowReader
        self._reader = reader(tokenizer, continues)

    def push(self, token_id):
        """The text that this token completes; "" while a character lacks bytes."""
        if self._skip_special_tokens and self._tokenizer.is_special(token_id):
            if token_id not in self._shown_ids:
                return ""
        return self._reader.push(token_id)

    def flush(self):
        """The end of the text: U+FFFD for a character whose bytes never came, else ""."""
        return self._reader.flush()


class _ByteReader:
    def __init__(self, tokenizer, continues):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strips_space = tokenizer.strips_leading_space and not continues

    def push(self, token_id):
        return self._strip(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self):
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text):
        if not (text and self._strips_space):
            return text
        self._strips_space = False
        return text.removeprefix(" ")


class _WindowReader:
    """For a decoder whose tokens have no bytes of their own: decode the last few tokens again.

    `_context` are the tokens of the last text emitted; they are decoded once more in front of the
    tokens held, because such a decoder treats the first token of a run differently.
    """

    def __init__(self, tokenizer, continues):
        self._tokenizer = tokenizer
        # Any word will do: it stands for the end of the prompt.
        self._context = tokenizer.encode("a", add_special_tokens=False) if continues else []
        self._held = []

    def push(self, token_id):
        self._held.append(token_id)
        text = self._held_text()
        incomplete = not text or text.endswith(REPLACEMENT)
        if incomplete and len(self._held) < MAX_HELD_TOKENS:
            return ""
        self._context, self._held = self._held, []
        return text

    def flush(self):
        text = self._held_text()
        self._context, self._held = self._held, []
        return text

    def _held_text(self):
        before = self._tokenizer.decode(self._context, skip_special_tokens=False)
        after = self._tokenizer.decode(self._context + self._held, skip_special_tokens=False)
        return after[len(before) :]
