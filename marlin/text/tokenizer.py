"""Text to token ids and back, for one model.

Owns what a token stands for: its id, its raw piece, its bytes, and whether it is special. Knows the
Hugging Face files a folder holds; refuses to know GGUF (gguf_tokenizer.py builds a Tokenizer from
it), how chat templates are rendered, and what a request is.

Text is decoded from bytes here rather than by the `tokenizers` decoders, so that a stream and a
whole decode agree: a token's bytes are joined and read as UTF-8, each ill-formed part becoming one
U+FFFD. Well-formed text is the same either way. `clean_up_tokenization_spaces` is not applied: it
corrupts code, and a stream cannot take back a space.
"""

import json
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from marlin.errors import ModelFileError
from marlin.files.regular import read_regular
from marlin.files.strict_json import MAX_FILE_BYTES, parse_json_object, read_json_object

# Published chat templates have up to 30 kB.
MAX_TEMPLATE_BYTES = 1 << 20
SPACE_PIECE = "\u2581"
BYTE_PIECES = MappingProxyType({f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)})


# Letters, digits, blanks and lines, and characters of two to four bytes: what any chat may hold.
_TRIAL_TEXT = "Hello, world! 1 + 1 = 2\n\tNa\u00efve \u4f60\u597d \U0001f642"


def _byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(256 + rank), byte) for rank, byte in enumerate(others))
    return MappingProxyType(alphabet)


# Byte-level BPE spells every byte as one visible character (GPT-2's table): a printable Latin-1
# byte as itself, the n-th of the others as U+0100 + n.
BYTE_OF_CHAR = _byte_alphabet()


class Tokenizer:
    """A `tokenizers.Tokenizer` with the facts a server needs about its tokens. Thread-safe.

    Attributes:
        vocab_size: one past the highest token id.
        bos_token_id: the begin-of-sequence token, or None.
        eos_token_ids: frozenset of the tokens that end a generation; may be empty.
        bos_token, eos_token: their text for chat templates, or None.
        chat_template: source of the model's (default) chat template, or None.
        add_bos_token: whether `encode` with special tokens starts with `bos_token_id`.
        byte_exact: whether `token_bytes` is exact; False only for a decoder this project does not
            know, whose text has to come from decoding whole runs of tokens.
        strips_leading_space: the decoder drops one space at the start of a text, which the
            encoder had put there.
    """

    def __init__(
        self, backend, *, bos_token=None, eos_token=None, eos_token_ids=(), chat_template=None
    ):
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.bos_token_id = None if bos_token is None else backend.token_to_id(bos_token)
        self.eos_token_ids = frozenset(eos_token_ids)
        self.chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        self.vocab_size = max([backend.get_vocab_size(), *(id + 1 for id in added)])
        first = backend.encode("").ids[:1]
        self.add_bos_token = self.bos_token_id is not None and first == [self.bos_token_id]
        self._spelling, self.strips_leading_space = _recognise_decoder(backend.decoder)
        self.byte_exact = self._spelling is not None
        self._token_bound = _token_bound(backend, added.values())

    def encode(self, text, *, add_special_tokens=True):
        """Token ids of `text`; special tokens spelled out in it are taken as such.

        Args:
            text: any string; a lone surrogate, which JSON can carry, is read as U+FFFD.
            add_special_tokens: False for a rendered chat template, which wrote its own.

        Returns:
            list[int], empty for "" unless special tokens are added.
        """
        text = _well_formed(text)
        # `encode` would keep the interpreter lock: 4.4 s for 1.8 MB, in which no step can start.
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return batch[0].ids

    def min_tokens(self, text):
        """How many tokens `text` has at least, without encoding it; 0 where nothing is certain."""
        if self._token_bound is None:
            return 0
        longest, unknown = self._token_bound
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
                return bytes([BYTE_OF_CHAR[char] for char in piece])
            except KeyError:
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
        config = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "chat_template": self.chat_template,
        }
        _write_json(folder / "tokenizer_config.json", config)
        _write_json(folder / "generation_config.json", {"eos_token_id": sorted(self.eos_token_ids)})


def load_tokenizer(folder):
    """The tokenizer of a Hugging Face or native model folder.

    Reads tokenizer.json, and where present tokenizer_config.json, chat_template.jinja,
    generation_config.json and config.json.

    Raises:
        ModelFileError: tokenizer.json is missing or fails on ordinary text, or a file is not what
            its name says.
    """
    folder = Path(folder)
    backend = _load_backend(folder / "tokenizer.json")
    config_path = folder / "tokenizer_config.json"
    config = read_json_object(config_path, {})
    model_configs = [folder / "generation_config.json", folder / "config.json"]
    eos_token_ids, bos_token_ids = set(), []
    for path in model_configs:
        values = read_json_object(path, {})
        eos_token_ids.update(_token_ids(values, "eos_token_id", path))
        bos_token_ids += _token_ids(values, "bos_token_id", path)
    bos_token = _token_string(config, "bos_token", config_path)
    eos_token = _token_string(config, "eos_token", config_path)
    if bos_token is None and "bos_token" not in config and bos_token_ids:
        bos_token = backend.id_to_token(bos_token_ids[0])
    if eos_token is None and eos_token_ids:
        eos_token = backend.id_to_token(min(eos_token_ids))
    _mark_special(backend, bos_token, eos_token)
    if eos_token and backend.token_to_id(eos_token) is not None:
        eos_token_ids.add(backend.token_to_id(eos_token))
    _apply_bos_and_eos_flags(backend, config, bos_token, eos_token)
    chat_template = _chat_template(folder, config)
    with _tokenizer_faults(folder / "tokenizer.json"):
        tokenizer = Tokenizer(
            backend,
            bos_token=bos_token,
            eos_token=eos_token,
            eos_token_ids=eos_token_ids,
            chat_template=chat_template,
        )
        tokenizer.encode(_TRIAL_TEXT)
        if not tokenizer.byte_exact:
            tokenizer.decode(list(range(tokenizer.vocab_size)), skip_special_tokens=False)
    return tokenizer


