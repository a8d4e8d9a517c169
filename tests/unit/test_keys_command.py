"""`metal-marlin keys new`: a secret that is shown once, and a file that a server reads."""

import hashlib
import json
import os
import stat
import subprocess
import sys

import pytest

from marlin.server.api.keys import MIN_SECRET_BYTES, Keys, read_key_file


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "marlin", "keys", *words], capture_output=True, text=True
    )


def test_a_new_key_opens_and_its_secret_is_in_no_file(tmp_path):
    path = tmp_path / "keys.json"
    first = run("new", "ann", "--key-file", str(path))
    more = ("--tokens-per-minute", "100", "--scopes", "generate,metrics", "--models", "a,b")
    second = run("new", "bob", "--key-file", str(path), *more)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    secrets = [done.stdout.strip() for done in (first, second)]
    assert all(len(secret) >= MIN_SECRET_BYTES for secret in secrets) and len(set(secrets)) == 2
    keys = Keys(None, str(path))
    assert [keys.find([secret.encode()]).name for secret in secrets] == ["ann", "bob"]
    assert not any(secret in path.read_text() for secret in secrets)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    bob = read_key_file(str(path))[1]
    assert (bob.tokens_per_minute, bob.models) == (100, ("a", "b"))
    assert bob.scopes == {"generate", "metrics"}


def test_without_a_file_the_entry_is_shown_beside_the_secret():
    done = run("new", "ann")
    entry = json.loads(done.stderr)
    digest = hashlib.sha256(done.stdout.strip().encode()).hexdigest()
    assert entry == {"name": "ann", "number": 0, "sha256": digest}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["old", "ann"], "the only action is new"),
        (["new", "a b"], "the name must be"),
        (["new", "ann", "--output-tokens", "0"], "--output-tokens must be 1 or more"),
        (["new", "ann", "--scopes", "root"], "--scopes must be"),
        (["new", "ann", "--key-file", "/nowhere/keys.json"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_key(words, complaint):
    done = run(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert complaint in done.stderr and done.stderr.count("\n") == 1
