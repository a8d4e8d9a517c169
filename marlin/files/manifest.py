"""A model's manifest: which files it is read from, how long they are and the SHA-256 of each.

Whoever has looked at a model writes it down once; a server that is given the manifest serves these
bytes or does not start. Owns the manifest's own form (docs/security.md). Knows nothing of what a
file holds.
"""

import hashlib
import json
import os
from typing import Any, NamedTuple

from marlin.errors import ManifestError, ModelFileError
from marlin.files.fields import Fields, file_fields
from marlin.files.regular import open_regular, read_regular
from marlin.files.sealed import SealedModel, nameless_file, seal
from marlin.files.signature import check_signature, read_public_key
from marlin.files.snapshot import model_files
from marlin.files.strict_json import MAX_FILE_BYTES, parse_json_object

FORMAT = "metal-marlin manifest 1"
_PIECE_BYTES = 1 << 20


class ModelFile(NamedTuple):
    """What a manifest says of one file; name: inside the folder, or of the model's only file."""

    name: str
    num_bytes: int
    sha256: str


class Manifest(NamedTuple):
    """A model's files, by name.

    Attributes:
        model: the last part of its path when it was written; for people.
    """

    model: str
    files: tuple[ModelFile, ...]

    @property
    def digest(self) -> str:
        """ "sha256:" and 64 digits, of the files alone: the same wherever the model lies."""
        lines = (f"{file.sha256} {file.num_bytes} {file.name}\n" for file in self.files)
        return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()

    def encode(self) -> str:
        """The text of a manifest file."""
        files = [{"name": f.name, "bytes": f.num_bytes, "sha256": f.sha256} for f in self.files]
        values = {"format": FORMAT, "model": self.model, "digest": self.digest, "files": files}
        return json.dumps(values, indent=1) + "\n"


def make_manifest(path: str) -> Manifest:
    """Read all of a model's files. Raises ModelFileError where one cannot be."""
    files = [
        ModelFile(name, *_read(file_path, lambda _piece: None))
        for name, file_path in model_files(path).items()
    ]
    return Manifest(_name(path), tuple(files))


def read_manifest(path: str, key_path: str | None = None) -> Manifest:
    """Read a manifest file.

    Args:
        key_path: of a minisign public key, whose signature must be in `path`.minisig.

    Raises:
        ManifestError: it is not a manifest, is one that was edited, or the key has not signed it.
        ModelFileError: a file cannot be read.
    """
    data = read_regular(path, MAX_FILE_BYTES)
    assert data is not None
    if key_path is not None:
        check_signature(path, data, path + ".minisig", read_public_key(key_path))
    fields = file_fields(path, parse_json_object(path, data))
    if fields.raw("format") != FORMAT:
        raise ManifestError(f"{path}: format must be {FORMAT!r}, got {fields.raw('format')!r:.80}")
    entries = fields.elements("files")
    files = tuple(_entry(entries.object(place)) for place in entries.values)
    names = [file.name for file in files]
    if not names or names != sorted(set(names)):
        raise ManifestError(f"{path}: files must be named in order, each once, and not none")
    manifest = Manifest(fields.text("model"), files)
    if fields.text("digest") != manifest.digest:
        raise ManifestError(f"{path}: its digest is not of its files, which make {manifest.digest}")
    return manifest


def seal_model(path: str, manifest: Manifest) -> SealedModel:
    """Copy a model's files into sealed memory and compare the copies with its manifest.

    Raises:
        ManifestError: a file is missing, is another, or is there and not in the manifest.
        ModelFileError: one cannot be read.
    """
    found, wanted = model_files(path), {file.name: file for file in manifest.files}
    for name in wanted.keys() - found.keys():
        raise ManifestError(f"{path}: {name} is in the manifest and not there")
    for name in found.keys() - wanted.keys():
        raise ManifestError(f"{path}: {name} is there and not in the manifest")
    sealed: dict[str, int] = {}
    try:
        for name, file in wanted.items():
            sealed[name] = fd = nameless_file("metal-marlin-model")
            _check(found[name], file, ModelFile(name, *_copied(found[name], fd, file.num_bytes)))
            seal(fd)
    except BaseException:
        for fd in sealed.values():
            os.close(fd)
        raise
    return SealedModel(_name(path), os.path.isdir(path), sealed, manifest.digest)


def _copied(path, fd, num_bytes):
    """(bytes, SHA-256) of what was copied: from this descriptor, once."""
    copied = 0

    def copy(piece):
        nonlocal copied
        copied += len(piece)
        if copied > num_bytes:
            raise ManifestError(f"{path}: has more than the manifest's {num_bytes} bytes")
        while piece:
            piece = piece[os.write(fd, piece) :]

    try:
        return _read(path, copy)
    except OSError as error:
        message = f"no room for a sealed copy: {error.strerror or error}"
        raise ModelFileError(path, message) from None


def _check(path, wanted, found):
    if found.num_bytes != wanted.num_bytes:
        raise ManifestError(
            f"{path}: has {found.num_bytes} bytes, and the manifest says {wanted.num_bytes}"
        )
    if found.sha256 != wanted.sha256:
        raise ManifestError(
            f"{path}: its SHA-256 is {found.sha256}, and the manifest says {wanted.sha256}"
        )


def _read(path, take):
    """Hand all of a file's bytes on; returns (their number, their SHA-256)."""
    digest, num_bytes = hashlib.sha256(), 0
    with open_regular(path) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            num_bytes += len(piece)
            take(piece)
    return num_bytes, digest.hexdigest()


def _entry(fields: Fields) -> ModelFile:
    digits: Any = fields.text("sha256")
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        fields.fail("sha256", "64 hexadecimal digits")
    return ModelFile(fields.text("name"), fields.count("bytes", minimum=0), digits)


def _name(path):
    return os.path.basename(os.path.abspath(path))
