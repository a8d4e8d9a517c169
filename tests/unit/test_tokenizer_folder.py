"""Tokenizers of model folders: which file says what, and which contents are refused."""

import base64
import json

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from vocabularies import (
    CORPUS,
    PREFIX,
    SPECIAL_TEXT,
    byte_level_metadata,
    hugging_face_backend,
    metaspace_backend,
    sentencepiece_metadata,
    train_sentencepiece,
)

from marlin.engine.served_model import prompter_for
from marlin.errors import ModelFileError
from marlin.files.fields import file_fields
from marlin.text.conversation import Conversation
from marlin.text.folder_tokenizer import _check_generation, load_tokenizer
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.pretokenizer import BLANK_END
from marlin.text.tokenizer import Tokenizer

TEXTS = CORPUS + SPECIAL_TEXT
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@pytest.fixture(scope="module")
def small_metadata():
    return byte_level_metadata("gpt-2", num_merges=200)


@pytest.fixture
def backend(small_metadata):
    return hugging_face_backend(small_metadata, [BYTE_LEVEL])


def write_folder(folder, backend, **files):
    """Files by stem; a dict is written as JSON, text as a Jinja file."""
    if backend is not None:
        backend.save(str(folder / "tokenizer.json"))
    for stem, content in files.items():
        if isinstance(content, str):
            (folder / f"{stem}.jinja").write_text(content, encoding="utf-8")
        else:
            (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_folder_gives_the_ids_transformers_gives(backend, tmp_path):
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_folder(tmp_path, backend, tokenizer_config=config)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        )
    assert ours.encode("x")[0] == 1
    assert ours.add_bos_token


def test_end_tokens_are_those_of_every_file_of_the_folder(backend, tmp_path):
    write_folder(
        tmp_path,
        backend,
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}, "bos_token": None},
        generation_config={"eos_token_id": [0, 7]},
        config={"eos_token_id": 9, "bos_token_id": 1},
    )
    ours = load_tokenizer(tmp_path)
    assert ours.eos_token_ids == {0, 2, 7, 9}
    assert (ours.named_tokens, ours.bos_token_id) == ({"eos_token": "<|im_end|>"}, None)


@pytest.mark.parametrize("tokens", [{}, {"bos_token": "<|im_start|>"}, {"eos_token": "<|im_end|>"}])
def test_a_token_that_a_model_lacks_is_undefined_in_its_chat_template(tokens, backend, tmp_path):
    shown = "".join(
        f"{{{{ {name} }}}}|{{{{ {name} is defined }}}}|{{{{ {name} is none }}}}|"
        for name in ("bos_token", "eos_token")
    )
    template = shown + "{{ messages[0].content }}"
    config = {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    write_folder(tmp_path, backend, tokenizer_config=config)
    messages = [{"role": "user", "content": "Hi"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False)
    assert prompter_for(load_tokenizer(tmp_path)).prompt(Conversation(messages)) == theirs
    assert "None" not in theirs


def test_a_token_that_the_config_names_is_special_though_the_tokenizer_file_denies_it(
    backend, tmp_path
):
    write_folder(tmp_path, backend, tokenizer_config={"eos_token": "!"})
    ours = load_tokenizer(tmp_path)
    (eos,) = ours.encode("!")
    assert ours.token_text(eos) == "!" and eos in ours.eos_token_ids
    assert ours.decode([3, eos]) == "<tool>"


def test_without_a_tokenizer_config_the_model_config_names_the_tokens(backend, tmp_path):
    write_folder(tmp_path, backend, config={"eos_token_id": 2, "bos_token_id": 1})
    ours = load_tokenizer(tmp_path)
    assert ours.named_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert ours.chat_template is None


def test_an_add_bos_flag_overrules_the_template_of_the_tokenizer_file(backend, tmp_path):
    bos = ("<|im_start|>", 1)
    backend.post_processor = TemplateProcessing("<|im_start|> $A", special_tokens=[bos])
    write_folder(tmp_path, backend, tokenizer_config={"bos_token": "<|im_start|>"})
    assert load_tokenizer(tmp_path).encode("<tool>") == [1, 3]
    config = {"bos_token": "<|im_start|>", "add_bos_token": False}
    write_folder(tmp_path, None, tokenizer_config=config)
    assert load_tokenizer(tmp_path).encode("<tool>") == [3]


def test_a_chat_template_may_be_a_string_or_a_list_with_a_default(backend, tmp_path):
    other = {"name": "tool_use", "template": "other"}
    for template in ("plain", [other, {"name": "default", "template": "plain"}]):
        write_folder(tmp_path, backend, tokenizer_config={"chat_template": template})
        assert load_tokenizer(tmp_path).chat_template == "plain"
    write_folder(tmp_path, backend, tokenizer_config={"chat_template": [other]})
    said = "there are the chat templates 'tool_use', and none is the default"
    with pytest.raises(ModelFileError, match=said):
        load_tokenizer(tmp_path)


def test_a_chat_template_file_comes_before_the_tokenizer_config(backend, tmp_path):
    config = {"chat_template": "old"}
    write_folder(tmp_path, backend, tokenizer_config=config, chat_template="new {{ x }}\n")
    assert load_tokenizer(tmp_path).chat_template == "new {{ x }}\n"


def test_truncation_and_padding_stored_in_the_file_do_not_touch_prompts(backend, tmp_path):
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    ours = load_tokenizer(write_folder(tmp_path, backend))
    assert ours.encode("<tool>" * 10) == [3] * 10


def test_a_saved_tokenizer_loads_equal(small_metadata, tmp_path):
    processor = train_sentencepiece()
    for number, metadata in enumerate((small_metadata, sentencepiece_metadata(processor))):
        metadata = {**metadata, "tokenizer.chat_template": "{{ messages }}"}
        saved = tokenizer_from_gguf(metadata, "small.gguf")
        folder = tmp_path / str(number)
        folder.mkdir()
        saved.save(folder)
        loaded = load_tokenizer(folder)
        for name in (
            "vocab_size", "bos_token_id", "eos_token_ids", "named_tokens",
            "chat_template", "add_bos_token", "byte_exact", "strips_leading_space",
        ):  # fmt: skip
            assert getattr(loaded, name) == getattr(saved, name), name
        assert [loaded.encode(text) for text in TEXTS] == [saved.encode(text) for text in TEXTS]


def test_a_folder_without_a_tokenizer_names_the_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: file is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "a JSON object was expected"),
        (b'{"model": 7}', "is not a tokenizer"),
        (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "not valid JSON: key 'a' appears twice"),
    ],
)
def test_a_tokenizer_file_that_is_not_one_is_refused(content, complaint, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"tokenizer\.json: {complaint}"):
        load_tokenizer(tmp_path)


