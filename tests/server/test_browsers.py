"""What pages that somebody visits must not do with a server on his machine: the bytes that browsers
send."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from clients import completion_body

from marlin.config import serve_config
from marlin.errors import ConfigError
from marlin.server.api.browsers import Browsers, is_loopback

KEY = "0123456789abcdef"
BODY = json.dumps(completion_body()).encode()
JSON = ("Content-Type: application/json",)


def ask(server, *fields, method="POST", path="/v1/completions", host="127.0.0.1:8000"):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    body = BODY if method == "POST" else b""
    if body:
        lines.append(f"Content-Length: {len(body)}")
    with server.connect() as client:
        client.send("\r\n".join([*lines, "", ""]).encode() + body)
        return client.read(method)


@pytest.fixture
def locked(start_server):
    return start_server(environ={"METAL_MARLIN_API_KEY": KEY})


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost", "LOCALHOST:8000", "[::1]:8000", "::1", "macbook:8000",
     "192.168.1.5", ""],
)  # fmt: skip
def test_a_client_on_this_machine_may_use_what_no_page_can_be(server, host):
    assert ask(server, *JSON, host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", "1.2.3"]
)
def test_a_name_that_a_foreign_page_may_have_is_refused(server, host):
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/health")):
        answer = ask(server, *JSON, host=host, method=method, path=path)
        assert answer.status == 403 and "--allowed-host" in answer.error["message"]
    assert server.engine.requests == []


def test_a_name_with_dots_may_be_given_to_the_server(start_server):
    server = start_server(options={"allowed_hosts": "api.example.com,b.example"})
    assert ask(server, *JSON, host="API.example.com").status == 200
    assert ask(server, *JSON, host="a.api.example.com").status == 403


def test_other_machines_may_use_any_name():
    assert [is_loopback(a) for a in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")] == [
        True
    ] * 4
    assert [is_loopback(a) for a in ("10.0.0.1", "172.17.0.1", "fe80::1", "::ffff:10.0.0.1")] == [
        False
    ] * 4


def test_a_proxy_on_this_machine_that_speaks_http_1_0_passes_its_name(server):
    fields = "Host: api.example.com\r\nContent-Type: application/json\r\n"
    head = f"POST /v1/completions HTTP/1.0\r\n{fields}Content-Length: {len(BODY)}\r\n\r\n"
    with server.connect() as client:
        assert client.send(head.encode() + BODY).read().status == 200


class Asked:
    """A request of another machine's."""

    client_address = ("172.17.0.1", 1)
    command = "POST"
    head = SimpleNamespace(minor=1)

    def __init__(self, **fields):
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        self.headers = {"content-type": "application/json", **named}


