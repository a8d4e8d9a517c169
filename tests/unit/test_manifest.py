"""Manifests: what is written down of a model, and what differs from it."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from marlin.errors import ManifestError, ModelFileError
from marlin.files.manifest import make_manifest, read_manifest, seal_model
from marlin.files.signature import check_signature, read_public_key, verify

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 50_000,
    "chat_template.jinja": b"",
    "additional_chat_templates/rag.jinja": b"{{ 1 }}",
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text("not read")
    return folder


@pytest.fixture
def written(folder, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(make_manifest(str(folder)).encode())
    return path


def change(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def seal(folder, path):
    return seal_model(str(folder), read_manifest(str(path)))


def test_it_names_every_file_that_is_read_with_length_and_digest(folder):
    values = json.loads(make_manifest(str(folder)).encode())
    assert values["format"] == "metal-marlin manifest 1" and values["model"] == "model"
    assert values["files"] == [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(FILES.items())
    ]


def test_the_digest_is_of_the_files_and_not_of_where_they_lie(folder, written):
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()} {len(data)} {name}\n"
        for name, data in sorted(FILES.items())
    )
    expected = "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    assert read_manifest(str(written)).digest == expected
    assert make_manifest(str(folder.rename(folder.with_name("other")))).digest == expected


def test_the_command_prints_it(folder, written):
    run = [sys.executable, "-m", "marlin", "manifest", str(folder)]
    assert subprocess.run(run, capture_output=True, check=True).stdout == written.read_bytes()


def test_copies_are_what_was_there_and_stay_so(folder, written):
    sealed = seal(folder, written)
    with sealed.path() as path:
        for name, data in FILES.items():
            (folder / name).write_bytes(b"other")
            with open(os.path.join(path, name), "rb") as file:
                assert file.read() == data
        assert os.path.basename(path) == "model"
        assert not os.path.exists(os.path.join(path, "README.md"))
    assert not os.path.exists(path)
    sealed.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="seals are of Linux alone")
def test_nobody_can_write_to_a_copy(folder, written):
    sealed = seal(folder, written)
    for fd in sealed.files.values():
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1)
    sealed.close()


def test_a_single_file_is_a_model_too(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    manifest = make_manifest(str(tmp_path / "a.gguf"))
    assert [file.name for file in manifest.files] == ["a.gguf"]
    sealed = seal_model(str(tmp_path / "a.gguf"), manifest)
    with sealed.path() as path, open(path, "rb") as file:
        assert path.endswith("/a.gguf") and file.read() == b"GGUF"
    sealed.close()


def shortened(folder):
    os.truncate(folder / "model.safetensors", 7)


def lengthened(folder):
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")


def edited(folder):
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(b"W")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (shortened, "model.safetensors: has 7 bytes, and the manifest says 350000"),
        (lengthened, "model.safetensors: has more than the manifest's 350000 bytes"),
        (edited, "model.safetensors: its SHA-256 is [0-9a-f]{64}, and the manifest says"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is in the manifest and"),
        (lambda folder: (folder / "x.json").touch(), "x.json is there and not in the manifest"),
        (
            lambda folder: (folder / "additional_chat_templates/x.jinja").touch(),
            "additional_chat_templates/x.jinja is there and not",
        ),
    ],
)
def test_a_model_that_differs_is_refused_and_leaves_no_descriptor(act, said, folder, written):
    act(folder)
    before = os.listdir("/dev/fd")
    with pytest.raises(ManifestError, match=said):
        seal(folder, written)
    assert os.listdir("/dev/fd") == before


def test_files_that_no_model_is_read_from_do_not_count(folder, written):
    (folder / "README.md").write_text("other")
    (folder / "pytorch_model.bin").touch()
    seal(folder, written).close()


def test_a_pipe_in_the_place_of_a_file_is_refused(folder, written):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ModelFileError, match=r"config\.json: not a regular file"):
        seal(folder, written)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m.update(format="2"), "format must be 'metal-marlin manifest 1', got '2'"),
        (lambda m: m["files"].reverse(), "files must be named in order, each once"),
        (lambda m: m["files"].append(m["files"][-1]), "each once"),
        (lambda m: m["files"].clear(), "and not none"),
        (lambda m: m["files"][0].update(bytes=3), "its digest is not of its files"),
        (lambda m: m["files"][0].update(name="b.json"), "its digest is not of its files"),
        (lambda m: m.update(digest="sha256:0"), "its digest is not of its files"),
        (lambda m: m["files"][0].update(sha256="A" * 64), r"files\[0\]\.sha256 is .* 64 hexa"),
        (lambda m: m["files"][0].update(bytes=-1), r"files\[0\]\.bytes is -1; expected an int"),
        (lambda m: m.pop("files"), "and not none"),
        (lambda m: m.pop("model"), "model is missing"),
    ],
)
def test_a_manifest_that_was_edited_is_refused(edit, said, written):
    change(written, edit)
    with pytest.raises((ManifestError, ModelFileError), match=said):
        read_manifest(str(written))


# Of minisign 0.11, for a file that holds SIGNED: with its hash signed, and as -l has it.
SIGNED = b'{"a": 1}\n'
KEY = "untrusted comment: a key\nRWQfGSZz1PwPdN4LtSmkQT6uWebYBKGmRMwboDE0ofSNA3x+gHMw+oZ4\n"
OTHER_KEY = "RWRnCD0utqKdlOTTgu/5/+tuz83XZEVL0jGp9q/ojN+XMGokQWMbdwl2\n"
HASHED = (
    "untrusted comment: signature from minisign secret key\n"
    "RUQfGSZz1PwPdEQKyWsaYNxNK8GRorEmdYSG+eActUkLW4g2K1BP/19o4WbB5+Gke7rzGuazG0CLA+Ustv9eQxIfq+4"
    "Eq2GyxQA=\ntrusted comment: of the test\n"
    "R7w4sXlbq88gahF2s9V8c+SgciIWci2XIWoy3i7m0BtbaFmNzoEtEVvgiB2ivrS2fqlf5lniqTyxML/cFrVxAQ==\n"
)
LEGACY = (
    "untrusted comment: signature from minisign secret key\n"
    "RWQfGSZz1PwPdLSGtJkAilWJhOsNwfUxvT7fiWm69WvcklgfyCiS7p60WQHAMJrZft+MNpqUjXmb3iLmtXOK2B1iqc/"
    "Z/k45agM=\ntrusted comment: of the test\n"
    "DiCRc06sjBFTo3/bfgjrvSPn4O5RN/FdoJOSwNumCTOGr4ltrFtAJ0fDxcCaRye31E13Oei9mBBgMQnd+0ZnCQ==\n"
)


def check(tmp_path, content, key, signature):
    (tmp_path / "k.pub").write_text(key)
    (tmp_path / "m.minisig").write_text(signature)
    key = read_public_key(str(tmp_path / "k.pub"))
    check_signature("m", content, str(tmp_path / "m.minisig"), key)


@pytest.mark.parametrize("signature", [HASHED, LEGACY])
def test_a_signature_of_minisign_is_one(signature, tmp_path):
    check(tmp_path, SIGNED, KEY, signature)
    check(tmp_path, SIGNED, KEY.splitlines()[1], signature)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, k, s: (c + b" ", k, s), "is not the key's signature of m"),
        (lambda c, k, s: (c, OTHER_KEY, s), "was made with another key"),
        (lambda c, k, s: (c, k, s.replace("of the test", "of a test")), "trusted comment is not"),
        (lambda c, k, s: (c, k, s.replace("trusted comment: of", "comment: of")), "not a minisign"),
        (lambda c, k, s: (c, k, s.replace("R7w4", "").replace("DiCR", "")), "not a minisign sig"),
        (lambda c, k, s: (c, k, s.replace("GSZz", "G!Zz")), "is not a file of minisign's"),
        (lambda c, k, s: (c, k, ""), "is not a minisign signature"),
        (lambda c, k, s: (c, k[:-5] + "\n", s), "is not a minisign public key"),
        (lambda c, k, s: (c, "", s), "is not a minisign public key"),
    ],
)
def test_what_is_not_the_keys_signature_is_refused(change, said, legacy, tmp_path):
    with pytest.raises(ManifestError, match=said):
        check(tmp_path, *change(SIGNED, KEY, LEGACY if legacy else HASHED))


def test_every_bit_of_a_signature_counts(tmp_path):
    key = base64.b64decode(KEY.splitlines()[1])[10:]
    signature = base64.b64decode(LEGACY.splitlines()[1])[10:]
    assert verify(key, SIGNED, signature)
    for bit in range(0, 512, 7):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not verify(key, SIGNED, bytes(changed))


# RFC 8032, 7.1: TEST 1 to 3.
@pytest.mark.parametrize(
    ("key", "message", "signature"),
    [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
def test_ed25519_is_the_rfcs(key, message, signature):
    key, message, signature = map(bytes.fromhex, (key, message, signature))
    order = 2**252 + 27742317777372353535851937790883648493
    assert verify(key, message, signature)
    assert not verify(key, message + b"x", signature)
    # The same scalar modulo the group's order is another signature, and none.
    scalar = int.from_bytes(signature[32:], "little") + order
    assert not verify(key, message, signature[:32] + scalar.to_bytes(32, "little"))


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xff" * 32, b"\2" + bytes(31)])
def test_a_key_that_is_no_point_or_of_small_order_verifies_nothing(point):
    # With the neutral element as key, scalar 0 and the commitment 0 would be right for any text.
    assert not verify(point, b"", b"\1" + bytes(63))


# Of order 1, 2, 4, 4 and four of 8: what a scalar of 0 leaves of them is right for some texts.
SMALL = [
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "00" * 32,
    "00" * 31 + "80",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]


@pytest.mark.parametrize("point", SMALL)
def test_no_text_is_verified_by_a_key_of_small_order(point):
    texts = [bytes([number]) for number in range(20)]
    key, neutral = bytes.fromhex(point), b"\1" + bytes(63)
    assert not any(verify(key, text, neutral) for text in texts)


def test_a_signed_manifest_is_read_and_another_one_is_not(written, tmp_path):
    (tmp_path / "k.pub").write_text(KEY)
    with pytest.raises(ModelFileError, match=r"manifest\.json\.minisig: cannot be opened"):
        read_manifest(str(written), str(tmp_path / "k.pub"))
    (tmp_path / "manifest.json.minisig").write_text(HASHED)
    with pytest.raises(ManifestError, match=r"is not the key's signature of .*manifest\.json"):
        read_manifest(str(written), str(tmp_path / "k.pub"))


@pytest.mark.skipif(shutil.which("minisign") is None, reason="needs minisign")
def test_a_manifest_that_minisign_signed_now_is_read(written, tmp_path):
    key, secret = str(tmp_path / "k.pub"), str(tmp_path / "k.key")
    make = ["minisign", "-G", "-W", "-p", key, "-s", secret]
    subprocess.run(make, check=True, capture_output=True)
    sign = ["minisign", "-S", "-s", secret, "-m", str(written)]
    subprocess.run(sign, check=True, capture_output=True)
    assert read_manifest(str(written), key).files