def test_a_chat_template_file_that_is_not_text_or_too_long_is_refused(backend, tmp_path):
    write_folder(tmp_path, backend)
    (tmp_path / "chat_template.jinja").write_bytes(b"a\xff")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja: is not UTF-8 at byte 1"):
        load_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja: 1048577 bytes; at most"):
        load_tokenizer(tmp_path)


def test_lines_of_a_chat_template_file_end_as_text_files_do(backend, tmp_path):
    write_folder(tmp_path, backend)
    (tmp_path / "chat_template.jinja").write_bytes(b"a\r\nb\rc\n")
    assert load_tokenizer(tmp_path).chat_template == "a\nb\nc\n"


@pytest.mark.parametrize(
    "settings",
    [
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"decoder": {"type": "Strip", "content": "a", "start": 5, "stop": 5}},
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_tokenizer_that_fails_or_panics_on_ordinary_text_is_refused(settings, tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
    write_folder(tmp_path, None, tokenizer={"version": "1.0", "model": model, **settings})
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_token_that_is_half_a_character_is_refused(backend, tmp_path):
    write_folder(tmp_path, backend, tokenizer_config={"bos_token": "\ud800"})
    expected = r"tokenizer_config\.json: bos_token .* half of a character"
    with pytest.raises(ModelFileError, match=expected):
        load_tokenizer(tmp_path)


def test_a_chat_template_without_a_name_or_a_text_is_refused(backend, tmp_path):
    good = {"name": "default", "template": "z"}
    for wrong, field in (({"name": [], "template": "x"}, "name"), ({"name": "y"}, "template")):
        write_folder(tmp_path, backend, tokenizer_config={"chat_template": [good, wrong]})
        with pytest.raises(ModelFileError, match=rf"chat_template\[1\]\.{field} is "):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config", "generation_config", "config"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused_by_name(name, content, backend, tmp_path):
    write_folder(tmp_path, backend)
    (tmp_path / f"{name}.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"{name}\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("eos", ["two", [1, "2"], -1, True, 1.5])
def test_an_eos_list_that_holds_no_ids_is_refused(eos, backend, tmp_path):
    write_folder(tmp_path, backend, generation_config={"eos_token_id": eos})
    with pytest.raises(ModelFileError, match=r"generation_config\.json: eos_token_id"):
        load_tokenizer(tmp_path)


def test_an_unknown_decoder_still_decodes():
    ours = Tokenizer(metaspace_backend())
    assert not ours.byte_exact
    assert ours.decode([1, 2]) == "the fox"


HOSTILE = {"type": "Split", "pattern": {"Regex": "(?:q|q){18}[^q]"}, "behavior": "Isolated",
           "invert": False}  # fmt: skip


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
def test_a_regular_expression_that_nobody_published_is_refused(part, backend, tmp_path):
    write_folder(tmp_path, backend)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    step = {"type": "Replace", "pattern": HOSTILE["pattern"], "content": ""}
    description[part] = HOSTILE if part == "pre_tokenizer" else step
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ModelFileError, match=rf"tokenizer\.json: .*18.* of its {part} is not"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, allow_unknown_pretokenizer=True).encode("<tool>") == [3]


def test_a_folder_of_deepseek_llm_splits_as_its_gguf_file_does(small_metadata, tmp_path):
    metadata = {**small_metadata, PREFIX + "pre": "deepseek-llm"}
    ours = tokenizer_from_gguf(metadata, "small.gguf")
    ours.save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    for step in description["pre_tokenizer"]["pretokenizers"]:
        if step.get("pattern", {}).get("Regex") == BLANK_END:
            step["pattern"]["Regex"] = r"\s+$"
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    loaded = load_tokenizer(tmp_path)
    texts = [*TEXTS, "a \t ", "a\n \n", "\t " * 20_000 + "x"]
    assert [loaded.encode(text) for text in texts] == [ours.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 4),
        ("no_repeat_ngram_size", 3),
        ("suppress_tokens", [5]),
        ("stop_strings", ["x"]),
        ("forced_bos_token_id", 1),
        ("guidance_scale", 1.5),
    ],
)
def test_a_generation_config_that_asks_for_what_is_not_there_is_refused(
    key, value, backend, tmp_path
):
    harmless = {"num_beams": 1, "suppress_tokens": [], "guidance_scale": 1.0, "stop_strings": None,
                "temperature": 0.6, "do_sample": True, "min_length": 0}  # fmt: skip
    write_folder(tmp_path, backend, generation_config=harmless)
    load_tokenizer(tmp_path)
    write_folder(tmp_path, backend, generation_config=harmless | {key: value})
    with pytest.raises(ModelFileError, match=rf"generation_config\.json: {key} is .*supported"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("key", "neutral", "said"),
    [
        *((key, 1, "nothing or 1") for key in ("num_beams", "num_beam_groups", "guidance_scale")),
        *(
            (key, 0, "nothing or 0")
            for key in ("no_repeat_ngram_size", "min_length", "min_new_tokens", "penalty_alpha")
        ),
        *(
            (key, {}, "nothing or [] or {}")
            for key in ("bad_words_ids", "force_words_ids", "stop_strings", "sequence_bias")
        ),
        *((key, [], "nothing or []") for key in ("suppress_tokens", "begin_suppress_tokens")),
        *(
            (key, None, "nothing")
            for key in (
                *("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"),
                *("dola_layers", "watermarking_config", "exponential_decay_length_penalty"),
            )
        ),
    ],
)
def test_what_a_generation_config_may_not_ask_for_is_taken_where_it_asks_for_nothing(
    key, neutral, said
):
    fields = file_fields("generation_config.json", {key: neutral})
    _check_generation(fields)
    with pytest.raises(ModelFileError) as caught:
        _check_generation(file_fields("generation_config.json", {key: 7}))
    expected = f"generation_config.json: {key} is 7; expected {said}: it is not supported"
    assert caught.value.message == expected