def set_template(backend, bos=None, eos=None):
    """Make `encode` put `bos` before and `eos` after a text; each is (id, text) or None."""
    special = [
        {"id": name, "ids": [token[0]], "tokens": [token[1]]}
        for name, token in (("BOS", bos), ("EOS", eos))
        if token
    ]
    single = " ".join(["BOS"] * bool(bos) + ["$A"] + ["EOS"] * bool(eos))
    backend.post_processor = TemplateProcessing(single=single, special_tokens=special)


def _mark_special(backend, *texts):
    """Have tokens of the vocabulary read as special; tokens added by the file stay as they are."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    for text in texts:
        if text and text not in added and backend.token_to_id(text) is not None:
            backend.add_special_tokens([text])


def _apply_bos_and_eos_flags(backend, config, bos_token, eos_token):
    """tokenizer_config.json's own flags, where it has any, overrule tokenizer.json's template."""
    if config.get("add_bos_token") is None and config.get("add_eos_token") is None:
        return
    chosen = []
    for flag, text in (("add_bos_token", bos_token), ("add_eos_token", eos_token)):
        id = backend.token_to_id(text) if config.get(flag) and text else None
        chosen.append(None if id is None else (id, text))
    set_template(backend, *chosen)


def _load_backend(path):
    source = read_regular(path, MAX_FILE_BYTES, None)
    if source is None:
        raise ModelFileError(path, "file is missing; the folder needs a tokenizer.json")
    # The library takes the last of two equal keys; here a file has one meaning only.
    parse_json_object(path, source)
    with _tokenizer_faults(path):
        return tokenizers.Tokenizer.from_buffer(source)


@contextmanager
def _tokenizer_faults(path):
    """Make a ModelFileError of what the library raises for a file that it cannot parse or use.

    That is a bare Exception (ValueError in some versions), or a panic, which is a BaseException.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelFileError(path, f"is not a tokenizer: {error}") from None
        raise


def _write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _token_ids(config, key, path):
    """A token id, a list of them, or nothing, as a list."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id) is int and id >= 0 for id in ids):
        raise ModelFileError(path, f"{key} is {value!r}, expected token ids")
    return ids


def _token_string(config, key, path):
    """tokenizer_config.json spells a token as a string or as {"content": string, ...}."""
    value = config.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        return None
    if _well_formed(text) != text:
        raise ModelFileError(path, f"{key} is {text!r:.80}, which is not text")
    return text


def _chat_template(folder, config):
    """Its own file first, as newer folders have it; else a string or a list of named ones."""
    path = folder / "chat_template.jinja"
    source = read_regular(path, MAX_TEMPLATE_BYTES, None)
    if source is not None:
        try:
            # As reading in text mode ends lines.
            return source.decode().replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise ModelFileError(path, f"is not UTF-8 at byte {error.start}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        named = [entry for entry in entries if isinstance(entry.get("name"), str)]
        template = {entry["name"]: entry.get("template") for entry in named}
    if isinstance(template, dict):
        template = template.get("default", next(iter(template.values()), None))
    return template if isinstance(template, str) else None


def _well_formed(text):
    """`text` as it can be encoded: pairs of surrogates joined, lone ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _token_bound(backend, added):
    """What bounds the tokens of a text from below.

    Certain is byte-level BPE in which only unknown bytes can vanish: no normalizer may shorten a
    text, no pre-tokenizer drop a separator, no added token take the blanks beside it.

    Args:
        added: its added tokens.

    Returns:
        (bytes that one token can stand for, the byte values that are no token and that BPE skips),
        or None where nothing is certain.
    """
    model = backend.model
    if backend.normalizer is not None or not _splits_bytes(backend.pre_tokenizer):
        return None
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if any(token.lstrip or token.rstrip for token in added):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    unknown = bytes(byte for char, byte in BYTE_OF_CHAR.items() if char not in vocabulary)
    # A character of a byte-level piece is a byte; an added token is matched as it is written.
    written = [len(token.content.encode()) for token in added]
    return max([1, *map(len, vocabulary), *written]), unknown


def _splits_bytes(pre_tokenizer):
    steps = _steps(pre_tokenizer, "pretokenizers")
    splits = [step for step in steps if step.get("type") == "Split"]
    return (
        {step.get("type") for step in steps} <= {"Split", "Digits", "ByteLevel"}
        and any(step.get("type") == "ByteLevel" for step in steps)
        and all(split["behavior"] != "Removed" for split in splits)
    )


def _steps(component, name):
    """The settings of a decoder or pre-tokenizer's steps; `name` is what a sequence calls them."""
    state = json.loads(component.__getstate__()) if component is not None else {}
    return (state.get(name) or [{}]) if state.get("type") == "Sequence" else [state]


def _recognise_decoder(decoder):
    """How pieces spell bytes: ("byte_level" | "sentencepiece" | None, drops one leading space)."""
    steps = _steps(decoder, "decoders")
    names = [step.get("type") for step in steps]
    if names in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return "byte_level", False
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    strips = steps[-1] == strip
    replaces = steps[0] == {"type": "Replace", "pattern": {"String": SPACE_PIECE}, "content": " "}
    if replaces and names[1:3] == ["ByteFallback", "Fuse"] and len(steps) == 3 + strips:
        return "sentencepiece", strips
    return None, False
