"""Named keys: whose a request is, what each key may, and files that change while they are read."""

import json
import os
import threading
from dataclasses import replace

import pytest
from clients import CLIENT_TIMEOUT_S, completion_body, request_bytes
from fakes import FakeEngine, say
from worker_processes import until

from marlin import cli
from marlin.commands import keys as commands_keys
from marlin.config import serve_config
from marlin.errors import ConfigError, RateLimitError
from marlin.server.api import keys
from marlin.server.api.keys import Keys, read_key_file, with_new_key
from marlin.server.api.quotas import Quotas
from marlin.server.http.connection import Connection
from marlin.server.observe.metrics import FAMILIES, Metrics

SECRETS = {name: f"mm-{name}-" + "0123456789abcdef" * 2 for name in ("ann", "bob", "carl")}


def write(path, *names, **limits):
    data = {"keys": []}
    for name in names:
        data = with_new_key(data, name, SECRETS[name], **limits)
    path.write_bytes(keys.encode(data))
    os.chmod(path, 0o600)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def start(start_server, path):
    def begin(*args, environ=None, **limits):
        write(path, "ann", "bob", **limits)
        return start_server(*args, options={"key_file": str(path)}, environ=environ)

    return begin


def ask(server, name, target="/v1/completions", body=None, method="POST"):
    secret = SECRETS.get(name, name)
    body = completion_body(**(body or {})) if method == "POST" else None
    with server.connect() as client:
        return client.ask(method, target, body, [f"Authorization: Bearer {secret}"])


def test_each_named_key_opens_and_no_other_secret(start):
    server = start()
    assert [ask(server, name).status for name in ("ann", "bob", "carl", "")] == [200, 200, 401, 401]
    assert {request.client for request in server.engine.requests} == {"key:ann", "key:bob"}


def test_the_key_of_all_stays_beside_named_ones_and_is_shared_by_addresses(start):
    server = start(environ={"METAL_MARLIN_API_KEY": "for-everybody"})
    assert ask(server, "for-everybody").status == 200
    assert server.engine.requests[-1].client == "127.0.0.1"
    assert ask(server, "ann").status == 200


def test_a_secret_that_can_be_guessed_opens_nothing(start_server, path):
    path.write_bytes(keys.encode(with_new_key({"keys": []}, "weak", "secret")))
    server = start_server(options={"key_file": str(path)})
    assert ask(server, "secret").status == 401


def test_a_scope_that_a_key_lacks_is_403(start):
    server = start()
    answer = ask(server, "ann", "/metrics", method="GET")
    assert (answer.status, answer.error["code"]) == (403, "forbidden")
    assert ask(start(scopes=["metrics"]), "ann", "/metrics", method="GET").status == 200
    answer = ask(start(scopes=["metrics"]), "ann")
    assert (answer.status, answer.error["message"]) == (403, "key ann may not generate")


def test_a_key_may_have_so_many_requests_at_once(start):
    release = threading.Event()

    def script(request):
        release.wait(CLIENT_TIMEOUT_S)
        yield b"Hi"

    server = start(FakeEngine(script), concurrent_requests=1)
    with server.connect() as first:
        field = f"Authorization: Bearer {SECRETS['ann']}"
        first.send(request_bytes("POST", "/v1/completions", completion_body(), [field]))
        assert server.engine.submitted.acquire(timeout=CLIENT_TIMEOUT_S)
        answer = ask(server, "ann")
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "1"
        release.set()
        assert ask(server, "bob").status == 200
        assert first.read().status == 200
    server.wait_until_idle()
    assert ask(server, "ann").status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_has_read_a_whole_answer_may_ask_again_at_once(start, monkeypatch, stream):
    over, send = threading.Event(), Connection.send

    def send_and_hang(connection, data):
        send(connection, data)
        if not stream or data.endswith(b"0\r\n\r\n"):
            over.wait(CLIENT_TIMEOUT_S)

    server = start(concurrent_requests=1)
    monkeypatch.setattr(Connection, "send", send_and_hang)
    try:
        assert ask(server, "ann", body={"stream": stream}).status == 200
        assert ask(server, "ann", body={"stream": stream}).status == 200
    finally:
        over.set()


