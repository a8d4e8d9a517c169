"""deploy/nginx.conf in a real nginx, over TLS, in front of real servers.

The shipped text is used as it is but for what belongs to one installation: addresses, ports,
certificate, and where nginx may write.
"""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPSConnection

import pytest
from contract import CHAT, COMPLETIONS, MODEL, chat, completion
from served import PATIENCE_S, serve_mock

HOST = "api.example.com"
JSON = {"Content-Type": "application/json"}


def replica_of():
    """A server that nginx, which is on this machine, passes the name on to that it is asked by."""
    return serve_mock("--allowed-host", HOST, model=f"models/{MODEL}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def replaced(text, old, new):
    assert text.count(old) == 1, f"{old!r} is in the shipped file {text.count(old)} times"
    return text.replace(old, new)


def localized(text, folder, ports, servers):
    """The shipped configuration for this machine; ports: of HTTP and TLS."""
    addresses = " ".join(f"server 127.0.0.1:{port};" for port in servers)
    assert text.count("server metal-marlin:8000;") == 2  # the least busy, and sessions
    text = text.replace("server metal-marlin:8000;", addresses)
    text = replaced(text, "listen 80;", f"listen 127.0.0.1:{ports[0]};")
    text = replaced(text, "listen 443 ssl http2;", f"listen 127.0.0.1:{ports[1]} ssl http2;")
    text = text.replace("/etc/nginx/ssl/", f"{folder}/")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    text = replaced(text, "http {", f"http {{ access_log off; {places}")
    # Started by root, its workers would be nobody, who may not write in this folder.
    user = "user root;" if os.geteuid() == 0 else ""
    return f"{user} daemon off; pid {folder}/pid; error_log stderr warn;\n{text}"


@pytest.fixture(scope="module")
def certificate(program, tmp_path_factory):
    """A folder with a throwaway key.pem and cert.pem for HOST."""
    folder = tmp_path_factory.mktemp("tls")
    folder.chmod(0o755)
    command = f"{program('openssl')} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={HOST}"
    done = subprocess.run(
        [*command.split(), "-addext", f"subjectAltName=DNS:{HOST}"]
        + ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Nginx:
    """A running nginx over some servers' ports; change: the configuration's last edit."""

    def __init__(self, program, text, folder, servers, change=lambda text: text):
        self.ports = free_port(), free_port()
        self.tls = ssl.create_default_context(cafile=folder / "cert.pem")
        path = folder / "nginx.conf"
        path.write_text(change(localized(text, folder, self.ports, servers)))
        command = [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(path)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + PATIENCE_S
        while not self._listens():
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < end, "nginx never listened"
            time.sleep(0.02)  # a gentle poll for a program that announces nothing

    def _listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports[1])) == 0

    def connect(self):
        connection = HTTPSConnection(HOST, self.ports[1], timeout=PATIENCE_S, context=self.tls)
        # The name is for the certificate; the address is this machine's.
        connection._create_connection = lambda address, *rest: socket.create_connection(
            ("127.0.0.1", address[1]), *rest
        )
        return connection

    def send(self, method, path, body=None, headers=None):
        """Returns (status, headers, content)."""
        connection = self.connect()
        try:
            body = None if body is None else json.dumps(body)
            connection.request(method, path, body, JSON if headers is None else JSON | headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def start_nginx(program, deploy, certificate):
    running = []

    def start(*servers, change=lambda text: text):
        text = (deploy / "nginx.conf").read_text()
        ports = [served.port for served in servers]
        running.append(Nginx(program, text, certificate, ports, change))
        return running[-1]

    yield start
    for nginx in running:
        nginx.stop()


@pytest.fixture(scope="module")
def replica():
    with replica_of() as served:
        yield served


def test_counters_are_for_the_operators_network_by_whatever_path(start_nginx, replica):
    outside = start_nginx(replica, change=lambda text: replaced(text, "allow 127.0.0.1;", ""))
    for path in ("/metrics", "/metrics/", "//metrics//", "/%6Detrics/?a"):
        assert outside.send("GET", path)[0] == 403
    assert start_nginx(replica).send("GET", "/metrics/")[0] == 200


def without_rate_limit(text):
    return replaced(text, "rate=10r/s", "rate=100000r/s")


def test_nginx_accepts_the_shipped_file(program, deploy, certificate):
    path = certificate / "checked.conf"
    path.write_text(localized((deploy / "nginx.conf").read_text(), certificate, (80, 443), [8000]))
    done = subprocess.run(
        [program("nginx"), "-t", "-e", "stderr", "-p", str(certificate), "-c", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "test is successful" in done.stderr, done.stderr
    assert "[warn]" not in done.stderr or "http2" in done.stderr  # newer ones rename that word


def test_plain_http_is_sent_to_tls(start_nginx, replica):
    nginx = start_nginx(replica)
    connection = HTTPConnection("127.0.0.1", nginx.ports[0], timeout=PATIENCE_S)
    connection.request("GET", "/v1/models?a=b")
    response = connection.getresponse()
    assert response.status == 301
    assert response.headers["Location"] == f"https://{HOST}/v1/models?a=b"
    connection.close()


def test_a_stream_arrives_through_tls_while_it_is_generated(start_nginx, replica):
    connection = start_nginx(replica).connect()
    body = chat(stream=True, max_tokens=2000, ignore_eos=True)
    connection.request("POST", CHAT, json.dumps(body), JSON)
    response = connection.getresponse()
    assert response.readline().startswith(b"data: {")
    assert replica.metrics()["requests_active"] == 1
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_a_client_that_leaves_the_proxy_frees_the_server(start_nginx, replica):
    connection = start_nginx(replica).connect()
    connection.request(
        "POST", CHAT, json.dumps(chat(stream=True, max_tokens=9**6, ignore_eos=True)), JSON
    )
    response = connection.getresponse()
    response.readline()
    response.close()
    connection.close()
    replica.wait_for_active(0)


def test_answers_errors_and_request_ids_pass_unchanged(start_nginx, replica):
    nginx = start_nginx(replica)
    status, headers, content = nginx.send("POST", CHAT, chat(), {"X-Request-ID": "mine-2"})
    assert (status, headers["X-Request-ID"]) == (200, "mine-2")
    assert json.loads(content)["choices"]
    status, headers, content = nginx.send("POST", CHAT, chat(temperature=3))
    assert (status, json.loads(content)["error"]["param"]) == (422, "temperature")
    assert re.fullmatch("[0-9a-f]{32}", headers["X-Request-ID"])  # nginx made it up


def test_a_server_without_a_port_is_behind_it_by_the_files_own_line(start_nginx, deploy, tmp_path):
    path = tmp_path / "socket"
    (line,) = re.findall(r"# (server unix:\S+;)", (deploy / "nginx.conf").read_text())

    def by_unix_socket(text):
        own = line.replace("/run/metal-marlin/socket", str(path))
        return re.sub(r"server 127\.0\.0\.1:\d+;", own, text)

    words = "--uds", path, "--uds-beside-tcp"
    with serve_mock(*words, model=f"models/{MODEL}") as served:
        nginx = start_nginx(served, change=by_unix_socket)
        status, _, content = nginx.send("POST", CHAT, chat())
        assert (status, bool(json.loads(content)["choices"])) == (200, True)
        end = time.monotonic() + PATIENCE_S
        while f"uid:{os.getuid()} POST {CHAT} 200" not in served.log():  # its writer takes a moment
            assert time.monotonic() < end, served.log()
            time.sleep(0.02)


def test_a_body_as_large_as_any_server_takes_is_let_through(start_nginx):
    body = completion(prompt="x" * (16 * 1024 * 1024 - 1000))
    # The largest context for which bodies grow.
    with serve_mock(
        "--allowed-host", HOST, "--max-context", "600000", model=f"models/{MODEL}"
    ) as large:
        status, _, content = start_nginx(large).send("POST", COMPLETIONS, body)
    assert (status, json.loads(content)["error"]["code"]) == (400, "context_length_exceeded")


def test_a_flood_from_one_address_gets_429_as_json(start_nginx, replica):
    nginx = start_nginx(replica)
    with ThreadPoolExecutor(max_workers=40) as pool:
        answers = list(pool.map(lambda _: nginx.send("GET", "/health"), range(40)))
    refused = [answer for answer in answers if answer[0] == 429]
    assert refused and len(answers) - len(refused) >= 20  # the burst is slowed, not refused
    _, headers, content = refused[0]
    assert json.loads(content)["error"]["type"] == "rate_limit_error"
    assert headers["Retry-After"] == "1"


def test_a_replica_that_is_killed_under_load_loses_no_request_that_had_not_started(start_nginx):
    with replica_of() as doomed, replica_of() as kept:
        nginx = start_nginx(doomed, kept, change=without_rate_limit)
        answered = threading.Semaphore(0)

        def ask(_):
            status = nginx.send("POST", CHAT, chat(max_tokens=100, ignore_eos=True))[0]
            answered.release()
            return status

        with ThreadPoolExecutor(max_workers=8) as pool:
            statuses = pool.map(ask, range(100))
            for _ in range(20):
                assert answered.acquire(timeout=PATIENCE_S)
            shares = [served.metrics()["requests_total"] for served in (doomed, kept)]
            doomed.process.kill()
            assert set(statuses) == {200}
        assert min(shares) > 0, "only one of the replicas was asked"
        assert kept.metrics()["requests_total"] > shares[1]


@pytest.fixture
def replicas():
    with replica_of() as first, replica_of() as second, replica_of() as third:
        yield first, second, third
        for served in (first, second, third):
            if served.process.poll() is None:
                served.process.send_signal(signal.SIGCONT)


def counts(replicas):
    return [served.metrics()["requests_total"] for served in replicas]


def session(name):
    return {"X-Session-ID": name}


def owner(nginx, replicas, name):
    """The number of the replica that a session's requests go to, all of them."""
    before = counts(replicas)
    asked = [nginx.send("POST", CHAT, chat(), session(name))[0] for _ in range(3)]
    assert asked == [200] * 3
    added = [now - then for now, then in zip(counts(replicas), before, strict=True)]
    assert sorted(added) == [0, 0, 3], added
    return added.index(3)


@pytest.mark.long
def test_a_session_stays_with_one_replica_and_only_the_sessions_of_a_killed_one_move(
    start_nginx, replicas
):
    nginx = start_nginx(*replicas, change=without_rate_limit)
    names = [f"session {number}" for number in range(12)]
    owners = {name: owner(nginx, replicas, name) for name in names}
    assert len(set(owners.values())) > 1
    gone = owners[names[0]]
    replicas[gone].process.kill()
    replicas[gone].process.wait()
    kept = [served for number, served in enumerate(replicas) if number != gone]
    for name, before in owners.items():
        counted = counts(kept)
        assert nginx.send("POST", CHAT, chat(), session(name))[0] == 200
        added = [now - then for now, then in zip(counts(kept), counted, strict=True)]
        assert sum(added) == 1
        if before != gone:
            assert kept[added.index(1)] is replicas[before]


@pytest.mark.long
def test_no_request_is_lost_when_a_replica_is_told_to_stop(start_nginx, replicas):
    nginx = start_nginx(*replicas, change=without_rate_limit)
    answered, stopped = threading.Semaphore(0), threading.Event()

    def ask(number):
        statuses = []
        while not stopped.is_set():
            headers = session(str(number)) if number % 2 else {}
            statuses.append(nginx.send("POST", CHAT, chat(), headers)[0])
            answered.release()
        return statuses

    with ThreadPoolExecutor(max_workers=6) as pool:
        asked = [pool.submit(ask, number) for number in range(6)]
        try:
            for _ in range(20):
                assert answered.acquire(timeout=PATIENCE_S)
            assert replicas[0].stop() == 0
            for _ in range(20):
                assert answered.acquire(timeout=PATIENCE_S)
        finally:
            stopped.set()
    assert {status for one in asked for status in one.result()} == {200}


@pytest.mark.long
def test_a_replica_that_hangs_keeps_its_requests_for_the_read_timeout_and_is_left_out_then(
    start_nginx, replicas
):
    def impatient(text):
        text = without_rate_limit(text)
        return replaced(text, "proxy_read_timeout 130s", "proxy_read_timeout 2s")

    nginx = start_nginx(*replicas, change=impatient)
    replicas[2].process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(max_workers=12) as pool:
        statuses = list(pool.map(lambda _: nginx.send("POST", CHAT, chat())[0], range(12)))
    assert statuses == [200] * 12  # those that it held went to another
    before = sum(counts(replicas[:2]))
    assert [nginx.send("POST", CHAT, chat())[0] for _ in range(6)] == [200] * 6
    assert sum(counts(replicas[:2])) == before + 6


@pytest.mark.long
def test_a_stream_that_is_cut_off_is_seen_to_be_and_is_not_begun_again(start_nginx, replicas):
    nginx = start_nginx(*replicas, change=without_rate_limit)
    body = json.dumps(chat(stream=True, max_tokens=4000, ignore_eos=True))
    streams = []
    for _ in range(3):
        connection = nginx.connect()
        connection.request("POST", CHAT, body, JSON)
        response = connection.getresponse()
        assert response.readline().startswith(b"data: {")
        streams.append((connection, response))
    assert [served.metrics()["requests_active"] for served in replicas] == [1, 1, 1]
    replicas[0].process.kill()
    ends = []
    for connection, response in streams:
        try:
            ends.append(response.read().endswith(b"data: [DONE]\n\n"))
        except (HTTPException, OSError):
            ends.append(False)
        connection.close()
    assert sorted(ends) == [False, True, True]
    assert counts(replicas[1:]) == [1, 1]


def test_with_no_replica_left_the_answer_is_503_as_json(start_nginx):
    with replica_of() as served:
        nginx = start_nginx(served)
    status, headers, content = nginx.send("POST", CHAT, chat())
    assert (status, json.loads(content)["error"]["code"]) == (503, "server_unreachable")
    assert headers["Retry-After"] == "5"
