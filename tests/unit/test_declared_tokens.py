"""Special tokens that a folder declares outside tokenizer.json, read as `transformers` does."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocabularies import (
    byte_level_metadata,
    hugging_face_backend,
    sentencepiece_metadata,
    train_sentencepiece,
)

from marlin.errors import ModelFileError
from marlin.text.folder_tokenizer import load_tokenizer
from marlin.text.gguf_tokenizer import tokenizer_from_gguf

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
# Declared in no tokenizer.json here: the first two are in its vocabulary, the others are not.
TOKENS = ("|in|", "|too|", "|new|", "|more|")
TEXTS = ["a|in|b |too| c", "|new|", " |more| |new|x", "a|in||too|", "<|im_start|> |in |", "|NEW|"]
IN_VOCABULARY = 2


@pytest.fixture(scope="module")
def backend():
    """Bytes and a few merges, and ids 5 and 6 for the first two of TOKENS."""
    metadata = dict(byte_level_metadata("gpt-2", num_merges=40))
    tokens = list(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = tokens + list(TOKENS[:IN_VOCABULARY])
    return hugging_face_backend(metadata, [BYTE_LEVEL])


@pytest.fixture(scope="module", params=["bytes", "gemma"])
def any_backend(request, backend):
    """That, or pieces as Gemma has them: blanks are written, and what has no piece is bytes."""
    if request.param == "bytes":
        return backend
    metadata = sentencepiece_metadata(train_sentencepiece())
    for place, text in enumerate(TOKENS[:IN_VOCABULARY], -IN_VOCABULARY):
        metadata["tokenizer.ggml.tokens"][place] = text
    pieces = tokenizer_from_gguf(metadata, "small.gguf")._backend
    pieces.normalizer = normalizers.Replace(" ", "\u2581")
    pieces.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return pieces


def write(folder, backend, files):
    for old in folder.glob("*.json"):
        old.unlink()
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def check_equal(folder):
    """Same ids, and the same names for templates, as transformers gives; or a refusal by name."""
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = load_tokenizer(folder)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        ), text
    assert ours.named_tokens == theirs.special_tokens_map
    for id, token in theirs.added_tokens_decoder.items():
        assert ours.is_special(id) >= token.special, token
    return ours


def added(content, **flags):
    return {"__type": "AddedToken", "content": content, "normalized": True, **flags}


def last_id(backend):
    return backend.get_vocab_size(with_added_tokens=True)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"pad_token": "|new|"}},
        {"tokenizer_config": {"unk_token": added("|in|", lstrip=True)}},
        {"tokenizer_config": {"image_token": "|more|", "extra_special_tokens": ["|in|"]}},
        {"tokenizer_config": {"additional_special_tokens": ["|in|", added("|new|")]}},
        {"tokenizer_config": {"extra_special_tokens": {"video_token": "|too|"}}},
        {
            "tokenizer_config": {
                "extra_special_tokens": ["|in|"],
                "additional_special_tokens": ["|new|", "|too|"],
            },
            "special_tokens_map": {"additional_special_tokens": ["|more|"]},
        },
        {"special_tokens_map": {"additional_special_tokens": ["|in|"], "mask_token": "|too|"}},
        {"special_tokens_map": {"cls_token": {"content": "|in|", "rstrip": True}}},
        {"tokenizer_config": {"sep_token": "|in|"}, "special_tokens_map": {"sep_token": "|too|"}},
        {"tokenizer_config": {"bos_token": "|in|"}, "special_tokens_map": {"eos_token": "|too|"}},
    ],
    ids=repr,
)
def test_a_token_is_special_wherever_transformers_finds_it(files, backend, tmp_path):
    write(tmp_path, backend, files)
    ours = check_equal(tmp_path)
    assert len(ours.encode(TEXTS[0])) + len(ours.encode(TEXTS[2])) < sum(map(len, TEXTS[0:3:2]))


def test_tokens_may_be_listed_by_their_ids(backend, tmp_path):
    id = backend.token_to_id("|in|")
    listed = {str(id): {"content": "|in|", "special": True}}
    listed[str(last_id(backend))] = {"content": "|new|", "lstrip": True, "normalized": False}
    write(tmp_path, backend, {"tokenizer_config": {"added_tokens_decoder": listed}})
    ours = check_equal(tmp_path)
    assert ours.encode("a|in|b", add_special_tokens=False)[1] == id
    write(tmp_path, backend, {"added_tokens": {"|in|": id, "|new|": last_id(backend)}})
    assert not check_equal(tmp_path).is_special(id)
    special = {"pad_token": "|in|"}
    write(tmp_path, backend, {"added_tokens": {"|in|": id}, "special_tokens_map": special})
    assert check_equal(tmp_path).is_special(id)


def test_a_list_by_ids_hides_the_older_files(backend, tmp_path):
    files = {
        "tokenizer_config": {"added_tokens_decoder": {}},
        "special_tokens_map": {"pad_token": "|in|"},
        "added_tokens": {"|too|": backend.token_to_id("|too|")},
    }
    write(tmp_path, backend, files)
    assert check_equal(tmp_path).named_tokens == {}


@pytest.mark.parametrize("name", ["added_tokens_decoder", "extra_special_tokens"])
def test_a_token_that_is_null_is_not_there(name, backend, tmp_path):
    write(tmp_path, backend, {"tokenizer_config": {}})
    plain = load_tokenizer(tmp_path)
    write(tmp_path, backend, {"tokenizer_config": {name: {"5": None}}})
    ours = load_tokenizer(tmp_path)
    assert ours.named_tokens == plain.named_tokens == {}
    assert [ours.encode(text) for text in TEXTS] == [plain.encode(text) for text in TEXTS]


def test_an_id_that_the_vocabulary_does_not_give_is_refused(backend, tmp_path):
    for files in (
        {"added_tokens": {"|in|": 3}},
        {"tokenizer_config": {"added_tokens_decoder": {"999": {"content": "|new|"}}}},
    ):
        write(tmp_path, backend, files)
        with pytest.raises(ModelFileError, match=r"token '\|.*\|' is said to be"):
            load_tokenizer(tmp_path)
    write(tmp_path, backend, {})
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["added_tokens"][0]["id"] = 4
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: token '<\|endoftext\|>' is said"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"tokenizer_config": {"bos_token": 5}}, "bos_token"),
        ({"tokenizer_config": {"bos_token": {"lstrip": True}}}, "bos_token.content"),
        ({"tokenizer_config": {"pad_token": added("a", lstrip=1)}}, "pad_token.lstrip"),
        ({"tokenizer_config": {"additional_special_tokens": "a"}}, "additional_special_tokens"),
        ({"tokenizer_config": {"extra_special_tokens": ["a", 7]}}, "extra_special_tokens[1]"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "decoder.x"),
        ({"tokenizer_config": {"added_tokens_decoder": {"5": {}}}}, "decoder.5.content"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"split_special_tokens": "no"}}, "split_special_tokens"),
        ({"tokenizer_config": {"add_bos_token": "yes"}}, "add_bos_token"),
        ({"special_tokens_map": {"eos_token": ["a"]}}, "eos_token"),
        ({"added_tokens": {"a": "b"}}, "a"),
    ],
    ids=repr,
)
def test_a_declaration_of_the_wrong_type_is_refused_by_name(files, name, backend, tmp_path):
    write(tmp_path, backend, files)
    with pytest.raises(ModelFileError) as caught:
        load_tokenizer(tmp_path)
    file = next(iter(files))
    assert f"{file}.json: " in caught.value.message and f"{name} is" in caught.value.message


def test_special_tokens_can_be_split_like_text(backend, tmp_path):
    write(tmp_path, backend, {"tokenizer_config": {"split_special_tokens": True}})
    assert len(check_equal(tmp_path).encode("<|im_start|>")) > 1


TOKEN = st.sampled_from(TOKENS)
FLAGS = st.fixed_dictionaries(
    {}, optional={name: st.booleans() for name in ("lstrip", "rstrip", "normalized", "single_word")}
)
OBJECT = st.builds(lambda content, flags: {"content": content, **flags}, TOKEN, FLAGS)
TYPED = st.builds(lambda value: {"__type": "AddedToken", **value}, OBJECT)
CONFIG_TOKEN = TOKEN | TYPED
NAMES = st.sampled_from(
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
)
LISTS = st.lists(CONFIG_TOKEN, max_size=3)


def without_empty(values):
    return {key: value for key, value in values.items() if value not in (None, {})}


CONFIG = st.builds(
    lambda named, own, values: {**named, **own, **without_empty(values)},
    st.dictionaries(NAMES, st.none() | CONFIG_TOKEN, max_size=3),
    st.dictionaries(st.sampled_from(["image_token", "boi_token"]), TOKEN, max_size=1),
    st.fixed_dictionaries(
        {},
        optional={
            "additional_special_tokens": st.none() | LISTS,
            "extra_special_tokens": LISTS
            | st.dictionaries(st.sampled_from(["video_token", "x"]), TOKEN, max_size=2),
            "split_special_tokens": st.booleans(),
        },
    ),
)
# A null in special_tokens_map.json takes a token away in transformers; here it is absent.
MAP = st.builds(
    lambda named, extra: {**named, **extra},
    st.dictionaries(NAMES, TOKEN | OBJECT, max_size=3),
    st.fixed_dictionaries({}, optional={"additional_special_tokens": st.lists(TOKEN, max_size=3)}),
)


def ids_in_order(backend, texts):
    """Ids as a writer gives them: the vocabulary's, then new ones in order."""
    next_id, found = last_id(backend), {}
    for text in dict.fromkeys(texts):
        found[text] = backend.token_to_id(text)
        if found[text] is None:
            found[text], next_id = next_id, next_id + 1
    return found


@settings(max_examples=200)
@given(
    config=st.none() | CONFIG,
    mapped=st.none() | MAP,
    legacy=st.none() | st.lists(TOKEN, max_size=3),
    listed=st.none() | st.lists(st.tuples(TOKEN, FLAGS, st.booleans()), max_size=4),
)
def test_folders_at_random_read_as_transformers_reads_them(
    any_backend, tmp_path, config, mapped, legacy, listed
):
    files = {"tokenizer_config": dict(config or {})}
    if listed is not None:
        ids = ids_in_order(any_backend, [text for text, _, _ in listed])
        files["tokenizer_config"]["added_tokens_decoder"] = {
            str(ids[text]): {"content": text, **flags, "special": special}
            for text, flags, special in listed
        }
    if mapped is not None:
        # Of the newest spelling beside the oldest, what transformers takes is an accident.
        if isinstance((config or {}).get("extra_special_tokens"), dict):
            mapped = {**mapped, "additional_special_tokens": None}
        files["special_tokens_map"] = without_empty(mapped)
    # That another file calls a token of added_tokens.json special, transformers notices only where
    # it is spelled as text in tokenizer_config.json; its ids are the same unless it is split.
    if legacy is not None and not (config or {}).get("split_special_tokens"):
        files["added_tokens"] = ids_in_order(any_backend, legacy)
    if config is None and listed is None:
        del files["tokenizer_config"]
    write(tmp_path, any_backend, files)
    try:
        check_equal(tmp_path)
    except ModelFileError as error:
        assert error.message.endswith("is declared with two sets of flags in turns")


def test_a_token_with_flags_and_others_and_the_first_again_is_refused(backend, tmp_path):
    word, plain = {"content": "|in|", "single_word": True}, {"content": "|in|"}
    write(tmp_path, backend, {"special_tokens_map": {"bos_token": plain, "eos_token": word}})
    check_equal(tmp_path)
    named = {"bos_token": plain, "eos_token": word, "unk_token": "|in|"}
    write(tmp_path, backend, {"special_tokens_map": named})
    with pytest.raises(ModelFileError, match=r"'\|in\|' is declared with two sets of flags"):
        load_tokenizer(tmp_path)
