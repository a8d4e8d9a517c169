"""`serve` as a process: its announcement, its log, its signals, and that it reaches out to
nobody."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clients import CLIENT_TIMEOUT_S, RawClient, chat_body, request_bytes

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Process:
    def __init__(self, *arguments, **environ):
        self.popen = subprocess.Popen(
            [sys.executable, str(HERE / "serve_fake.py"), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{HERE}", **environ},
        )
        self.announcement = self.popen.stdout.readline()
        match = re.search(r"http://(\S+):(\d+)$", self.announcement)
        assert match, self.announcement + self.popen.stderr.read()
        self.host, self.port = match[1], int(match[2])

    def connect(self):
        address = ("127.0.0.1", self.port)
        return RawClient(socket.create_connection(address, timeout=CLIENT_TIMEOUT_S))

    def stop(self, signum=signal.SIGTERM):
        self.popen.send_signal(signum)
        return self.wait()

    def wait(self):
        """Returns (exit code, standard error)."""
        _, errors = self.popen.communicate(timeout=CLIENT_TIMEOUT_S)
        return self.popen.returncode, errors


@pytest.fixture
def start():
    processes = []

    def run(*arguments, **environ):
        processes.append(Process(*arguments, **environ))
        return processes[-1]

    yield run
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.communicate()


def chat(client, **changes):
    return client.ask("POST", "/v1/chat/completions", chat_body(**changes))


def begin_stream(client, model):
    body = chat_body(model=model, stream=True)
    client.send(request_bytes("POST", "/v1/chat/completions", body))
    client.read_stream_head()


def refuses_connections(process):
    try:
        process.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionError:  # caught in the very moment of closing
        return False
    return False


def test_it_announces_itself_answers_logs_no_prompt_and_reaches_out_to_nobody(start):
    process = start("hello", "--host", "127.0.0.1")
    assert "serving hello at http://127.0.0.1:" in process.announcement
    with process.connect() as client:
        message = [{"role": "user", "content": "my secret"}]
        assert chat(client, model="hello", messages=message).status == 200
        assert chat(client, model="hello", messages=message, stream=True).status == 200
        assert client.ask("GET", "/health").status == 200
    code, errors = process.stop()
    assert code == 0
    assert "OUTGOING" not in errors
    assert "CLIENT MODULES []" in errors
    assert "secret" not in errors
    lines = [line for line in errors.splitlines() if "/v1/chat/completions 200" in line]
    assert len(lines) == 2 and all("prompt=26 output=12" in line for line in lines)
    assert "/health" not in errors


def test_without_a_model_it_starts_and_says_so(start):
    process = start("--host", "127.0.0.1")
    assert "no model loaded" in process.announcement
    with process.connect() as client:
        assert chat(client).error["code"] == "model_not_loaded"
    assert process.stop()[0] == 0


def test_the_model_path_variable_overrides_the_argument(start):
    process = start("slow", "--host", "127.0.0.1", METAL_MARLIN_MODEL_PATH="hello")
    assert "serving hello" in process.announcement


def test_an_open_address_without_a_key_is_warned_about_once(start):
    _, errors = start("hello", "--host", "0.0.0.0").stop()
    assert errors.count("without METAL_MARLIN_API_KEY") == 1
    _, errors = start("hello", "--host", "0.0.0.0", METAL_MARLIN_API_KEY="key").stop()
    assert "METAL_MARLIN_API_KEY" not in errors


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_stream_in_flight_finish_and_exits_0(start, signum):
    process = start("slow", "--host", "127.0.0.1")
    with process.connect() as client, process.connect() as idle:
        assert idle.ask("GET", "/health").status == 200
        begin_stream(client, "slow")
        chunks = client.chunks()
        data = next(chunks)
        process.popen.send_signal(signum)
        data += b"".join(chunks)
        events = [json.loads(line[6:]) for line in data.decode().split("\n\n")[:-2]]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert text == "begun and ended"
    assert process.wait()[0] == 0


def test_a_stopping_server_takes_no_new_connection(start):
    process = start("hang", "--host", "127.0.0.1")
    with process.connect() as client:
        begin_stream(client, "hang")
        process.popen.send_signal(signal.SIGTERM)
        end = time.monotonic() + CLIENT_TIMEOUT_S
        while not refuses_connections(process):
            assert time.monotonic() < end, "new connections are still taken"
            time.sleep(0.02)  # a gentle poll, not a synchronisation
    assert process.wait()[0] == 0


def test_a_second_signal_stops_at_once(start):
    process = start("hang", "--host", "127.0.0.1")
    with process.connect() as client:
        begin_stream(client, "hang")
        process.popen.send_signal(signal.SIGTERM)
        assert "stopping" in next(line for line in process.popen.stderr if "stopping" in line)
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(timeout=2) == 128 + signal.SIGTERM


def test_a_taken_port_is_one_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from marlin.cli import main; sys.exit(main())"]
            + ["serve", "--host", "127.0.0.1", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
        )
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        f"cannot listen on 127.0.0.1 port {port}: Address already in use"
    )
    assert "Traceback" not in done.stderr
