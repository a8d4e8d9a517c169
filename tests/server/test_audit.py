"""The audit log: what it says, that nothing is answered without it, and what is found when somebody
has been at it."""

import errno
import hmac
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time

import pytest
from served import PATIENCE_S, serve_mock

from marlin.errors import AuditError, AuditFileError, ConfigError
from marlin.server.http.limits import Limits
from marlin.server.observe import audit
from marlin.server.observe.audit import AuditLog, parameters_digest, read_key

KEY = b"k" * 32
FACTS = {"model": "m", "manifest": None}
BODY = {"model": "mock", "prompt": "1 2 3", "max_tokens": 4, "temperature": 0.5}


@pytest.fixture
def key_path(tmp_path):
    path = tmp_path / "audit.key"
    path.write_bytes(KEY + b"\n")
    path.chmod(0o600)
    return path


def verify(key_path, *words):
    """(exit code, what it said) of `metal-marlin audit verify`."""
    run = [sys.executable, "-m", "marlin", "audit", "verify", *map(str, words)]
    done = subprocess.run(
        [*run, "--audit-key-file", str(key_path)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(log, number=0):
    entry = log.begin(b"body %d" % number, request_id=f"r{number}")
    entry.saw(b"ans")
    entry.saw(b"wer")
    entry.end(outcome=200)


@pytest.fixture
def written(tmp_path):
    """A closed log of five requests, by two servers one after another."""
    path = tmp_path / "audit.jsonl"
    for numbers in (range(3), range(3, 5)):
        log = AuditLog(str(path), KEY, FACTS)
        for number in numbers:
            ask(log, number)
        log.close()
    return path


def test_a_whole_log_is_said_to_be_whole(written, key_path):
    code, said = verify(key_path, written)
    last = records(written)[-1]
    assert code == 0 and f"14 records of 5 requests are whole; the last is 14:{last['mac']}" in said
    events = [record["event"] for record in records(written)]
    assert events == [
        "open",
        *["begin", "end"] * 3,
        "close",
        "open",
        *["begin", "end"] * 2,
        "close",
    ]


def test_digests_are_of_what_was_asked_and_answered(written):
    content_key = hmac.digest(KEY, b"content", "sha256")
    begin, end = records(written)[1:3]
    assert begin["request_hmac"] == hmac.new(content_key, b"body 0", "sha256").hexdigest()
    assert end["answer_hmac"] == hmac.new(content_key, b"answer", "sha256").hexdigest()


def edited(lines, place, rng):
    line = bytearray(lines[place])
    line[rng.randrange(len(line))] ^= 1 << rng.randrange(7)
    return [*lines[:place], bytes(line), *lines[place + 1 :]]


def cut(lines, place, _rng):
    return lines[:place] + lines[place + 1 :]


def cut_off(lines, place, _rng):
    return lines[:place]


def swapped(lines, place, _rng):
    other = (place + 1) % len(lines)
    changed = lines[:]
    changed[place], changed[other] = lines[other], lines[place]
    return changed


def repeated(lines, place, _rng):
    return [*lines[: place + 1], lines[place], *lines[place + 1 :]]


def inserted(lines, place, _rng):
    forged = json.loads(lines[place])
    forged["seq"] += 1
    return [*lines[: place + 1], json.dumps(forged).encode(), *lines[place + 1 :]]


@pytest.mark.parametrize("change", [edited, cut, cut_off, swapped, repeated, inserted])
def test_every_change_of_any_record_is_found(change, written):
    lines = written.read_bytes().splitlines()
    rng = random.Random(7)
    for place in range(len(lines)):
        if change is cut_off and json.loads(lines[place - 1])["event"] == "close":
            continue  # only a record noted elsewhere tells of that: below
        written.write_bytes(b"\n".join(change(lines, place, rng)) + b"\n")
        code, said = _verified_here(written)
        assert code == 1, (place, said)


def _verified_here(path):
    """As verify(), without a process for each of hundreds."""
    from marlin.commands import audit as command

    try:
        return 0, command._verify([str(path)], audit.Chain(KEY), None, False)
    except AuditFileError as error:
        return 1, error.message


def test_a_record_noted_elsewhere_must_be_there(written, key_path):
    lines = written.read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])
    head = f"{last['seq']}:{last['mac']}"
    assert verify(key_path, written, "--head", head)[0] == 0
    written.write_bytes(b"".join(lines[:8]))  # a whole log, as it once was
    assert verify(key_path, written)[0] == 0
    code, said = verify(key_path, written, "--head", head)
    assert code == 1 and "record 14 of --head is not there" in said


def test_another_key_finds_nothing_whole(written, tmp_path):
    other = tmp_path / "other.key"
    other.write_bytes(b"j" * 32)
    other.chmod(0o600)
    code, said = verify(other, written)
    assert code == 1 and "line 1 was changed, or is of another key" in said
    with pytest.raises(AuditFileError, match="its last record was changed, or is of another key"):
        AuditLog(str(written), b"j" * 32, FACTS)


