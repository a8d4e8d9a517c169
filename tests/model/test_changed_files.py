"""Model files that are changed while they are served: the server ends and says which."""

import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from http.client import HTTPException

import pytest
from served import PATIENCE_S, Served
from tiny_models import random_tensors, tiny_config, write_folder
from vocabularies import byte_level_metadata, hugging_face_backend

from marlin.engine import load
from marlin.engine.load import load_model
from marlin.errors import MarlinError, ModelFileError
from marlin.files.manifest import make_manifest, read_manifest

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder whose weights are a few hundred pages."""
    metadata = byte_level_metadata("gpt-2", num_merges=40)
    backend = hugging_face_backend(metadata, [BYTE_LEVEL])
    config = tiny_config(vocab_size=backend.get_vocab_size() + 4, hidden_dim=256)
    folder = tmp_path_factory.mktemp("original")
    write_folder(folder, config, random_tensors(config, seed=0))
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def truncate(path):
    os.truncate(path, 4096)


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))


def complete(served):
    body = {
        "model": "model",
        "prompt": "a",
        "max_tokens": 400,
        "ignore_eos": True,
        "temperature": 0,
    }
    return served.ask("POST", "/v1/completions", body)


def ask_until_it_ends(served):
    """Requests for as long as there is a server; they are what it looks at its files for."""
    end = time.monotonic() + PATIENCE_S
    while served.process.poll() is None and time.monotonic() < end:
        with suppress(OSError, HTTPException):
            complete(served)
    return served.process.wait(1)


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("change", [truncate, overwrite])
def test_a_file_that_is_changed_in_place_ends_the_server(change, folder):
    with Served(folder, "--host", "127.0.0.1", "--threads", "1") as served:
        assert complete(served)[0] == 200
        change(folder / "model.safetensors")
        assert ask_until_it_ends(served) == 1
        said = [line for line in served.log().splitlines() if "model.safetensors" in line]
        assert len(said) == 1 and ("changed in place" in said[0] or "truncated" in said[0])


def test_a_file_that_is_replaced_is_served_on(folder):
    path = folder / "model.safetensors"
    with Served(folder, "--host", "127.0.0.1", "--threads", "1") as served:
        status, before = complete(served)
        assert status == 200
        shutil.copy(path, folder / "new")
        overwrite(folder / "new")
        os.rename(folder / "new", path)
        status, after = complete(served)
        assert (status, after["choices"]) == (200, before["choices"])


def test_no_worker_is_replaced_by_one_of_other_files(folder):
    words = (folder, "--host", "127.0.0.1", "--threads", "1", "--workers", "2")
    with Served(*words) as served:
        assert complete(served)[0] == 200
        truncate(folder / "model.safetensors")
        assert ask_until_it_ends(served) == 1
        assert "no worker can be replaced" in served.log()


@pytest.fixture
def manifest(folder, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(make_manifest(str(folder)).encode())
    return path


@pytest.mark.parametrize("num_workers", [1, 2])
def test_nothing_that_happens_on_disk_changes_what_a_manifest_pinned(num_workers, folder, manifest):
    words = (folder, "--host", "127.0.0.1", "--threads", "1", "--workers", num_workers)
    with Served(*words, "--manifest", manifest) as served:
        if num_workers == 2:
            served.wait_for_workers(2)
        status, before = complete(served)
        assert status == 200
        overwrite(folder / "model.safetensors")
        (folder / "tokenizer.json").unlink()
        (folder / "config.json").write_text("{}")
        (folder / "chat_template.jinja").write_text("{{ 'other' }}")
        if num_workers == 2:
            pid = int(re.findall(r"worker 0 \(process (\d+)\) serves", served.log())[0])
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: len(re.findall(r"worker 0 .* serves", served.log())) == 2)
        answers = [complete(served) for _ in range(4)]
        facts = {(status, str(answer["choices"])) for status, answer in answers}
        assert facts == {(200, str(before["choices"]))}
        assert {a["system_fingerprint"] for _, a in answers} == {before["system_fingerprint"]}


def test_the_manifest_is_in_the_fingerprint_the_card_and_the_log(folder, manifest):
    digest = read_manifest(str(manifest)).digest
    words = (folder, "--host", "127.0.0.1", "--threads", "1")
    with Served(*words) as served:
        _, plain = complete(served)
        assert served.ask("GET", "/v1/models/model")[1]["config"]["manifest"] is None
    with Served(*words, "--manifest", manifest) as served:
        _, pinned = complete(served)
        assert served.ask("GET", "/v1/models/model")[1]["config"]["manifest"] == digest
        assert digest in served.log()
    assert plain["choices"] == pinned["choices"]
    assert plain["system_fingerprint"] != pinned["system_fingerprint"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_model_that_is_not_its_manifests_is_not_served(num_workers, folder, manifest):
    overwrite(folder / "model.safetensors")
    words = (folder, "--host", "127.0.0.1", "--workers", num_workers, "--manifest", manifest)
    with pytest.raises(AssertionError, match=r"model\.safetensors: its SHA-256 is \w+, and the"):
        Served(*words)


def test_errors_of_a_sealed_model_name_the_models_own_path(folder, manifest):
    (folder / "config.json").write_text("{}")
    manifest.write_text(make_manifest(str(folder)).encode())
    with pytest.raises(AssertionError, match=re.escape(f"metal-marlin: {folder}/config.json: ")):
        Served(folder, "--host", "127.0.0.1", "--manifest", manifest)


def test_a_file_that_is_changed_while_it_is_loaded_is_refused(folder, monkeypatch):
    def change_first(*arguments):
        overwrite(folder / "model.safetensors")
        return model(*arguments)

    model = load.Model
    monkeypatch.setattr(load, "Model", change_first)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: was changed since"):
        load_model(str(folder), num_threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_load_that_fails_leaves_no_threads_behind(folder):
    (folder / "tokenizer.json").write_text("{}")
    before = len(os.listdir("/proc/self/task"))
    for options in ({}, {"max_context_tokens": 7}):
        with pytest.raises(MarlinError) as caught:
            load_model(str(folder), num_threads=8, **options)
        # Whoever keeps the error keeps what its frames have.
        assert caught.value.__traceback__ is not None
    assert len(os.listdir("/proc/self/task")) == before
