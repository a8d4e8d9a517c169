"""Who a request is of: the keys that a server takes, and what each may.

A key file holds SHA-256 of random secrets, so that who reads it cannot use it. Owns the file's
format, when it is read again, which key was presented, and what a wrong one costs; counts no use
(quotas.py).
"""

import hashlib
import hmac
import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from marlin.config import KEY_SCOPES
from marlin.errors import ConfigError, ModelFileError
from marlin.files.fields import Fields, shown
from marlin.files.regular import read_regular
from marlin.files.strict_json import JsonError, parse_json
from marlin.server.http.handler import Handler
from marlin.server.http.limits import Limits
from marlin.server.observe.metrics import NUM_KEYS
from marlin.turns import is_uid

_log = logging.getLogger("marlin.server")

# Each has a series in /metrics; the file of so many is some 30 kB.
MAX_KEYS, MAX_FILE_BYTES = NUM_KEYS, 1 << 18
# A secret of the command's is 47 characters. What is this short can be guessed from its digest.
MIN_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COUNTS = ("concurrent_requests", "tokens_per_minute", "output_tokens")
_FIELDS = ("name", "number", "sha256", "scopes", "models", *_COUNTS)


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose requests a key makes.

    Attributes:
        name: in logs, metrics and wherever clients share something.
        number: of its series in /metrics; as long as the file has the key it stays.
        digest: SHA-256 of its secret.
        scopes: of KEY_SCOPES, what it may ask for.
        models: names that it may give, None for all that are served.
        concurrent_requests, tokens_per_minute, output_tokens: at most; None is no limit. The last
            is a request's.
        shares: it is not told apart from others with the same key: what clients share is shared by
            their addresses, as without keys.
    """

    name: str
    number: int
    digest: bytes
    scopes: frozenset[str] = frozenset(KEY_SCOPES)
    models: tuple[str, ...] | None = None
    concurrent_requests: int | None = None
    tokens_per_minute: int | None = None
    output_tokens: int | None = None
    shares: bool = False

    def may_name(self, model: str) -> bool:
        return self.models is None or model in self.models

    def within(self, limits: Limits) -> Limits:
        """These limits, or its own where that is less."""
        own, most = self.output_tokens, limits.num_output_tokens
        if own is None:
            return limits
        return replace(limits, num_output_tokens=own if most is None else min(own, most))


def asked_by(handler: Handler) -> dict[str, str]:
    """Whose a request is, for a record of it."""
    client = handler.client_address[0]
    if handler.principal is not None:
        return {"client": client, "principal": handler.principal.name}
    return {"client": client, "principal": client} if is_uid(client) else {"client": client}


class Guesses:
    """What a wrong key costs: its answer waits, while few others do.

    A wait holds a thread and a place. So no client has more than a quarter of the waits, and what
    comes when all are taken is answered at once, on a connection that ends. A right key never
    waits: nobody's guesses are in its way.

    Args:
        wait_s: before a wrong key is answered.
        num_waits: at once.
        wait: callable(seconds).
    """

    def __init__(self, wait_s: float, num_waits: int, wait: Callable[[float], None] = time.sleep):
        self._wait_s = wait_s
        self._num_waits = num_waits
        self._wait = wait
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()  # of each client

    def cost(self, client: str) -> bool:
        """Wait for a wrong key of this client; returns whether there was room to."""
        with self._lock:
            most = max(1, self._num_waits // 4)
            if self._waiting.total() >= self._num_waits or self._waiting[client] >= most:
                return False
            self._waiting[client] += 1
        try:
            self._wait(self._wait_s)
        finally:
            with self._lock:
                self._waiting[client] -= 1
                self._waiting += Counter()  # forgets who has none
        return True


class Keys:
    """The keys of one server, and who has which. Any thread.

    Args:
        api_key: that everybody may present, or None.
        path: of the key file, or None.

    Raises:
        ConfigError: the key file cannot be used.
    """

    def __init__(self, api_key: bytes | None, path: str | None = None):
        self._path = path
        everybody = api_key and Principal(
            "api-key", MAX_KEYS, hashlib.sha256(api_key).digest(), shares=True
        )
        self._everybody = (everybody,) if everybody else ()
        self._seen = self._state()
        self._named = read_key_file(path) if path is not None else ()

    @property
    def are_asked_for(self) -> bool:
        return bool(self._everybody) or self._path is not None

    @property
    def named(self) -> tuple[Principal, ...]:
        """The key file's."""
        return self._named

    @property
    def names(self) -> dict[int, str]:
        """{number: name} of the key file's."""
        return {principal.number: principal.name for principal in self._named}

    def find(self, presented: list[bytes]) -> Principal | None:
        """Whose one of these secrets is; all of the digests are compared, whatever is found."""
        found = None
        for secret in presented:
            digest = hashlib.sha256(secret).digest()
            is_weak = len(secret) < MIN_SECRET_BYTES
            for principal in (*self._everybody, *self._named):
                is_it = hmac.compare_digest(digest, principal.digest)
                if is_it and (principal.shares or not is_weak):
                    found = principal
        return found

    def look(self) -> None:
        """Read the key file again if it has changed; what cannot be used leaves the keys as they
        are, and the log says why."""
        if self._path is None or (state := self._state()) == self._seen:
            return
        self._seen = state
        try:
            self._named = read_key_file(self._path)
        except ConfigError as error:
            _log.error("the keys stay as they were: %s", error.message)
        else:
            _log.info("%d keys of %s", len(self._named), self._path)

    def forget(self) -> None:
        """Have the next look() read the file whatever it looks like."""
        self._seen = None

    def _state(self):
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)
        except OSError as error:
            return error.errno
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns


