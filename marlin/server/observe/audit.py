"""The audit log: who asked for what, and what became of it, in a chain of records that nobody
without its key can edit, cut, reorder or add to without its being found.

A request is not worked on before its record is on disk, and what cannot be recorded is refused. One
thread writes; records that wait while it does go out together, with one fsync. Owns the form of a
record, which commands/audit.py reads; docs/security.md explains it.
"""

import fcntl
import hashlib
import hmac
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from marlin.errors import AuditError, AuditFileError, ConfigError
from marlin.files.regular import read_regular
from marlin.server.observe.logs import rfc3339

MIN_KEY_BYTES = 32
FORMAT = "metal-marlin audit 1"
# What ends every record: its MAC, of all that stands before it.
_MAC = ',"mac":"'
_MAC_CHARACTERS = len(_MAC) + 64 + len('"}')
# A disk that takes longer has failed for whoever waits for an answer.
WAIT_S = 5.0
_RETRY_S = 1.0
# More than any record: a body of 16 MiB takes six times that escaped, 2,048 vectors 200 MB.
_MAX_LINE_BYTES = 1 << 30


class Record(NamedTuple):
    """A record as it was read.

    Attributes:
        values: its fields.
        mac: that ends it.
    """

    values: dict[str, Any]
    mac: str


class Chain:
    """The records that one key has written, one after another.

    Attributes:
        seq: of the last one; 0 before the first.
        mac: of the last one.
    """

    def __init__(self, key: bytes, seq: int = 0, mac: str = ""):
        self._key = hmac.digest(key, b"chain", "sha256")
        self.seq = seq
        self.mac = mac

    def added(self, values: dict[str, Any]) -> bytes:
        """The line of the next record."""
        record = {"seq": self.seq + 1, **values, "prev": self.mac}
        text = json.dumps(record, separators=(",", ":"))[:-1]
        mac = self._mac(text)
        self.seq, self.mac = self.seq + 1, mac
        return f'{text}{_MAC}{mac}"}}\n'.encode("ascii")

    def read(self, line: bytes) -> Record:
        """A line that must be the next record. Raises ValueError saying why it is not."""
        record = self.read_any(line)
        values = record.values
        if values["seq"] != self.seq + 1:
            raise ValueError(f"is record {values['seq']}, where {self.seq + 1} should be")
        if values["prev"] != self.mac:
            raise ValueError("does not follow the record before it")
        self.seq, self.mac = values["seq"], record.mac
        return record

    def read_any(self, line: bytes) -> Record:
        """A line that must be a record of this key, wherever it stands. Raises ValueError."""
        try:
            text = line.decode("ascii")
            values = json.loads(text)
        except ValueError:
            raise ValueError("is not a record") from None
        body, end = text[:-_MAC_CHARACTERS], text[-_MAC_CHARACTERS:]
        if type(values) is not dict or not end.startswith(_MAC):
            raise ValueError("is not a record")
        if not hmac.compare_digest(self._mac(body), str(values.get("mac"))):
            raise ValueError("was changed, or is of another key")
        return Record(values, values["mac"])

    def _mac(self, text):
        return hmac.new(self._key, text.encode(), "sha256").hexdigest()


class Entry:
    """One request on its way: sees what is answered.

    Attributes:
        parameters: digest of what was asked for beside the text, once that is known.
    """

    def __init__(self, log: "AuditLog", facts: dict[str, Any]):
        self._log = log
        self._facts = facts
        self._hmac = log.new_hmac()
        self._pieces: list[bytes] | None = [] if log.keeps_content else None
        self.parameters: str | None = None

    def saw(self, content: bytes) -> None:
        """A next part of the answer goes out."""
        self._hmac.update(content)
        if self._pieces is not None:
            self._pieces.append(content)

    def end(self, **facts: Any) -> None:
        """The answer is over; facts: what became of it."""
        values = {"event": "end", **self._facts, "parameters": self.parameters, **facts}
        values["answer_hmac"] = self._hmac.hexdigest()
        if self._pieces is not None:
            values["answer"] = b"".join(self._pieces).decode("utf-8", "backslashreplace")
        self._log.put(values)


