"""Where a model is, and what is said to whoever gives something else."""

import os

import pytest

from marlin.errors import ModelFileError
from marlin.models.place import is_folder


def test_a_folder_and_a_file_are_told_apart(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "a.gguf").touch()
    assert is_folder(tmp_path) is True
    assert is_folder(tmp_path / "a.gguf") is False
    (tmp_path / "link").symlink_to("a.gguf")
    assert is_folder(tmp_path / "link") is False


def test_a_folder_that_only_has_models_in_it_names_them(tmp_path):
    for name in ("b.gguf", "a.gguf", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ModelFileError, match="with a.gguf, b.gguf in it; give the file's own path"):
        is_folder(tmp_path)
    for number in range(4):
        (tmp_path / f"c{number}.gguf").touch()
    with pytest.raises(ModelFileError, match="with a.gguf, b.gguf, c0.gguf and 3 more in it"):
        is_folder(tmp_path)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-4B-MLX-4bit", "bartowski/Llama-3.2-1B.gguf"])
def test_a_hubs_name_is_told_that_nothing_is_downloaded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="no such file or folder.*nothing is downloaded here"):
        is_folder(name)


@pytest.mark.parametrize("name", ["/models/a.gguf", "./a/b", "models/a.gguf", "a", "a/b/c"])
def test_a_mistyped_path_is_not_taken_for_a_hubs_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelFileError) as caught:
        is_folder(name)
    assert "no such file or folder; expected a .gguf file" in caught.value.message
    assert "hub" not in caught.value.message


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="neither a regular file nor a folder"):
        is_folder(tmp_path / "pipe")