def test_a_log_that_was_renamed_goes_on_in_a_new_file(tmp_path, key_path):
    path, older = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    log = AuditLog(str(path), KEY, FACTS)
    ask(log)
    path.rename(older)
    ask(log, 1)
    log.close()
    assert records(older)[-1] | {"event": "close", "rotated": True} == records(older)[-1]
    assert records(path)[0]["event"] == "open"
    assert verify(key_path, older, path)[0] == 0
    code, said = verify(key_path, path)
    first = records(path)[0]["seq"]
    assert code == 1 and f"line 1 is record {first}, where 1 should be" in said
    last = records(older)[-1]
    assert verify(key_path, path, "--after", f"{last['seq']}:{last['mac']}")[0] == 0
    assert verify(key_path, path, older)[0] == 1


def test_a_new_file_is_begun_by_its_opening_record_when_there_is_room(
    tmp_path, key_path, monkeypatch
):
    path, older = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    monkeypatch.setattr(audit, "_RETRY_S", 0.02)
    log = AuditLog(str(path), KEY, FACTS)
    write, failures = os.write, [OSError(errno.ENOSPC, "No space left on device")]

    def write_all_but_one_opening(fd, data):
        if failures and b'"event":"open"' in data:
            raise failures.pop()
        return write(fd, data)

    monkeypatch.setattr(audit.os, "write", write_all_but_one_opening)
    path.rename(older)
    with pytest.raises(AuditError, match="No space left"):
        ask(log)
    until = time.monotonic() + PATIENCE_S
    while log.failing() and time.monotonic() < until:
        time.sleep(0.02)
    ask(log, 1)
    log.close()
    assert not failures and records(path)[0]["event"] == "open"
    assert verify(key_path, older, path)[0] == 0


def test_an_unfinished_record_is_cut_off_and_told(written, key_path):
    whole = written.read_bytes()
    written.write_bytes(whole[:-10])
    AuditLog(str(written), KEY, FACTS).close()
    assert len(records(written)) == 13 + 2
    torn = len(whole.splitlines(keepends=True)[-1]) - 10
    assert records(written)[-2]["torn_bytes"] == torn
    code, said = verify(key_path, written)
    assert code == 1 and "line 14 opens, and none before it closes" in said
    assert verify(key_path, written, "--unclosed")[0] == 0


def test_the_largest_record_is_one_line_and_the_next_follows_it(tmp_path):
    """A body is recorded before it is known to be text: each of its bytes may take six."""
    path, chain = tmp_path / "log", audit.Chain(KEY)
    body = "\x01" * Limits().for_context(128 * 1024, takes_many=True).body_bytes
    path.write_bytes(chain.added({"event": "begin", "request": body}))
    again = audit.Chain(KEY)
    for line in audit.lines_of(str(path)):
        again.read(line)
    assert (again.seq, again.mac) == (chain.seq, chain.mac)
    log = AuditLog(str(path), KEY, FACTS)
    log.close()
    assert log.head.startswith("3:")


def test_one_server_writes_a_log(written):
    log = AuditLog(str(written), KEY, FACTS)
    with pytest.raises(AuditFileError, match="another server writes this audit log"):
        AuditLog(str(written), KEY, FACTS)
    log.close()


def test_a_disk_that_fills_up_refuses_requests_until_there_is_room(tmp_path, key_path, monkeypatch):
    path = tmp_path / "audit.jsonl"
    monkeypatch.setattr(audit, "_RETRY_S", 0.02)
    log = AuditLog(str(path), KEY, FACTS)
    write, is_full = os.write, threading.Event()

    def write_half(fd, data):
        if not is_full.is_set() or b"mac" not in data:
            return write(fd, data)
        write(fd, data[:30])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit.os, "write", write_half)
    entry = log.begin(b"before", request_id="r0")
    is_full.set()
    with pytest.raises(AuditError, match="cannot be written: No space left on device"):
        log.begin(b"full", request_id="r1")
    entry.end(outcome=200)  # a record of what was answered is not lost
    assert log.failing() == "the audit log cannot be written: No space left on device"
    with pytest.raises(AuditError):
        log.begin(b"full", request_id="r2")
    is_full.clear()
    end = time.monotonic() + PATIENCE_S
    while log.failing() and time.monotonic() < end:
        time.sleep(0.01)
    ask(log, 3)
    log.close()
    assert verify(key_path, path)[0] == 0
    outcomes = {r["request_id"]: r["outcome"] for r in records(path) if r["event"] == "end"}
    assert outcomes == {"r0": 200, "r1": "refused", "r3": 200}