class AuditLog:
    """An open audit log.

    Args:
        path: of the file, which is added to; whoever renames it gets a new one begun, in the same
            chain.
        key: MIN_KEY_BYTES at least.
        facts: of this process, in each opening record: the model and its manifest.
        keeps_content: records have requests and answers themselves.
        syncs: each record is on disk before it counts as written, and not only with the system.
        wait_s: see WAIT_S.

    Raises:
        AuditFileError: it cannot be written, is another server's, or its last record is not of
            this key.
    """

    def __init__(self, path, key, facts, keeps_content=False, syncs=True, wait_s=WAIT_S):
        self.keeps_content = keeps_content
        self._path = path
        self._facts = facts
        self._syncs = syncs
        self._wait_s = wait_s
        self._hmac_key = hmac.digest(key, b"content", "sha256")
        self._changed = threading.Condition()
        self._waiting: list[dict[str, Any]] = []
        self._num_put = self._num_written = 0
        self._torn_at: int | None = None  # where a record ends that could not be written whole
        self._is_begun = True  # the file has its opening record
        self._is_closed = False
        self._problem: str | None = None
        self._writing_since: float | None = None
        self._fd = _open(path)
        try:
            self._chain, torn = _continued(path, self._fd, key)
            self._write([self._opening(torn)])
        except BaseException:
            os.close(self._fd)
            raise
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def head(self) -> str:
        """The last record, as `audit verify --head` takes it."""
        return f"{self._chain.seq}:{self._chain.mac}"

    def new_hmac(self):
        return hmac.new(self._hmac_key, digestmod="sha256")

    def begin(self, content: bytes, **facts: Any) -> Entry:
        """Record a request before it is worked on.

        Args:
            content: its body.
            facts: request_id, principal, client, endpoint.

        Raises:
            AuditError: it cannot be recorded.
        """
        if (problem := self.failing()) is not None:
            raise AuditError(problem)
        digest = self.new_hmac()
        digest.update(content)
        values = {"event": "begin", **facts, "request_hmac": digest.hexdigest()}
        if self.keeps_content:
            values["request"] = content.decode("utf-8", "backslashreplace")
        number = self.put(values)
        entry = Entry(self, facts)
        with self._changed:
            # A disk that is full or gone says so at once; one that hangs says nothing.
            self._changed.wait_for(
                lambda: self._num_written >= number or self._problem is not None, self._wait_s
            )
            if self._num_written >= number:
                return entry
        entry.end(outcome="refused")
        raise AuditError(self.failing() or "the audit log's disk is too slow")

    def put(self, values: dict[str, Any]) -> int:
        """Queue a record; returns how many were queued by then."""
        with self._changed:
            self._waiting.append({"time": rfc3339(time.time()), **values})
            self._num_put += 1
            self._changed.notify_all()
            return self._num_put

    def failing(self) -> str | None:
        """Why nothing can be recorded, as a part of observe.health.Health; None when all is
        well."""
        since = self._writing_since
        if self._problem is not None:
            return self._problem
        if not self._thread.is_alive():
            return "the audit log is not written"
        if since is not None and time.monotonic() - since > self._wait_s:
            return "the audit log's disk hangs"
        return None

    def close(self) -> None:
        """Record the end, behind all that is queued; waits wait_s at most."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(self._wait_s)

    def _run(self):
        while True:
            with self._changed:
                if self._problem is not None:  # what failed is tried again
                    self._changed.wait(_RETRY_S)
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                batch, is_closed = self._waiting[:], self._is_closed
            is_last = is_closed and not batch
            self._try([self._closing()] if is_last else batch)
            if is_closed and (is_last or self._problem is not None):
                break
        os.close(self._fd)

    def _try(self, batch):
        self._writing_since = time.monotonic()
        problem = None
        try:
            self._follow_rotation()
            self._write(batch)
        except OSError as error:
            problem = f"the audit log cannot be written: {error.strerror or error}"
        except AuditFileError as error:
            problem = error.message
        self._writing_since = None
        with self._changed:
            self._problem = problem
            if problem is None:
                self._waiting = self._waiting[len(batch) :]
                self._num_written += len(batch)
            self._changed.notify_all()

    def _follow_rotation(self):
        """Whoever renamed or removed the file wants another."""
        mine = os.fstat(self._fd)
        try:
            now = os.stat(self._path)
            has_moved = (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)
        except FileNotFoundError:
            has_moved = True
        if has_moved:
            self._begin_another()
        if not self._is_begun:  # a disk may have had room for the end of the old one alone
            self._write([self._opening(0)])
            self._is_begun = True

    def _begin_another(self):
        fd = _open(self._path)
        try:
            if os.fstat(fd).st_size:
                raise AuditFileError(f"{self._path}: is there, and this server did not begin it")
            self._write([{**self._closing(), "rotated": True}])
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._is_begun = fd, False

    def _closing(self):
        return {"event": "close", "time": rfc3339(time.time())}

    def _opening(self, torn):
        values = {"event": "open", "time": rfc3339(time.time()), "format": FORMAT, **self._facts}
        return values if not torn else {**values, "torn_bytes": torn}

    def _write(self, records):
        """All of them or none, whole."""
        self._cut_off_torn()
        chain = self._chain
        before = chain.seq, chain.mac
        left = b"".join([chain.added(values) for values in records])
        start = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
            if self._syncs:
                os.fsync(self._fd)
        except OSError:
            chain.seq, chain.mac = before
            self._torn_at = start
            with suppress(OSError):
                self._cut_off_torn()
            raise

    def _cut_off_torn(self):
        if self._torn_at is not None:
            os.ftruncate(self._fd, self._torn_at)
            self._torn_at = None


def read_key(path: str) -> bytes:
    """The key of an audit log, from a file that others cannot read. Raises ConfigError."""
    if os.path.exists(path) and os.stat(path).st_mode & 0o077:
        raise ConfigError(f"{path}: others may read the audit log's key; chmod 600 it")
    data = read_regular(path, 4096)
    assert data is not None
    key = data.strip()
    if len(key) < MIN_KEY_BYTES:
        problem = f"a key has at least {MIN_KEY_BYTES} bytes, and this one {len(key)}"
        raise ConfigError(f"{path}: {problem}; `openssl rand -hex 32` makes one")
    return key


def lines_of(path: str) -> Iterator[bytes]:
    """The lines of an audit log, without their ends; a last one that has no end, with a zero byte,
    which no record has."""
    with open(path, "rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            yield line[:-1] if line.endswith(b"\n") else line + b"\0"


def parameters_digest(values: dict[str, Any]) -> str:
    """Of what a request asks for beside its texts."""
    plain = {name: value for name, value in values.items() if name not in _TEXTS}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# What the APIs call the fields that hold texts.
_TEXTS = frozenset(
    ("messages", "prompt", "suffix", "input", "instructions", "system", "content", "tokens")
    + ("query", "documents", "input_prefix", "input_suffix", "input_extra")
)


def _open(path):
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AuditFileError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise AuditFileError(f"{path}: another server writes this audit log") from None
    return fd


def _continued(path, fd, key):
    """(the Chain that a file ends with, bytes of an unfinished record that were cut off it)."""
    size = os.lseek(fd, 0, os.SEEK_END)
    start, tail = size, b""
    while start and tail.count(b"\n") < 2:
        start = max(0, size - max(1 << 16, 2 * (size - start)))  # a record may be large
        tail = os.pread(fd, size - start, start)
    whole, _, torn = tail.rpartition(b"\n")
    if torn:
        os.ftruncate(fd, size - len(torn))
    last = whole.rpartition(b"\n")[2]
    if not last:
        return Chain(key), len(torn)
    try:
        record = Chain(key).read_any(last)
    except ValueError as error:
        raise AuditFileError(f"{path}: its last record {error}") from None
    return Chain(key, record.values["seq"], record.mac), len(torn)
