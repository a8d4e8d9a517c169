"""Text to token ids and back, for one model.

Owns what a token stands for: its id, its raw piece, its bytes, and whether it is special. Refuses
to know the files that it comes from (folder_tokenizer.py and gguf_tokenizer.py), how chat templates
are rendered, and what a request is.

Text is decoded from bytes here rather than by the `tokenizers` decoders, so that a stream and a
whole decode agree: a token's bytes are joined and read as UTF-8, each ill-formed part becoming one
U+FFFD. Well-formed text is the same either way. `clean_up_tokenization_spaces` is not applied: it
corrupts code, and a stream cannot take back a space.
"""

import json
from pathlib import Path
from types import MappingProxyType

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from marlin.errors import TokenizerPoolError
from marlin.text.cuts import SPACE_PIECE, checked, cuts_of, steps_of
from marlin.text.gaps import fill_tokens
from marlin.text.special_tokens import end_of_turn_ids

# Names of chat templates, where a model has several.
DEFAULT_TEMPLATE, TOOL_TEMPLATE = "default", "tool_use"
BYTE_PIECES = MappingProxyType({f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)})

# Forms of Unicode normalization, and how many times fewer bytes a text can have after one: of four
# bytes, a mathematical letter becomes one of ASCII's. The test goes through all characters.
_FORMS, _FORM_SHRINKS = ("NFC", "NFD", "NFKC", "NFKD"), 4


def _byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(256 + rank), byte) for rank, byte in enumerate(others))
    return MappingProxyType(alphabet)


# Byte-level BPE spells every byte as one visible character (GPT-2's table): a printable Latin-1
# byte as itself, the n-th of the others as U+0100 + n.
BYTE_OF_CHAR = _byte_alphabet()
_BYTES = {**dict.fromkeys(range(256), 0x100), **{ord(c): byte for c, byte in BYTE_OF_CHAR.items()}}


