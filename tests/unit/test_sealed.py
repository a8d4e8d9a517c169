"""Copies of a model's files in memory: the path at which they are read, and what is left of it."""

import os
import stat
import tempfile

import pytest

from marlin.errors import ModelFileError
from marlin.files.sealed import SealedModel, nameless_file


def copies(**contents):
    files = {}
    for name, content in contents.items():
        files[name.replace("_", ".")] = fd = nameless_file("test")
        os.write(fd, content)
    return files


@pytest.mark.parametrize("is_folder", [True, False])
def test_copies_are_read_as_the_model_for_as_long_as_its_path_is_open(is_folder, tmp_path):
    name = "model" if is_folder else "a.gguf"
    files = copies(a_gguf=b"one", b_json=b"two")
    files["templates/c.jinja"] = files.pop("b.json")
    sealed = SealedModel(name, is_folder, files, "sha256:0")
    with sealed.path() as path:
        assert os.path.basename(path) == name
        folder = path if is_folder else os.path.dirname(path)
        top = os.path.dirname(path)
        assert stat.S_IMODE(os.stat(top).st_mode) == 0o700  # of this process alone
        for _ in range(2):  # each opening begins at the beginning
            for inner, content in (("a.gguf", b"one"), ("templates/c.jinja", b"two")):
                with open(os.path.join(folder, inner), "rb") as file:
                    assert file.read() == content
    assert not os.path.exists(top)
    sealed.close()
    for fd in files.values():
        with pytest.raises(OSError):
            os.fstat(fd)


def test_the_folder_is_gone_after_an_error_too():
    sealed = SealedModel("m", True, copies(a_json=b"{}"), "sha256:0")
    with pytest.raises(ZeroDivisionError), sealed.path() as path:
        raise ZeroDivisionError
    assert not os.path.exists(os.path.dirname(path))
    sealed.close()


def test_without_a_folder_for_temporary_files_the_setting_is_named(monkeypatch):
    def fail(prefix):
        assert prefix == "metal-marlin-"
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    sealed = SealedModel("m", True, {}, "sha256:0")
    with pytest.raises(ModelFileError) as caught, sealed.path():
        pass
    assert caught.value.message == (
        f"{tempfile.gettempdir()}: no folder for temporary files, which --manifest needs "
        "(TMPDIR names one): Permission denied"
    )