def test_a_disk_that_hangs_refuses_requests(tmp_path, key_path, monkeypatch):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path), KEY, FACTS, wait_s=0.2)
    hangs, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(audit.os, "fsync", lambda fd: (hangs.wait(PATIENCE_S), fsync(fd)))
    for _ in range(2):
        with pytest.raises(AuditError, match="disk"):
            log.begin(b"", request_id="r")
    assert log.failing() == "the audit log's disk hangs"
    hangs.set()
    end = time.monotonic() + PATIENCE_S
    while log.failing() and time.monotonic() < end:
        time.sleep(0.01)
    log.close()
    assert verify(key_path, path)[0] == 0


@pytest.mark.parametrize(
    ("data", "mode", "said"),
    [(b"k" * 31, 0o600, "and this one 31"), (KEY, 0o644, "others may read")],
)
def test_a_weak_or_open_key_is_refused(data, mode, said, tmp_path):
    path = tmp_path / "k"
    path.write_bytes(data)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=said):
        read_key(str(path))


def test_texts_are_no_parameters():
    values = {"model": "m", "temperature": 1}
    assert parameters_digest({**values, "messages": [], "prompt": "x"}) == parameters_digest(values)
    assert parameters_digest({**values, "temperature": 2}) != parameters_digest(values)


def serve(path, key_path, *more, **options):
    return serve_mock("--audit-log", path, "--audit-key-file", key_path, *more, **options)


def test_a_server_records_every_request_with_a_text(tmp_path, key_path):
    path = tmp_path / "audit.jsonl"
    with serve(path, key_path) as served:
        served.post("/v1/completions", BODY)
        served.events("/v1/completions", BODY)
        assert served.ask("POST", "/v1/completions", {**BODY, "max_tokens": -1})[0] == 422
        served.ask("GET", "/v1/models")
        served.post("/tokenize", {"content": "a"})
    assert verify(key_path, path)[0] == 0
    begins = [record for record in records(path) if record["event"] == "begin"]
    ends = [record for record in records(path) if record["event"] == "end"]
    assert [end["outcome"] for end in ends] == [200, 200, 422, 200]
    assert [e["endpoint"] for e in begins] == ["/v1/completions"] * 3 + ["/tokenize"]
    assert [end["request_id"] for end in ends] == [begin["request_id"] for begin in begins]
    assert begins[0]["request_hmac"] != begins[1]["request_hmac"]
    assert (ends[0]["prompt_tokens"], ends[0]["output_tokens"]) == (5, 4)
    assert "1 2 3" not in path.read_text()


def test_a_server_records_texts_where_it_is_told_to(tmp_path, key_path):
    path = tmp_path / "audit.jsonl"
    with serve(path, key_path, "--audit-content") as served:
        answer = served.post("/v1/completions", BODY)
    begin, end = records(path)[1:3]
    assert json.loads(begin["request"]) == BODY and json.loads(end["answer"]) == answer


def test_each_worker_has_a_log_of_its_own(tmp_path, key_path):
    path = tmp_path / "audit.jsonl"
    with serve(path, key_path, "--workers", "2") as served:
        served.wait_for_workers(2)
        served.post("/v1/completions", BODY)
    logs = [tmp_path / f"audit.jsonl.{index}" for index in range(2)]
    assert sorted(len(records(log)) for log in logs) in ([2, 4], [1, 4])
    assert all(verify(key_path, log, "--unclosed")[0] == 0 for log in logs)


def test_a_server_whose_disk_is_full_answers_nothing(tmp_path, key_path):
    path = tmp_path / "audit.jsonl"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    with serve(path, key_path, before_start=limit) as served:
        statuses = [served.ask("POST", "/v1/completions", BODY)[0] for _ in range(12)]
        assert statuses[0] == 200 and statuses[-1] == 503
        assert statuses == sorted(statuses)
        _, answer = served.ask("POST", "/v1/completions", BODY)
        assert answer["error"]["code"] == "audit_unavailable"
        end = time.monotonic() + PATIENCE_S
        while served.ask("GET", "/health")[0] != 503:
            assert time.monotonic() < end
    # The answers that were given are recorded as begun, all of them.
    num_begun = sum(record["event"] == "begin" for record in records(path))
    assert num_begun >= statuses.count(200)
    assert verify(key_path, path, "--unclosed")[0] == 0


def test_half_of_the_settings_is_refused(tmp_path, key_path):
    for words in (["--audit-log", tmp_path / "a"], ["--audit-key-file", key_path]):
        with pytest.raises(AssertionError, match="--audit-log and --audit-key-file go together"):
            serve_mock(*words)


def test_show_chooses_by_fields(written):
    run = [sys.executable, "-m", "marlin", "audit", "show", str(written)]
    shown = subprocess.run([*run, "--request-id", "r3"], capture_output=True, check=True).stdout
    assert [json.loads(line)["event"] for line in shown.splitlines()] == ["begin", "end"]
    everything = subprocess.run(run, capture_output=True, check=True).stdout
    assert everything == written.read_bytes()