def replaced(text, content):
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def charsmap(*texts):
    """As SentencePiece writes one, with an empty table."""
    content = (0).to_bytes(4, "little") + b"".join(text.encode() + b"\0" for text in texts)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


@pytest.mark.parametrize(
    ("steps", "is_taken"),
    [
        ([replaced("a", "b" * 65)], False),
        ([replaced("aa", "b" * 128), replaced("c", "dd")], False),
        ([replaced("a", "b" * 64)], True),
        ([replaced("a" * 100, "b" * 200), {"type": "Sequence", "normalizers": []}], True),
        ([{"type": "Sequence", "normalizers": [replaced("a", "aaaaaaaaa")] * 2}], False),
        ([{"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "a" * 70}], False),
        ([{"type": "Prepend", "prepend": "a" * 65}], False),
        ([charsmap("a" * 10, "b" * 65)], False),
    ],
)
def test_a_normalizer_that_makes_texts_many_times_longer_is_refused(
    steps, is_taken, backend, tmp_path
):
    """A line of text could take all memory."""
    write_folder(tmp_path, backend)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    if is_taken:
        assert load_tokenizer(tmp_path).encode("a")
    else:
        with pytest.raises(ModelFileError, match="normalizer makes texts more than 64 times long"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0], ["a" * 520, -2.0]], "unk_id": 0},
        {"type": "WordPiece", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>",
         "continuing_subword_prefix": "##", "max_input_chars_per_word": 1000},
    ],
)  # fmt: skip
def test_a_model_whose_time_is_the_square_of_a_text_is_refused(model, tmp_path):
    write_folder(tmp_path, None, tokenizer={"version": "1.0", "model": model})
    with pytest.raises(ModelFileError, match="tries up to .* characters at each; 512 are allowed"):
        load_tokenizer(tmp_path)
