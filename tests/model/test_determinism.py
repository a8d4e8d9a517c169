"""`metal-marlin selftest --determinism`: what it runs really happens, and what is not equal, or did
not happen, fails it."""

import json

import pytest
from tiny_models import random_tensors, tiny_config, write_folder
from vocabularies import byte_level_metadata, hugging_face_backend

from marlin.cli import main
from marlin.commands import determinism
from marlin.engine.load import load_model
from marlin.engine.mock import load_mock

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
RUNS = ("alone", "cached", "speculated", "batched", "batched, cached", "preempted",
        "preempted, speculated")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    backend = hugging_face_backend(
        byte_level_metadata("gpt-2", num_merges=40), [BYTE_LEVEL | {"use_regex": True}]
    )
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config(vocab_size=backend.get_vocab_size() + 4, max_context_tokens=512)
    write_folder(folder, config, random_tensors(config, seed=0))
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_every_way_of_running_is_shown_and_gives_the_same(folder, capsys):
    code = main(["selftest", "--device", "cpu", "--json", "--determinism", str(folder)])
    printed = capsys.readouterr()
    assert printed.out, printed.err
    said = json.loads(printed.out)
    assert tuple(run["run"] for run in said["runs"]) == RUNS
    assert {run["same"] for run in said["runs"]} == {8}
    assert all(run["seen"] != 0 for run in said["runs"])
    assert (code, said["passed"]) == (0, True)


def test_an_answer_that_differs_in_one_token_fails_by_its_run(folder):
    def load(*words, batching, **more):
        model = load_model(*words, batching=batching, **more)
        if batching is not None:
            submit = model.engine.submit

            def with_another_seed(ids, params, request_id):
                seed = params.seed + (request_id == "determinism-4")
                return submit(ids, determinism.replace(params, seed=seed), request_id)

            model.engine.submit = with_another_seed
        return model

    rows = {row.name: row for row in determinism.check(str(folder), "cpu", load)}
    assert rows["alone"].passed and rows["cached"].passed
    assert (rows["batched"].same, rows["batched"].passed) == (7, False)
    assert "batched                    7 / 8          FAILED" in determinism.report(
        list(rows.values()), False
    )


def test_a_run_in_which_nothing_was_cached_put_back_or_guessed_is_not_shown():
    def load(path, **_more):
        return load_mock(path)

    rows = determinism.check("mock", None, load)
    missing = [row.name for row in rows if not row.passed]
    assert {"speculated", "preempted"} <= set(missing)
    assert determinism.report(rows, False).count("NOT SHOWN") == len(missing)
