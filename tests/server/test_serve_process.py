"""`serve` as a process: its announcement, its log, its signals, and that it reaches out to
nobody."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from clients import CLIENT_TIMEOUT_S, RawClient, chat_body, request_bytes
from failing_engine import (
    ANSWER,
    BREAKS,
    DEVICE_FAILS,
    DEVICE_HANGS,
    ENGINE_BREAKS,
    NO_NUMBERS,
    REASON,
)

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

    def wait_until_active(self, count):
        """Wait until so many requests are being answered or waiting for their turn."""
        end = time.monotonic() + CLIENT_TIMEOUT_S
        with self.connect() as client:
            while client.ask("GET", "/metrics").json()["requests_active"] < count:
                assert time.monotonic() < end, f"never were {count} requests active"
                time.sleep(0.02)  # a gentle poll, not a synchronisation

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


def say(client, text, **changes):
    messages = [{"role": "user", "content": text}]
    return chat(client, model="failing", messages=messages, **changes)


def begin_request(client, text="hello"):
    """Send all but the body, which is returned, and wait until the server asks for that."""
    body = chat_body(model="failing", messages=[{"role": "user", "content": text}])
    data = request_bytes("POST", "/v1/chat/completions", body, ("Expect: 100-continue",))
    head, _, content = data.partition(b"\r\n\r\n")
    assert client.send(head + b"\r\n\r\n").read().status == 100
    return content


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
    assert "secret" not in errors
    assert re.search(r"up to \d+ connections at once in each process", errors)
    assert "stopping: waiting up to 5 s for requests in flight" in errors
    assert "Logging error" not in errors and "METAL_MARLIN_API_KEY" not in errors
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
        assert process.popen.wait(CLIENT_TIMEOUT_S) == 128 + signal.SIGTERM


def test_an_engine_that_cannot_be_closed_does_not_outlive_its_time(start):
    process = start("wedged", DRAIN_S="0.1", STOP_S="1.5")
    code, errors = process.stop()
    assert code == 1 and "closing" in errors and "did not end in time" in errors


def test_a_second_signal_stops_at_once_when_requests_are_over_and_the_engine_hangs(start):
    process = start("wedged", DRAIN_S="0.1", STOP_S="1000")
    process.popen.send_signal(signal.SIGTERM)
    assert "closing" in next(line for line in process.popen.stderr if "closing" in line)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(CLIENT_TIMEOUT_S) == 128 + signal.SIGTERM


def test_what_the_grace_period_cuts_off_is_told_that_the_server_stops(start):
    """One streams, one waits for its whole answer, one for its turn."""
    process = start("hang", "--max-concurrent-requests", "2", DRAIN_S="0.2")
    with process.connect() as client, process.connect() as other, process.connect() as waiting:
        begin_stream(client, "hang")
        chunks = client.chunks()
        data = next(chunks)
        for number, connection in enumerate((other, waiting), 2):
            connection.send(request_bytes("POST", "/v1/chat/completions", chat_body(model="hang")))
            process.wait_until_active(number)
        process.popen.send_signal(signal.SIGTERM)
        answers = [connection.read() for connection in (other, waiting)]
        data += b"".join(chunks)
    for answer in answers:
        assert (answer.status, answer.json()["error"]["code"]) == (503, "server_stopping")
    *_, failed, done = data.decode().split("\n\n")[:-1]
    assert json.loads(failed[6:])["error"]["code"] == "server_stopping"
    assert done == "data: [DONE]"
    code, errors = process.wait()
    assert code == 0 and "cut off" in errors


def test_a_device_that_fails_now_and_then_is_served_on(start):
    process = start("failing", "--host", "127.0.0.1")
    with process.connect() as client:
        for _ in range(3):
            assert [say(client, DEVICE_FAILS).status for _ in range(2)] == [500, 500]
            answer = say(client, "hello").json()
            assert answer["choices"][0]["message"]["content"] == ANSWER
        assert client.ask("GET", "/health").status == 200
    assert process.stop()[0] == 0


def test_requests_whose_logits_are_not_numbers_are_500_and_the_process_serves_on(start):
    process = start("failing", "--host", "127.0.0.1")
    with process.connect() as client:
        for _ in range(4):
            answer = say(client, NO_NUMBERS)
            assert answer.status == 500 and "not numbers" in answer.error["message"]
        assert say(client, "hello").status == 200
    assert process.stop()[0] == 0


def test_a_device_that_keeps_failing_ends_the_process_with_1_once_requests_have_their_answer(start):
    process = start("failing", "--host", "127.0.0.1")
    with process.connect() as client, process.connect() as prober, process.connect() as late:
        assert prober.ask("GET", "/health").status == 200
        content = begin_request(late)
        for _ in range(3):
            answer = say(client, DEVICE_FAILS)
            assert (answer.status, answer.error["message"]) == (500, REASON)
        assert "stopping" in next(line for line in process.popen.stderr if "stopping" in line)
        health = prober.ask("GET", "/health")
        assert (health.status, health.json()["status"]) == (503, "error")
        assert late.send(content).read().status == 503
    code, errors = process.wait()
    assert code == 1
    assert "Traceback" not in errors


def test_the_log_names_the_error_that_ended_the_engine(start):
    process = start("failing", "--host", "127.0.0.1")
    with process.connect() as client:
        for _ in range(3):
            say(client, DEVICE_FAILS)
    code, errors = process.wait()
    assert code == 1
    ended = [line for line in errors.splitlines() if "the engine has ended" in line]
    assert len(ended) == 1 and ended[0].endswith(REASON)


def test_a_stream_hears_of_a_bug_in_the_engine_before_the_process_ends_with_1(start):
    process = start("failing", "--host", "127.0.0.1")
    with process.connect() as client:
        *_, failed, done = say(client, ENGINE_BREAKS, stream=True).events()
    assert failed["error"]["message"] == "the engine has stopped" and done == "[DONE]"
    code, errors = process.wait()
    assert code == 1
    assert "this process ends with it: RuntimeError('a bug in the engine')" in errors


def test_an_engine_that_ends_while_requests_drain_cuts_none_off(start):
    process = start("failing", "--host", "127.0.0.1")
    with process.connect() as breaking, process.connect() as late:
        content, late_content = begin_request(breaking, ENGINE_BREAKS), begin_request(late)
        process.popen.send_signal(signal.SIGTERM)
        assert "stopping" in next(line for line in process.popen.stderr if "stopping" in line)
        assert breaking.send(content).read().status == 500
        assert next(line for line in process.popen.stderr if "the engine has ended" in line)
        assert late.send(late_content).read().status == 503
    assert process.wait()[0] == 1


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
        f"cannot listen on 127.0.0.1 port {port}: Address already in use; --port 0 takes a free one"
    )
    assert "Traceback" not in done.stderr


def test_a_process_that_cannot_tokenize_is_unwell_and_ends_with_1(start):
    process = start("deaf", FAILING_S="1")
    with process.connect() as client:
        assert client.ask("GET", "/health").status == 200
        assert (
            chat(client, model="deaf", messages=[{"role": "user", "content": BREAKS}]).status == 500
        )
        end = time.monotonic() + CLIENT_TIMEOUT_S
        while client.ask("GET", "/health").status == 200:
            assert time.monotonic() < end, "health does not see it"
    status, log = process.wait()
    assert status == 1
    assert "this process cannot answer, and ends: Panic: no threads to run on" in log


def test_a_process_whose_engine_hangs_says_where_and_exits_with_1(start):
    process = start("failing", "--host", "127.0.0.1", HUNG_S="1")
    hung = {"model": "failing", "messages": [{"role": "user", "content": DEVICE_HANGS}]}
    with process.connect() as client, process.connect() as waiting, process.connect() as reader:
        client.send(request_bytes("POST", "/v1/chat/completions", chat_body(**hung)))
        process.wait_until_active(1)
        body = chat_body(model="failing")
        waiting.send(request_bytes("POST", "/v1/chat/completions", body))
        body = chat_body(model="failing", stream=True)
        reader.send(request_bytes("POST", "/v1/chat/completions", body))
        for told in (client, waiting, reader):  # all in hand, and one had begun
            answer = told.read()
            assert (answer.status, answer.error["code"]) == (503, "server_stopping")
            assert "hangs" in answer.error["message"] and told.at_end()
        assert process.popen.wait(CLIENT_TIMEOUT_S) == 1
    log = process.popen.stderr.read()
    assert "done nothing for 1 s" in log and "failing_engine.py" in log


@pytest.mark.skipif(sys.platform != "linux", reason="takes its limit from /proc")
def test_a_process_that_can_start_no_thread_any_more_ends_and_says_why(start):
    process = start("hello", "--host", "127.0.0.1", FAILING_S="1", SLOW_S="1")
    pages = int(Path(f"/proc/{process.popen.pid}/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    with ExitStack() as stack:
        resource.prlimit(process.popen.pid, resource.RLIMIT_AS, (now, now))
        for _ in range(24):  # stacks of threads that have ended are used again
            stack.enter_context(process.connect())
        status, log = process.wait()
    assert status == 1
    # A thread that came as far as to lack memory for its own start leaves the listener waiting.
    assert re.search("ends: (RuntimeError: can't start new thread|nobody was let in)", log)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS holds for stacks")
def test_a_server_that_has_room_for_no_connection_does_not_start():
    before = "import resource, threading; import sys; sys.argv[1:1] = ['hello']; import serve_fake"
    program = (
        f"{before}; from marlin.server.process import serve as s; check = s.check_threads;"
        "pages = lambda: int(open('/proc/self/statm').read().split()[0]) * 4096;"
        "limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (pages(), pages()));"
        "s.check_threads = lambda limits: (limit(), check(limits)); sys.exit(serve_fake.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--port", "0", "--host", "127.0.0.1"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{HERE}"},
        capture_output=True,
        text=True,
        timeout=CLIENT_TIMEOUT_S,
    )
    assert done.returncode == 1 and "can't start new thread" in done.stderr
    assert "serving" not in done.stdout