class Tokenizer:
    """A `tokenizers.Tokenizer` with the facts a server needs about its tokens. Thread-safe.

    Attributes:
        vocab_size: one past the highest token id.
        bos_token_id: the begin-of-sequence token, or None.
        eos_token_ids: frozenset of the tokens that end a generation; may be empty. Those that the
            files name, and those that end a turn by their text (special_tokens.py).
        named_tokens: {"bos_token": text, ...}, the special tokens that chat templates can name.
        chat_template: source of the model's (default) chat template, or None.
        tool_template: source of the one for conversations with tools, where that is another.
        add_bos_token: whether `encode` with special tokens starts with `bos_token_id`.
        control_tokens: {text: id} of the tokens that steer the model and that texts can spell.
        fill_tokens: gaps.FillTokens, or None.
        byte_exact: whether `token_bytes` is exact; False only for a decoder this project does not
            know, whose text has to come from decoding whole runs of tokens.
        strips_leading_space: the decoder drops one space at the start of a text, which the
            encoder had put there.
    """

    def __init__(
        self,
        backend,
        *,
        pieces=None,
        named_tokens=None,
        eos_token_ids=(),
        chat_template=None,
        tool_template=None,
        fill=None,
    ):
        """
        Args:
            fill: FillTokens that the files name; None looks for them by their texts.
            pieces: those of the backend's model, added tokens apart, from whoever has them at hand:
                asked for, the backend spells all of them anew.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.named_tokens = dict(named_tokens or {})
        bos_token = self.named_tokens.get("bos_token")
        self.bos_token_id = None if bos_token is None else backend.token_to_id(bos_token)
        self.chat_template = chat_template
        self.tool_template = tool_template
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        eos_token = self.named_tokens.get("eos_token")
        own = {None if eos_token is None else backend.token_to_id(eos_token)} - {None}
        ends = end_of_turn_ids(backend.token_to_id, self._special_ids.__contains__)
        self.eos_token_ids = frozenset({*eos_token_ids, *own, *ends})
        self.vocab_size = max([backend.get_vocab_size(), *(id + 1 for id in added)])
        _make_pool(backend)
        first = backend.encode("").ids[:1]
        self.add_bos_token = self.bos_token_id is not None and first == [self.bos_token_id]
        self._spelling, self.strips_leading_space = _recognise_decoder(backend.decoder)
        self.byte_exact = self._spelling is not None
        self._token_bound = _token_bound(backend, added.values(), pieces)
        self._cuts = cuts_of(backend, added.values(), pieces)
        self._around = _around(backend)
        self.fill_tokens = fill or fill_tokens(backend.token_to_id)
        marks = self.fill_tokens.ids if self.fill_tokens else set()
        self.control_tokens = _texts_of(added, self._special_ids | self.eos_token_ids)
        self._strips = {id: (token.lstrip, token.rstrip) for id, token in added.items()}
        self._plain = _without_special(backend, added, self.eos_token_ids | marks)

    def encode(self, text, *, add_special_tokens=True, parse_special=True):
        """Token ids of `text`.

        Args:
            text: any string; a lone surrogate, which JSON can carry, is read as U+FFFD.
            add_special_tokens: False for a rendered chat template, which wrote its own.
            parse_special: special tokens, and those that end a turn or mark a gap, are taken as
                such where they are spelled out; False reads them as any other text.

        Returns:
            list[int], empty for "" unless special tokens are added.
        """
        return self._ids(_well_formed(text), add_special_tokens, parse_special)

    def encode_parts(self, text, num_characters, *, add_special_tokens=True, parse_special=True):
        """As encode(), a part of the text after another, so that one can stop between two.

        Args:
            num_characters: of a part at least; it ends where it is certain that the tokens are the
                same (cuts.py).

        Yields:
            list[int], which are encode()'s ids one after another.

        Raises:
            RequestError: a part cannot be ended, and is longer than what is read as one.
        """
        text = _well_formed(text)
        if add_special_tokens and self._around is None:
            yield self._ids(checked(text), True, parse_special)
            return
        before, after = self._around if add_special_tokens else ([], [])
        yield before
        for part in self._cuts.parts(text, num_characters) if self._cuts else [text]:
            yield self._ids(checked(part), False, parse_special)
        yield after

    def trimmed(self, text: str, before: int | None, after: int | None) -> str:
        """A text between two control tokens, ids or None, without the blanks that they take."""
        if before is not None and self._strips[before][1]:
            text = text.lstrip()
        return text.rstrip() if after is not None and self._strips[after][0] else text

    def _ids(self, text, add_special_tokens, parse_special):
        backend = self._backend if parse_special else self._plain
        # `encode` would keep the interpreter lock: 4.4 s for 1.8 MB, in which no step can start.
        batch = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return batch[0].ids

    def min_tokens(self, text):
        """How many tokens `text` has at least, without encoding it; 0 where nothing is certain."""
        if self._token_bound is None:
            return 0
        ascii_longest, any_longest, unknown = self._token_bound
        # No form of Unicode changes ASCII.
        longest = ascii_longest if text.isascii() else any_longest
        known = _well_formed(text).encode().translate(None, unknown)
        return -(-len(known) // longest)

    def decode(self, ids, skip_special_tokens=True):
        """The text of a whole run of tokens; ids outside the vocabulary stand for nothing."""
        if not self.byte_exact:
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        hidden = self._special_ids if skip_special_tokens else ()
        data = b"".join(self.token_bytes(id) for id in ids if id not in hidden)
        text = data.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def token_text(self, id):
        """The raw piece (`Ġthe`, `▁the`, `<0x0A>`), or "" for an id outside the vocabulary."""
        return self._backend.id_to_token(id) or ""

    def token_bytes(self, id):
        """The bytes the token adds to a text; part of a character, perhaps.

        Special tokens give their own text. An id outside the vocabulary (models pad their
        embedding) gives b"". Exact only where `byte_exact`; otherwise the raw piece in UTF-8.
        """
        piece = self.token_text(id)
        if self._spelling == "sentencepiece":
            return BYTE_PIECES.get(piece) or piece.replace(SPACE_PIECE, " ").encode()
        if self._spelling == "byte_level" and id not in self._added_ids:
            try:
                return piece.translate(_BYTES).encode("latin-1")
            except UnicodeEncodeError:
                return piece.encode()
        return piece.encode()

    def is_special(self, id):
        """Whether the token steers the model and is no part of the text (`<|im_end|>`)."""
        return id in self._special_ids

    def save(self, folder):
        """Write the files that `load_tokenizer` reads back to an equal Tokenizer.

        tokenizer.json, tokenizer_config.json and, for the ids that end a generation,
        generation_config.json; existing files of these names are replaced.
        """
        folder = Path(folder)
        self._backend.save(str(folder / "tokenizer.json"), pretty=False)
        templates: object = self.chat_template
        if self.tool_template is not None:
            named = {DEFAULT_TEMPLATE: self.chat_template, TOOL_TEMPLATE: self.tool_template}
            templates = [{"name": name, "template": text} for name, text in named.items()]
        config = {**self.named_tokens, "chat_template": templates}
        _write_json(folder / "tokenizer_config.json", config)
        _write_json(folder / "generation_config.json", {"eos_token_id": sorted(self.eos_token_ids)})


def _make_pool(backend):
    """Have the threads made that `encode` runs on: a library that could not make them once never
    tokenizes again."""
    try:
        backend.encode_batch_fast(["a", "b"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  (a panic of the library is a BaseException)
        raise TokenizerPoolError(f"tokenizing is not possible: {error}") from None


def _texts_of(added, ids) -> dict[str, int]:
    return {token.content: id for id, token in added.items() if id in ids}


def _without_special(backend, added, end_ids):
    """The same tokenizer, with the same model in memory, to which special tokens are text.

    Args:
        added: {id: AddedToken}.
        end_ids: tokens that steer as special ones do, whatever the file calls them.
    """
    plain = Backend(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(plain, part, getattr(backend, part))
    tokens = []
    for id in sorted(added):  # in this order they have the same ids
        tokens.append(added[id])
        tokens[-1].special |= id in end_ids
    plain.add_tokens(tokens)
    plain.encode_special_tokens = True
    return plain


def _around(backend):
    """(ids before a text, ids behind it) that encode() adds, or None if it does more."""
    own, all_ids = (backend.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    for start in range(len(all_ids) - len(own) + 1 if own else 0):
        if all_ids[start : start + len(own)] == own:
            return all_ids[:start], all_ids[start + len(own) :]
    return None


def set_template(backend, bos=None, eos=None):
    """Make `encode` put `bos` before and `eos` after a text; each is (id, text) or None."""
    special = [
        {"id": name, "ids": [token[0]], "tokens": [token[1]]}
        for name, token in (("BOS", bos), ("EOS", eos))
        if token
    ]
    single = " ".join(["BOS"] * bool(bos) + ["$A"] + ["EOS"] * bool(eos))
    backend.post_processor = TemplateProcessing(single=single, special_tokens=special)


def _write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _well_formed(text):
    """`text` as it can be encoded: pairs of surrogates joined, lone ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _token_bound(backend, added, pieces):
    """What bounds the tokens of a text from below.

    Certain is BPE whose pieces are bytes, or that falls back to them, in which only unknown bytes
    can vanish: a normalizer may shorten a text by a known factor at most, no pre-tokenizer drop a
    separator, no added token take the blanks beside it.

    Args:
        added: its added tokens.
        pieces: as Tokenizer's.

    Returns:
        (bytes of an ASCII text that one token can stand for, the same of any text, the byte values
        that are no token and that BPE skips), or None where nothing is certain.
    """
    model = backend.model
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if any(token.lstrip or token.rstrip for token in added):
        return None
    shrinks = _shrinks(backend.normalizer)
    if pieces is None:
        pieces = backend.get_vocab(with_added_tokens=False)
    longest, unknown = _longest_piece(backend.pre_tokenizer, model, pieces)
    if longest is None or shrinks is None or (unknown and shrinks > 1):
        return None
    written = [token.content for token in added]
    if backend.normalizer is not None:
        written += [backend.normalizer.normalize_str(text) for text in written]
    longest = max([longest, *(len(text.encode()) for text in written)])
    return longest, shrinks * longest, unknown