def test_a_proxy_on_another_machine_passes_its_own_name_and_its_own_pages():
    Browsers(False).check(Asked(host="api.example.com"))
    Browsers(False).check(Asked(host="api.example.com", origin="https://api.example.com"))
    with pytest.raises(Exception, match="--allow-origin"):
        Browsers(False).check(Asked(host="api.example.com", origin="https://evil.example"))


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:3000", "https://127.0.0.1:8001", "file://",
     "http://localhost:8000", "http://127.0.0.1", "http://[", "garbage"],
)  # fmt: skip
def test_a_foreign_page_is_refused(server, origin):
    answer = ask(server, *JSON, f"Origin: {origin}")
    assert answer.status == 403 and "--allow-origin" in answer.error["message"]
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost"),
        ("localhost", "https://localhost"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_page_of_the_servers_own_may_use_it(server, host, origin):
    assert ask(server, *JSON, f"Origin: {origin}", host=host).status == 200


def test_what_a_browser_says_comes_from_another_site_is_refused(server):
    for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
        assert (
            ask(server, f"Sec-Fetch-Site: {site}", method="GET", path="/v1/models").status == status
        )


@pytest.mark.parametrize(
    "fields",
    [(), ("Content-Type: text/plain",), ("Content-Type: application/x-www-form-urlencoded",),
     ("Content-Type: multipart/form-data; boundary=x",), ("Content-Type: application/jsonp",),
     ("Content-Type:",)],
)  # fmt: skip
def test_what_a_page_sends_without_asking_is_415_with_a_key_too(server, locked, fields):
    for asked, more in ((server, ()), (locked, (f"Authorization: Bearer {KEY}",))):
        answer = ask(asked, *fields, *more)
        assert answer.status == 415 and "Content-Type: application/json" in answer.error["message"]
        assert asked.engine.requests == []


@pytest.mark.parametrize("value", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_json_however_it_is_written(server, value):
    assert ask(server, f"Content-Type: {value}").status == 200


def test_with_a_key_names_and_pages_do_not_matter(locked):
    fields = (*JSON, f"Authorization: Bearer {KEY}", "Origin: http://evil.example")
    answer = ask(locked, *fields, "Sec-Fetch-Site: cross-site", host="evil.example")
    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


def test_every_answer_is_what_it_says_it_is_and_kept_by_nobody(server):
    for method, path in (("GET", "/health"), ("GET", "/nowhere"), ("POST", "/v1/completions")):
        headers = ask(server, *JSON, method=method, path=path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


PREFLIGHT = (
    "Access-Control-Request-Method: POST",
    "Access-Control-Request-Headers: authorization,content-type",
)


def test_no_page_is_told_that_it_may(server, locked):
    for asked, status in ((server, 403), (locked, 401)):
        answer = ask(asked, "Origin: http://app.example", *PREFLIGHT, method="OPTIONS")
        assert answer.status == status
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_page_that_is_let_in_asks_without_a_key_and_reads_its_answers(start_server):
    options = {"allowed_origins": "https://app.example,null"}
    server = start_server(options=options, environ={"METAL_MARLIN_API_KEY": KEY})
    page = "Origin: https://app.example"
    asked = ask(server, page, *PREFLIGHT, method="OPTIONS")
    assert (asked.status, asked.body) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == "https://app.example"
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in asked.headers["access-control-allow-methods"]
    for fields, status in (((f"Authorization: Bearer {KEY}",), 200), ((), 401)):
        answer = ask(server, *JSON, page, "Sec-Fetch-Site: cross-site", *fields)
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["vary"] == "Origin"
    other = ask(server, "Origin: https://evil.example", *PREFLIGHT, method="OPTIONS")
    assert other.status == 401 and "access-control-allow-origin" not in other.headers


def test_any_page_may_be_let_in(start_server):
    server = start_server(options={"allowed_origins": "*"})
    answer = ask(server, *JSON, "Origin: https://a.example", "Sec-Fetch-Site: cross-site")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_names_of_headers_that_are_none_are_not_said_back(start_server):
    server = start_server(options={"allowed_origins": "*"})
    fields = ("Origin: https://a.example", "Access-Control-Request-Method: POST")
    asked = ask(server, *fields, "Access-Control-Request-Headers: a b;c", method="OPTIONS")
    assert asked.status == 204 and "access-control-allow-headers" not in asked.headers


@pytest.mark.parametrize(
    ("option", "value"),
    [("allowed_hosts", "a b"), ("allowed_hosts", "a.example:80"), ("allowed_hosts", ""),
     ("allowed_origins", "app.example"), ("allowed_origins", "https://a/b")],
)  # fmt: skip
def test_an_option_that_names_no_host_or_origin_is_refused(option, value):
    with pytest.raises(ConfigError):
        serve_config({option: value}, {})


def test_a_server_that_requires_a_key_does_not_start_without_or_with_one_to_be_guessed():
    words = [sys.executable, "-m", "marlin", "serve", "--require-key", "--check"]
    environ = {name: v for name, v in os.environ.items() if not name.startswith("METAL_MARLIN")}
    weak = {"METAL_MARLIN_API_KEY": KEY[:-1]}
    for more, code in (({}, 2), (weak, 2), ({"METAL_MARLIN_API_KEY": KEY}, 0)):
        done = subprocess.run(words, env=environ | more, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert ("--require-key" in done.stderr) == (code == 2)
