"""Small vocabularies made on the spot, shaped like a GGUF file's metadata, and a varied corpus.

The byte-level vocabulary is trained without cutting the text, so that its tokens cross words,
digits and lines: a pre-tokenizer that cuts in the wrong place then gives other ids.
"""

import io
import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PREFIX = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4

CORPUS = (
    "Hello, world! It's 7 o'clock; we'll meet at 19:45, won't we? I'M SURE THEY'RE off",
    "def fibonacci(n: int) -> list[int]:\n    a, b = 0, 1\n\n    while a < n:\n\t\tyield a  # x\n",
    "for (size_t i = 0; i < 1024; ++i) { buf[i] ^= 0xDEADBEEF; }\r\n#include <io.h>\r\n\r\n// ok",
    '{"camelCaseName": [1, 22, 333, 4444, 55555], "HTTPServer2": null, "snake_case_9": -1.5e-10}',
    "   leading spaces and\ttabs\n\nand newlines   \n  \n\n   trailing   ",
    "          x          12   345    6789  \n 1\n  2\n\n\n\n",
    "naïve café, cafe\u0301, Ångström A\u030angstro\u0308m, œuvre, straße, İstanbul, ﬁne",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ελληνικά: Ξεσκεπάζω",
    "敏捷的棕色狐狸跳过懒狗。いろはにほへと ちりぬるを カタカナ ー 다람쥐 헌 쳇바퀴에 타고파",
    "مرحبا بالعالم ١٢٣ שָׁלוֹם עולם नमस्ते दुनिया १२३ สวัสดีชาวโลก កាន់តែពិសេស বাংলা தமிழ்",
    "👨‍👩‍👧‍👦 🏳️‍🌈 😶‍🌫️ 👍🏽 🇫🇷🇯🇵 ✅ 1️⃣ ™ ® ∑∫√ ≠ ½ ² Ⅷ ①②③ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 𐐷",
    "null\x00 bell\x07 esc\x1b[0m del\x7f nbsp\u00a0 zw\u200b\ufeff ls\u2028 nel\u0085 \ufffd",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 3 + " " + "a" * 300 + " " + "=-" * 60,
    "!!!???...---___///\\\\\\ <<<>>> ((())) [[[]]] \"quoted\" 'single' `tick` ~ ^ | & % $ # @",
    "e-mail: a.b+c@example.com, https://example.com/path?q=1&r=2#frag; C:\\Users\\x; $1,234.5 (9%)",
    "",
    " ",
    "\n",
    "7",
    "é",
)
SPECIAL_TEXT = (
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|><|endoftext|>",
    "a <|im_start|> b<tool>c </tool> <|im_end <|im_start|",
)
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_TOKENS = ("<tool>", "</tool>")


def byte_level_metadata(pre, num_merges=1500):
    """Metadata of a `gpt2` file whose ids 0 to 4 are CONTROL_TOKENS and USER_TOKENS."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    added = CONTROL_TOKENS + USER_TOKENS
    trainer = trainers.BpeTrainer(
        vocab_size=len(added) + 256 + num_merges,
        special_tokens=list(added),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_pieces_to_train_on(), trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        PREFIX + "model": "gpt2",
        PREFIX + "pre": pre,
        PREFIX + "tokens": tokens,
        PREFIX + "token_type": [CONTROL] * 3 + [USER_DEFINED] * 2 + [1] * (len(tokens) - 5),
        PREFIX + "merges": [" ".join(pair) for pair in model["merges"]],
        PREFIX + "bos_token_id": 1,
        PREFIX + "eos_token_id": 2,
        PREFIX + "add_bos_token": False,
    }


def _pieces_to_train_on():
    # Windows of the corpus, for BPE would otherwise learn each unique text as one token.
    for text in CORPUS:
        for start in range(0, len(text), 3):
            yield text[start : start + 12]


def hugging_face_backend(metadata, pre_tokenizer, normalizer=None, ignore_merges=False):
    """The same vocabulary as `tokenizers` loads it from a tokenizer.json.

    Args:
        pre_tokenizer: the JSON objects of its "pre_tokenizer" sequence.
        normalizer: the JSON object of its "normalizer".
    """
    tokens = metadata[PREFIX + "tokens"]
    added = [
        {"id": id, "content": tokens[id], "special": id < 3, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for id in range(5)
    ]  # fmt: skip
    merges = [merge.split(" ") for merge in metadata[PREFIX + "merges"]]
    vocab = {token: id for id, token in enumerate(tokens)}
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges}
    description = {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None,
        "added_tokens": added, "normalizer": normalizer, "model": model,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
    }  # fmt: skip
    return Tokenizer.from_str(json.dumps(description))


def train_sentencepiece(vocab_size=900, **options):
    """A BPE SentencePieceProcessor with byte fallback, as Llama's was trained."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n") if line] * 3),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(processor):
    """Metadata of a `llama` file with the processor's vocabulary."""
    ids = range(processor.get_piece_size())

    def type_of(id):
        kinds = (processor.is_unknown, processor.is_control, processor.is_byte)
        for type, is_kind in zip((2, CONTROL, 6), kinds, strict=True):
            if is_kind(id):
                return type
        return 1

    return {
        PREFIX + "model": "llama",
        PREFIX + "tokens": [processor.id_to_piece(id) for id in ids],
        PREFIX + "scores": [processor.get_score(id) for id in ids],
        PREFIX + "token_type": [type_of(id) for id in ids],
        PREFIX + "bos_token_id": processor.bos_id(),
        PREFIX + "eos_token_id": processor.eos_id(),
        PREFIX + "unknown_token_id": processor.unk_id(),
    }


def word_pieces(vocab_size=None, lowercase=True):
    """A vocab.txt as BERT's: letters, beginnings and endings of the corpus's words."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    cutter = pre_tokenizers.BertPreTokenizer()
    texts = [normalizer.normalize_str(text) for text in CORPUS]
    words = {word for text in texts for word, _ in cutter.pre_tokenize_str(text)}
    letters = {letter for word in words for letter in word if ord(letter) < 0x250}
    begun = letters | {word[:length] for word in words for length in (2, 3, 4, 7)}
    within = letters | {word[-length:] for word in words for length in (2, 3)}
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *sorted(begun), *(f"##{piece}" for piece in sorted(within))][:vocab_size]


def word_piece_metadata(vocab_size=None, lowercase=True):
    """Metadata of a `bert` file, as llama.cpp's converter spells word_pieces()."""
    pieces = word_pieces(vocab_size, lowercase)
    control = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def spelt(piece):
        if piece in control:
            return piece
        return piece[2:] if piece.startswith("##") else "\u2581" + piece

    ids = {"unknown": "[UNK]", "bos": "[CLS]", "eos": "[SEP]", "seperator": "[SEP]"}
    return {
        PREFIX + "model": "bert",
        PREFIX + "pre": "jina-v2-en",
        PREFIX + "tokens": [spelt(piece) for piece in pieces],
        PREFIX + "token_type": [CONTROL if piece in control else 1 for piece in pieces],
        **{f"{PREFIX}{name}_token_id": pieces.index(piece) for name, piece in ids.items()},
    }


def metaspace_backend():
    """A word-level backend whose decoder, a lone Metaspace, has no bytes for a single token."""
    vocab = {"<unk>": 0, "\u2581the": 1, "\u2581fox": 2, "a": 3, "\u2581": 4, "\u2581jumps": 5}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend
