"""What a folder and a GGUF header declare of vectors, and what is refused of it."""

import json

import pytest
from gguf_builder import build

from marlin.engine.load import check_case
from marlin.errors import ModelFileError
from marlin.models.pooling import Pooling, pooling_of_folder, pooling_of_gguf, write_pooling
from marlin.weights.gguf import GGUFFile

TYPES = "sentence_transformers.models."
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": TYPES + "Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": TYPES + "Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": TYPES + "Normalize"}


def write(folder, name, value):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def declared(folder, modules, pooling=None, sentence=None):
    write(folder, "modules.json", modules)
    if pooling is not None:
        write(folder, "1_Pooling/config.json", pooling)
    if sentence is not None:
        write(folder, "sentence_bert_config.json", sentence)
    return pooling_of_folder(str(folder))


def test_a_folder_without_modules_declares_nothing(tmp_path):
    assert pooling_of_folder(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "word_embedding_dimension": 384}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_pooling_module_says_how(tmp_path, mode, kind):
    modules = [TRANSFORMER, POOLING, NORMALIZE]
    assert declared(tmp_path, modules, mode) == Pooling(kind, True, True, None)


def test_without_a_normalization_vectors_keep_their_length(tmp_path):
    found = declared(
        *(tmp_path, [TRANSFORMER, POOLING], {"pooling_mode_mean_tokens": True}),
        sentence={"max_seq_length": 256, "do_lower_case": False},
    )
    assert found == Pooling("mean", False, True, 256)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ({}, "must be an array|expected an array"),
        ([TRANSFORMER], "has no pooling module"),
        ([TRANSFORMER, POOLING, POOLING], "each once and in this order"),
        (
            [TRANSFORMER, POOLING, {**NORMALIZE, "type": TYPES + "Dense"}],
            r"modules\[2\] is a module Dense",
        ),
        ([NORMALIZE, TRANSFORMER, POOLING], "each once and in this order"),
        ([TRANSFORMER, {**POOLING, "path": "../1_Pooling"}], "outside the model's folder"),
        ([TRANSFORMER, {**POOLING, "path": "/etc"}], "outside the model's folder"),
        ([TRANSFORMER, {**POOLING, "path": "none"}], "none/config.json"),
        (["a"], "an object"),
    ],
)
def test_modules_of_another_kind_are_refused_by_name(tmp_path, modules, says):
    with pytest.raises(ModelFileError, match=says):
        declared(tmp_path, modules, {"pooling_mode_mean_tokens": True})


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ({}, "must set one of pooling_mode_cls_token"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "must set one of"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "max_tokens is True"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens is True"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, "include_prompt is False"),
        ({"pooling_mode": "max"}, "pooling_mode is 'max'"),
        ({"pooling_mode_mean_tokens": "yes"}, "true or false"),
    ],
)
def test_another_way_of_pooling_is_refused_by_name(tmp_path, mode, says):
    with pytest.raises(ModelFileError, match=says):
        declared(tmp_path, [TRANSFORMER, POOLING], mode)


@pytest.mark.parametrize("kind", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("of_texts", [(None, False), (256, False), (None, True), (256, True)])
def test_what_is_written_is_read_back(tmp_path, kind, normalised, of_texts):
    pooling = Pooling(kind, normalised, True, *of_texts)
    write_pooling(str(tmp_path), pooling)
    assert pooling_of_folder(str(tmp_path)) == pooling


def test_a_prompt_before_every_text_is_refused(tmp_path):
    name, modules = "config_sentence_transformers.json", [TRANSFORMER, POOLING]
    for prompts, default in (({}, None), ({"query": "find: "}, None), ({"query": ""}, "query")):
        write(tmp_path, name, {"prompts": prompts, "default_prompt_name": default})
        assert declared(tmp_path, modules, {"pooling_mode_mean_tokens": True})
    write(tmp_path, name, {"prompts": {"query": "find: "}, "default_prompt_name": "query"})
    with pytest.raises(ModelFileError, match="default_prompt_name is 'query'"):
        declared(tmp_path, modules, {"pooling_mode_mean_tokens": True})


class Cased:
    def encode(self, text):
        return list(text.encode())


class Uncased:
    def encode(self, text):
        return list(text.lower().encode())


def test_a_model_of_lower_case_needs_a_tokenizer_that_sees_to_it():
    lowers = Pooling("cls", lowers_case=True)
    check_case("folder", lowers, Uncased())  # as bge's folders are
    check_case("folder", Pooling("cls"), Cased())
    check_case("folder", None, Cased())
    with pytest.raises(ModelFileError, match="do_lower_case is true"):
        check_case("folder", lowers, Cased())


@pytest.mark.parametrize(
    ("number", "kind"), [(None, None), (0, None), (1, "mean"), (2, "cls"), (3, "last")]
)
def test_a_gguf_header_says_how_by_a_number(tmp_path, number, kind):
    expected = None if kind is None else Pooling(kind, True, True, None)
    assert pooling_of_gguf(header(tmp_path, number)) == expected


@pytest.mark.parametrize("number", [4, 5])
def test_a_gguf_header_of_a_rerankers_head_is_refused_by_name(tmp_path, number):
    with pytest.raises(ModelFileError, match=f"qwen3.pooling_type is {number}; expected 1"):
        pooling_of_gguf(header(tmp_path, number))


def header(folder, number):
    metadata = [("general.architecture", "str", "qwen3")]
    metadata += [] if number is None else [("qwen3.pooling_type", "u32", number)]
    path = folder / "model.gguf"
    path.write_bytes(build(metadata))
    return GGUFFile(path)