def test_a_key_that_has_had_its_tokens_waits_and_others_do_not(start):
    server = start(FakeEngine(say(b"x" * 90)), tokens_per_minute=60)
    assert ask(server, "ann", body={"max_tokens": 90}).status == 200  # 92 tokens with its prompt
    counted = FAMILIES["key_tokens_total"].start
    until(lambda: server.app._metrics.cells[counted] == 92, "they are counted")
    answer = ask(server, "ann")
    assert answer.status == 429 and "60 tokens" in answer.error["message"]
    assert 31 <= int(answer.headers["retry-after"]) <= 33
    assert ask(server, "bob").status == 200


def test_tokens_wear_off_at_the_rate_that_is_allowed():
    now = [100.0]
    metrics = Metrics()
    quotas = Quotas(metrics, [metrics.cells], lambda: now[0])
    principal = keys.Principal("a", 0, b"", tokens_per_minute=60)

    def have(num_tokens):
        record = metrics.record()
        record.num_prompt_tokens = num_tokens
        with quotas.use(principal, True, record):
            pass

    have(100)
    with pytest.raises(RateLimitError, match="try again in 41 s"):
        have(0)
    now[0] += 41
    have(10)
    now[0] += 3600
    have(60)
    with pytest.raises(RateLimitError):
        have(0)


def test_keys_whose_numbers_are_exchanged_keep_what_they_have_had():
    metrics = Metrics()
    quotas = Quotas(metrics, [metrics.cells], lambda: 100.0)
    ann, bob = (keys.Principal(name, 0, b"", tokens_per_minute=60) for name in ("ann", "bob"))

    def use(quotas, principal, number, num_tokens=0):
        record = metrics.record()
        record.num_prompt_tokens = num_tokens
        with quotas.use(replace(principal, number=number), True, record):
            pass

    use(quotas, ann, 0, 100)
    use(quotas, bob, 1, 10)
    quotas.look([ann, replace(bob, number=1)])  # as several times a second
    for later in (quotas, Quotas(metrics, [metrics.cells], lambda: 100.0)):
        use(later, bob, 0)
        with pytest.raises(RateLimitError, match="key ann has had"):
            use(later, ann, 1)


def test_a_key_may_ask_for_so_many_output_tokens(start):
    server = start(FakeEngine(say(*[b"x"] * 50)), output_tokens=7)
    answer = ask(server, "ann", body={"max_tokens": 8})
    assert (answer.status, answer.error["param"]) == (422, "max_tokens")
    assert ask(server, "ann").json()["usage"]["completion_tokens"] == 7


def test_a_key_sees_and_names_only_its_models(start_server, path):
    write(path, "ann", models=["two"])
    server = start_server(options={"key_file": str(path), "served_names": "one,two"})
    listed = ask(server, "ann", "/v1/models", method="GET").json()["data"]
    assert [card["id"] for card in listed] == ["two"]
    assert ask(server, "ann", body={"model": "one"}).status == 404
    assert ask(server, "ann", "/v1/models/one", method="GET").status == 404
    assert ask(server, "ann", body={"model": "two"}).status == 200
    assert [m["name"] for m in ask(server, "ann", "/api/tags", method="GET").json()["models"]] == [
        "two"
    ]


def test_metrics_and_logs_tell_keys_apart_by_name(start, caplog):
    caplog.set_level("INFO")
    server = start(FakeEngine(say(b"abc")), environ={"METAL_MARLIN_API_KEY": "for-everybody"})
    ask(server, "bob", body={"prompt": "Hi"})
    server.wait_until_idle()
    fields = ["Authorization: Bearer for-everybody", "Accept: text/plain"]
    with server.connect() as client:
        text = client.ask("GET", "/metrics", None, fields).body.decode()
    assert 'metal_marlin_key_requests_total{key="bob"} 1' in text
    assert 'metal_marlin_key_tokens_total{key="bob"} 5' in text
    assert 'metal_marlin_key_requests_total{key="ann"} 0' in text
    lines = [record for record in caplog.records if "/v1/completions" in record.getMessage()]
    assert "key=bob" in lines[-1].getMessage() and lines[-1].fields["key"] == "bob"
    assert not any(secret in caplog.text for secret in SECRETS.values())


def test_a_file_that_changes_is_read_again(start, path):
    server = start()
    write(path, "bob", "carl")
    server.app.heartbeat()
    assert [ask(server, name).status for name in ("ann", "bob", "carl")] == [401, 200, 200]


