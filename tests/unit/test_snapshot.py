"""Files of a model that change while it is in use."""

import os

import pytest

from marlin.errors import ModelFileError
from marlin.files.snapshot import Snapshot


@pytest.fixture
def folder(tmp_path):
    for name in ("model.safetensors", "config.json", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text(name)
    return tmp_path


def write_in_place(path, text):
    """As something that opens the file and writes to it; the time of change is another."""
    before = path.stat().st_mtime_ns
    with open(path, "r+") as file:
        file.write(text)
    os.utime(path, ns=(before, before + 1))


def replace(path, text):
    other = path.with_name("other")
    other.write_text(text)
    other.rename(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
@pytest.mark.parametrize("change", [write_in_place, replace, lambda path, _: path.unlink()])
def test_whatever_a_model_is_read_from_must_stay_the_same(name, change, folder):
    snapshot = Snapshot(folder)
    snapshot.check_same()
    change(folder / name, "other")
    with pytest.raises(ModelFileError, match=f"{name}: was changed since the model was opened"):
        snapshot.check_same()


def test_other_files_of_a_folder_may_change(folder):
    snapshot = Snapshot(folder)
    write_in_place(folder / "README.md", "other")
    (folder / "notes.txt").write_text("new")
    snapshot.check_same()


def test_a_mapped_file_may_be_replaced_and_not_be_written_to(folder):
    path = folder / "model.safetensors"
    snapshot, link = Snapshot(folder), folder / "again.safetensors"
    os.link(path, link)
    replace(path, "a longer text than before")
    snapshot.check_in_place([str(path)])
    link.rename(path)
    snapshot.check_in_place([str(path)])
    os.truncate(path, 3)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: was changed in place"):
        snapshot.check_in_place([str(path)])
    path.unlink()
    snapshot.check_in_place([str(path)])


def test_a_link_is_followed_to_the_blob(tmp_path):
    (tmp_path / "blob").write_text("blob")
    (tmp_path / "model.gguf").symlink_to("blob")
    snapshot = Snapshot(tmp_path / "model.gguf")
    write_in_place(tmp_path / "blob", "BLOB")
    with pytest.raises(ModelFileError, match=r"model\.gguf"):
        snapshot.check_in_place([str(tmp_path / "model.gguf")])
