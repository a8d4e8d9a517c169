"""Whether a file was signed by the owner of a key: minisign's detached signatures, which are
Ed25519's, verified in Python.

Verifying has no secrets, so that time and memory may tell all they like. Signs nothing. Sources:
RFC 8032 (Ed25519), minisign's page on its formats.
"""

import base64
import binascii
import hashlib
from typing import NamedTuple

from marlin.errors import ManifestError
from marlin.files.regular import read_regular

# Both files have at most four lines of a few hundred characters.
_MAX_BYTES = 16 * 1024
_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_1 = pow(2, (_P - 1) // 4, _P)
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "


class PublicKey(NamedTuple):
    """A minisign public key: which one it says it is, and its 32 bytes."""

    key_id: bytes
    point: bytes


def read_public_key(path: str) -> PublicKey:
    """Read a file as `minisign -G` writes it (minisign.pub).

    Raises:
        ManifestError: it is not such a file.
        ModelFileError: it cannot be read.
    """
    lines = _lines(path)
    data = _decoded(path, lines[1] if lines[0].startswith(_UNTRUSTED) and lines[1:] else lines[0])
    if len(data) != 42 or data[:2] != b"Ed":
        raise ManifestError(f"{path}: is not a minisign public key")
    return PublicKey(data[2:10], data[10:])


def check_signature(path: str, content: bytes, signature_path: str, key: PublicKey) -> None:
    """Verify the signature of a file's content, and of the signature's trusted comment.

    Args:
        path: the file, for messages.

    Raises:
        ManifestError: it is not the key's signature of these bytes.
        ModelFileError: a file cannot be read.
    """
    lines = _lines(signature_path)
    if len(lines) != 4 or not lines[0].startswith(_UNTRUSTED) or not lines[2].startswith(_TRUSTED):
        raise ManifestError(f"{signature_path}: is not a minisign signature")
    data, outer = _decoded(signature_path, lines[1]), _decoded(signature_path, lines[3])
    kind, key_id, signature = data[:2], data[2:10], data[10:]
    if len(data) != 74 or len(outer) != 64 or kind not in (b"Ed", b"ED"):
        raise ManifestError(f"{signature_path}: is not a minisign signature")
    if key_id != key.key_id:
        raise ManifestError(f"{signature_path}: was made with another key than the one given")
    signed = content if kind == b"Ed" else hashlib.blake2b(content).digest()
    comment = lines[2].removeprefix(_TRUSTED).encode()
    if not verify(key.point, signed, signature):
        raise ManifestError(f"{signature_path}: is not the key's signature of {path}")
    if not verify(key.point, signature + comment, outer):
        raise ManifestError(f"{signature_path}: its trusted comment is not the key's")


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether this is the Ed25519 signature (RFC 8032, 5.1.7) of a message by a key.

    Args:
        public_key: 32 bytes; one that is no point, or of small order, verifies nothing.
        signature: 64 bytes; one whose scalar is not reduced is no signature.
    """
    if len(public_key) != 32 or len(signature) != 64:
        return False
    key, commitment = _point(public_key), _point(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or scalar >= _ORDER or _is_small(key):
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    challenge = int.from_bytes(digest, "little") % _ORDER
    return _equal(_times(scalar, _BASE), _sum(commitment, _times(challenge, key)))


# Points are (x, y, z, x * y), the first two and the last over z.
def _sum(a, b):
    one = (a[1] - a[0]) * (b[1] - b[0]) % _P
    two = (a[1] + a[0]) * (b[1] + b[0]) % _P
    three, four = 2 * a[3] * b[3] * _D % _P, 2 * a[2] * b[2] % _P
    e, f, g, h = two - one, four - three, four + three, two + one
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(scalar, point):
    total = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = _sum(total, point)
        point = _sum(point, point)
        scalar >>= 1
    return total


def _equal(a, b):
    return (a[0] * b[2] - b[0] * a[2]) % _P == 0 == (a[1] * b[2] - b[1] * a[2]) % _P


def _is_small(point):
    return _equal(_times(8, point), (0, 1, 1, 0))


def _point(data):
    """Of 32 bytes, or None where there is none."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT_OF_MINUS_1 % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    x = _P - x if x & 1 != sign else x
    return x, y, 1, x * y % _P


_BASE = _point((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))


def _lines(path):
    data = read_regular(path, _MAX_BYTES)
    assert data is not None
    try:
        return data.decode().splitlines() or [""]
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: is not a file of minisign's") from None


def _decoded(path, line):
    try:
        return base64.b64decode(line, validate=True)
    except binascii.Error:
        raise ManifestError(f"{path}: is not a file of minisign's") from None
