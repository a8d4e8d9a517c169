"""A draft model from files: what it must have in common with the model, what the two take together,
and that programs and commands get the same answers with it."""

import json
import shutil

import pytest
from tiny_models import open_device, random_tensors, tiny_bert_config, tiny_config, write_folder
from vocabularies import byte_level_metadata, hugging_face_backend

import marlin
from marlin import cli
from marlin.engine.kv_cache import Paging
from marlin.engine.load import Batching, load_model
from marlin.engine.load_draft import DraftFiles
from marlin.engine.memory import MemoryBudget, check_memory
from marlin.errors import ConfigError, ModelFileError
from marlin.models.registry import spec_of

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
ASKED = {"max_tokens": 40, "temperature": 1.0, "seed": 3, "ignore_eos": True}


def write(folder, seed, num_merges=40, **changes):
    """A model folder with a byte-level tokenizer."""
    backend = hugging_face_backend(
        byte_level_metadata("gpt-2", num_merges=num_merges), [BYTE_LEVEL | {"use_regex": True}]
    )
    size = changes.pop("vocab_size", backend.get_vocab_size() + 4)
    config = tiny_config(vocab_size=size, max_context_tokens=512, **changes)
    write_folder(folder, config, random_tensors(config, seed=seed))
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(a model, a smaller one of its vocabulary, padded to another length)."""
    big = write(tmp_path_factory.mktemp("big"), 0)
    return big, write(tmp_path_factory.mktemp("small"), 1, num_layers=1, vocab_size=320)


@pytest.mark.parametrize("batching", [None, Batching(40, 16, 3)], ids=["one", "batch"])
@pytest.mark.parametrize("which", [0, 1], ids=["itself", "another"])
def test_a_program_gets_the_same_answers_with_a_draft_model(folders, which, batching):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    asked = ASKED, {**ASKED, "response_format": shape, "ignore_eos": False}
    found = []
    for more in ({}, {"speculative": "draft", "draft_model": folders[which]}):
        with marlin.open_model(folders[0], batching=batching, device="cpu", **more) as model:
            found.append([model.generate("Hello there", **one).text for one in asked])
            if more:
                pace = model._served.engine._draft_model.pace
    assert found[0] == found[1]
    assert pace.trust._tried > 0, "nothing was guessed"
    if which == 0:
        assert pace.trust._right == pace.trust._tried, "a guess of the model itself was wrong"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speculative": "draft"}, "--draft-model PATH"),
        ({"draft_model": "x"}, "--draft-model is for --speculative draft"),
        ({"draft_model": "x", "speculative": "ngram"}, "--draft-model is for --speculative draft"),
    ],
    ids=str,
)
def test_a_draft_model_without_its_method_is_refused_and_the_reverse(folders, given, message):
    with pytest.raises(ConfigError, match=message):
        load_model(folders[0], device_kind="cpu", **given)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    arguments = cli.read(["serve", str(folders[0]), "--check", *words], {})
    from marlin.commands import serve

    with pytest.raises(ConfigError, match=message):
        serve.run(arguments)


def test_a_manifest_is_of_one_model(folders):
    from marlin.commands import serve

    words = ["--speculative", "draft", "--draft-model", str(folders[1]), "--manifest", "m.json"]
    arguments = cli.read(["serve", str(folders[0]), "--check", *words], {})
    with pytest.raises(ConfigError, match="serve without --draft-model"):
        serve.run(arguments)


def refused(folders, draft, message, kind=ConfigError):
    with pytest.raises(kind, match=message):
        load_model(folders[0], device_kind="cpu", speculative="draft", draft_model=str(draft))


def test_another_vocabulary_is_refused_by_its_size_or_its_first_token(folders, tmp_path):
    more = write(tmp_path / "more", 1, num_merges=41)
    with marlin.open_model(folders[0], device="cpu") as model:
        own = model._served.tokenizer.vocab_size
    refused(folders, more, f"has another vocabulary than the model: {own + 1} tokens, not {own}")
    other = shutil.copytree(folders[1], tmp_path / "other")
    said = json.loads((other / "tokenizer.json").read_text())
    ids = said["model"]["vocab"]
    ids["A"], ids["C"] = ids["C"], ids["A"]
    (other / "tokenizer.json").write_text(json.dumps(said))
    refused(folders, other, f"2 tokens differ, the first is {ids['C']}, b'C' and not b'A'")


def test_an_encoder_and_what_is_no_model_are_refused(folders, tmp_path):
    config = tiny_bert_config(architecture="bert")
    encoder = write_folder(tmp_path / "encoder", config, random_tensors(config, seed=0))
    refused(folders, encoder, "is an encoder, which guesses nothing")
    refused(folders, tmp_path / "nothing", "nothing", ModelFileError)


def test_memory_admits_both_models_and_counts_the_cache_of_each(folders):
    """What the draft model holds, and what a context is then cut to."""
    device = open_device(None)
    try:
        draft = DraftFiles(folders[1], device, None, "float16")
        spec, paging = spec_of(tiny_config()), Paging.contiguous(512)
        beside = draft.bytes_beside(256, 1)
        # A layer of 2 heads of 16 numbers of key and of value, 2 bytes each.
        assert beside(Paging.contiguous(512)) - beside(Paging.contiguous(256)) >= 256 * 128
        alone = MemoryBudget(1 << 22, 0)
        both = MemoryBudget(1 << 22, draft.weight_bytes, 1, beside)
        assert both.context_that_fits(spec, 0) <= alone.context_that_fits(spec, 0)
        small = MemoryBudget(beside(paging) + 1000, 0, 1, beside)
        with pytest.raises(ConfigError, match=r"and a draft model's cache and activations \d+ MiB"):
            check_memory(small, spec, paging, 256, 1)
    finally:
        device.close()
    with marlin.open_model(folders[0], device="cpu", max_context_tokens=512) as model:
        plain = model._served.engine.stats().kv_bytes
    given = {"speculative": "draft", "draft_model": folders[1]}
    with marlin.open_model(folders[0], device="cpu", max_context_tokens=512, **given) as model:
        assert model._served.engine.stats().kv_bytes == plain + plain // 2


def test_a_plan_counts_the_draft_model(folders, capsys):
    words = ["plan", str(folders[0]), "--memory", "1", "--context", "512", "--bandwidth", "100"]
    found = []
    for more in ([], ["--draft-model", str(folders[1])]):
        assert cli.main([*words, "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["memory"])
    plain, beside = found
    assert beside.pop("draft_bytes") > plain["kv_bytes"] // 2
    most = "streams_that_fit"
    assert beside.pop(most) <= plain.pop(most) and beside == plain