def _shrinks(normalizer):
    """How many times fewer bytes a text may have after a normalizer; None for any."""
    times = 1
    for step in steps_of(normalizer, "normalizers"):
        if step.get("type") in _FORMS:
            times *= _FORM_SHRINKS
        elif step.get("type") == "Replace" and "String" in step["pattern"]:
            if len(step["content"].encode()) < len(step["pattern"]["String"].encode()):
                return None
        elif step and step.get("type") != "Prepend":
            return None
    return times


def _longest_piece(pre_tokenizer, model, pieces):
    """(bytes of a normalized text that one piece can stand for, or None; bytes that vanish)."""
    steps = steps_of(pre_tokenizer, "pretokenizers")
    kinds = {step.get("type") for step in steps if step}
    if any(step["behavior"] == "Removed" for step in steps if step.get("type") == "Split"):
        return None, b""
    if "ByteLevel" in kinds and kinds <= {"Split", "Digits", "ByteLevel"}:
        # A character of such a piece is a byte.
        unknown = bytes(byte for char, byte in BYTE_OF_CHAR.items() if char not in pieces)
        return max(1, max(map(len, pieces), default=1)), unknown
    if kinds <= {"Split", "Digits", "Metaspace"} and model.byte_fallback:
        # Without one of these, a run of unknown characters can be one token.
        if BYTE_PIECES.keys() <= pieces.keys():
            return max(len(piece.encode()) for piece in pieces), b""
    return None, b""


def _recognise_decoder(decoder):
    """How pieces spell bytes: ("byte_level" | "sentencepiece" | None, drops one leading space)."""
    steps = steps_of(decoder, "decoders")
    names = [step.get("type") for step in steps]
    if names in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return "byte_level", False
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    strips = steps[-1] == strip
    replaces = steps[0] == {"type": "Replace", "pattern": {"String": SPACE_PIECE}, "content": " "}
    if replaces and names[1:3] == ["ByteFallback", "Fuse"] and len(steps) == 3 + strips:
        return "sentencepiece", strips
    return None, False