def test_a_file_that_cannot_be_used_leaves_the_keys_as_they_were(start, path, caplog):
    server = start()
    path.write_text('{"keys": [{}]}')
    server.app.heartbeat()
    server.app.heartbeat()
    assert ask(server, "ann").status == 200
    said = [r.getMessage() for r in caplog.records if "as they were" in r.getMessage()]
    assert len(said) == 1 and "keys[0].name" in said[0]
    path.unlink()
    server.app.heartbeat()
    assert ask(server, "ann").status == 200


def test_a_file_that_looks_the_same_is_read_again_when_asked(path):
    write(path, "ann")
    found = Keys(None, str(path))
    before = os.stat(path)
    write(path, "bob")
    found._seen = found._state()  # as if nobody could tell
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found._seen = found._state()
    found.look()
    assert found.names == {0: "ann"}
    found.forget()
    found.look()
    assert found.names == {0: "bob"}


GOOD = {"name": "a", "number": 0, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[]", "must be an object"),
        ("{", "no JSON"),
        ({"keys": []}, "1 to 64"),
        ({"keys": {}}, "keys must be"),
        ({"keys": [1]}, "keys[0] must be an object"),
        ({"keys": [GOOD], "more": 1}, 'with "keys" alone'),
        ({"keys": [{**GOOD, "secret": "x"}]}, "unknown field"),
        ({"keys": [{**GOOD, "name": "a b"}]}, "keys[0].name"),
        ({"keys": [{**GOOD, "number": 64}]}, "keys[0].number"),
        ({"keys": [{**GOOD, "sha256": "0" * 63}]}, "keys[0].sha256"),
        ({"keys": [{**GOOD, "sha256": "G" * 64}]}, "keys[0].sha256"),
        ({"keys": [{**GOOD, "scopes": ["root"]}]}, "keys[0].scopes"),
        ({"keys": [{**GOOD, "scopes": []}]}, "keys[0].scopes"),
        ({"keys": [{**GOOD, "models": [1]}]}, "keys[0].models"),
        ({"keys": [{**GOOD, "output_tokens": 0}]}, "keys[0].output_tokens"),
        ({"keys": [GOOD, {**GOOD, "number": 1, "sha256": "1" * 64}]}, "the same name"),
        ({"keys": [GOOD, {**GOOD, "name": "b", "sha256": "1" * 64}]}, "the same number"),
        ({"keys": [GOOD, {**GOOD, "name": "b", "number": 1}]}, "the same sha256"),
    ],
)
def test_a_key_file_that_is_none_is_refused_and_says_where(path, content, complaint):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    os.chmod(path, 0o600)
    with pytest.raises(ConfigError) as caught:
        read_key_file(str(path))
    assert complaint in caught.value.message and str(path) in caught.value.message


def test_a_key_file_that_others_may_write_is_refused(path):
    write(path, "ann")
    os.chmod(path, 0o620)
    with pytest.raises(ConfigError, match="chmod go-w"):
        read_key_file(str(path))


def test_a_server_without_its_key_file_does_not_start(path):
    config = serve_config({"key_file": str(path)}, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(config.api_key, config.key_file)


def test_new_keys_have_numbers_that_are_free(path):
    data = {"keys": []}
    for name in ("a", "b", "c"):
        data = with_new_key(data, name, name * 40)
    data["keys"].pop(1)
    data = with_new_key(data, "d", "d" * 40)
    assert {key["name"]: key["number"] for key in data["keys"]} == {"a": 0, "c": 2, "d": 1}
    with pytest.raises(ConfigError, match="a key named a"):
        with_new_key(data, "a", "x" * 40)


@pytest.mark.parametrize("content", ['{"keys": 5}', '{"keys": [5]}', '{"keys": [{}]}'])
def test_a_new_key_is_not_added_to_what_is_no_key_file(path, content):
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"{path.name}: keys"):
        commands_keys.run(cli.read(["keys", "new", "ann", "--key-file", str(path)], {}))
    assert path.read_text() == content


def test_who_may_read_a_key_file_still_may_when_a_key_is_added(path):
    """The server that reads it is often another user than who adds keys."""
    ask = ["keys", "new", "ann", "--key-file", str(path)]
    path.unlink(missing_ok=True)
    commands_keys.run(cli.read(ask, {}))
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    link = path.with_name("link")
    link.symlink_to(path)
    commands_keys.run(cli.read(["keys", "new", "bob", "--key-file", str(link)], {}))
    assert path.stat().st_mode & 0o777 == 0o640 and link.is_symlink()
    assert [principal.name for principal in read_key_file(str(path))] == ["ann", "bob"]