def read_key_file(path: str) -> tuple[Principal, ...]:
    """The keys of a file, {"keys": [...]}; ConfigError names what is wrong, and where."""
    entries = _entries(path)
    for what, found in (
        ("name", {principal.name for principal in entries}),
        ("number", {principal.number for principal in entries}),
        ("sha256", {principal.digest for principal in entries}),
    ):
        if len(found) < len(entries):
            raise ConfigError(f"{path}: two keys have the same {what}")
    return entries


def _entries(path):
    entries = Fields(key_file_data(path), _refusing(path)).of_type(list, "keys")
    if not entries or len(entries) > MAX_KEYS:
        raise ConfigError(f"{path}: keys must be 1 to {MAX_KEYS}, got {len(entries)}")
    return tuple(_principal(path, index, entry) for index, entry in enumerate(entries))


def key_file_data(path: str) -> dict[str, Any]:
    """The JSON of a key file. Raises ConfigError: it is none, or others may write it."""
    try:
        if os.stat(path).st_mode & 0o022:
            raise ConfigError(f"{path}: others may write this key file; chmod go-w {path}")
        data = parse_json(read_regular(path, MAX_FILE_BYTES) or b"")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (JsonError, ModelFileError) as error:
        raise ConfigError(f"{path}: the key file is no JSON: {error}") from None
    if not isinstance(data, dict) or set(data) != {"keys"}:
        raise ConfigError(f'{path}: the key file must be an object with "keys" alone')
    return data


def _refusing(path, place=""):
    def refuse(name, value, expected):
        raise ConfigError(f"{path}: {place}{name} must be {expected}, got {shown(value)}")

    return refuse


def _principal(path, index, entry):
    place = f"keys[{index}]"
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: {place} must be an object, got {shown(entry)}")
    if unknown := set(entry) - set(_FIELDS):
        raise ConfigError(f"{path}: {place} has an unknown field {shown(min(unknown))}")
    fields = Fields(entry, _refusing(path, f"{place}."))
    name, digest = fields.text("name"), fields.text("sha256")
    if not _NAME.fullmatch(name):
        fields.fail("name", "1 to 64 letters, digits, dots, dashes, @ or _")
    if not _DIGEST.fullmatch(digest):
        fields.fail("sha256", "64 hexadecimal digits in lower case")
    scopes = fields.of_type(list, "scopes", ["generate"])
    if not scopes or not all(scope in KEY_SCOPES for scope in scopes):
        fields.fail("scopes", "some of " + ", ".join(KEY_SCOPES))
    models = fields.of_type(list, "models", None)
    if models is not None and not all(isinstance(model, str) for model in models):
        fields.fail("models", "an array of names")
    return Principal(
        name,
        fields.count("number", minimum=0, maximum=MAX_KEYS - 1),
        bytes.fromhex(digest),
        frozenset(scopes),
        None if models is None else tuple(models),
        *(fields.count(count, None) for count in _COUNTS),
    )


def with_new_key(data: dict[str, Any], name: str, secret: str, **more: Any) -> dict[str, Any]:
    """A key file's data with one key more, which read_key_file() takes.

    Raises:
        ConfigError: the name is there, or cannot be one; or there are as many keys as may be.
    """
    keys = data["keys"]
    taken = {key.get("number") for key in keys}
    free = next((number for number in range(MAX_KEYS) if number not in taken), None)
    if free is None:
        raise ConfigError(f"there are {MAX_KEYS} keys, as many as may be")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the name must be 1 to 64 letters, digits, dots, dashes, @ or _, got {name!r}"
        )
    if any(key.get("name") == name for key in keys):
        raise ConfigError(f"there is a key named {name}")
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"keys": [*keys, {"name": name, "number": free, "sha256": digest, **more}]}


def encode(data: dict[str, Any]) -> bytes:
    """The text of a key file, a key a line."""
    lines = ",\n".join("  " + json.dumps(key) for key in data["keys"])
    return f'{{"keys": [\n{lines}\n]}}\n'.encode()
