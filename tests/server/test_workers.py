"""`serve --workers N` as processes: shared work, replaced workers, and every way to end."""

import os
import re
import resource
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from clients import CLIENT_TIMEOUT_S, chat_body, request_bytes
from failing_engine import BREAKS, DEVICE_FAILS, DEVICE_HANGS, REASON
from worker_processes import HERE, ROOT, Stream, Workers, running, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*arguments, **changes):
        started.append(Workers(tmp_path / "gate", *arguments, **changes))
        return started[-1]

    yield run
    for workers in started:
        workers.close()


@pytest.fixture
def pair(start):
    """Two workers that serve the gated script."""
    workers = start("gated", "--workers", "2")
    workers.wait_for_workers(2)
    return workers


def test_a_busy_worker_leaves_a_connection_to_an_idle_one(pair):
    with ExitStack() as stack:
        first, second = pair.streams(stack)
        assert {first.pid, second.pid} == set(pair.pids())


def test_workers_do_not_have_the_key_in_their_environment(start):
    workers = start("gated", "--workers", "2", METAL_MARLIN_API_KEY="plugh")
    for pid in workers.wait_for_workers(2):
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"GATE=" in environ and b"plugh" not in environ
    assert workers.ask("/v1/models").status == 401
    assert workers.ask("/v1/models", "Authorization: Bearer plugh").status == 200


def test_workers_run_as_isolated_as_their_supervisor(start):
    program = f"import sys; sys.path[:0] = {[str(HERE), str(ROOT)]!r}; import serve_workers as s"
    isolated = ("-I", "-B", "-c", f"{program}; sys.exit(s.main())")
    workers = start("gated", "--workers", "2", program=isolated)
    for pid in workers.wait_for_workers(2):
        flags = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3]
        assert flags == [b"-I", b"-B"]


def test_metrics_of_either_worker_speak_for_both(pair):
    pair.open_gate()
    with ExitStack() as stack:
        streams = pair.streams(stack)
        num_done = 0
        for stream in streams:
            assert stream.finish() == "and ended"
            num_done += 1
        body = pair.ask("/metrics").json()
        assert body["requests_total"] >= num_done
        for _ in range(8):  # whoever answers
            assert pair.ask("/metrics").json()["requests_total"] == body["requests_total"]
        text = pair.ask("/metrics", "Accept: text/plain").body.decode()
        assert re.search(r"^metal_marlin_workers 2(\.0)?$", text, re.MULTILINE)


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "crash"])
def test_a_lost_worker_is_replaced_while_the_other_streams_on_and_no_total_goes_down(
    pair, ended_by
):
    with ExitStack() as stack:
        kept, killed = pair.streams(stack)
        before = pair.ask("/metrics").json()
        assert before["requests_total"] >= 2 and before["requests_active"] >= 2
        os.kill(killed.pid, ended_by)

        def replaced():
            try:
                assert pair.ask("/health").status == 200
                now = pair.ask("/metrics").json()
            except ConnectionError:  # the dying worker took it, in the moment before
                return False
            for name in ("requests_total", "tokens_generated_total"):
                assert now[name] >= before[name]
            return len(pair.pids()) == 3

        until(replaced, "a new worker")
        until(lambda: not running(killed.pid), "the killed worker's end")
        pair.open_gate()
        assert kept.finish() == "and ended"
        assert b"ended" not in killed.client.file.read()
    until(lambda: pair.ask("/metrics").json()["requests_active"] == 0, "no request is active")
    ended = rf"process {killed.pid}\) was ended by signal {ended_by:d}; replaced in 0.05 s"
    assert pair.logged(ended)


def test_a_worker_whose_device_keeps_failing_is_replaced_while_the_others_serve_on(start):
    workers = start("failing", "--workers", "2")
    workers.wait_for_workers(2)
    message = {"role": "user", "content": DEVICE_FAILS}
    with workers.connect() as client:  # a connection stays with one worker
        for _ in range(3):
            body = chat_body(model="failing", messages=[message])
            assert client.ask("POST", "/v1/chat/completions", body).error["message"] == REASON
    until(lambda: workers.ask("/health").status == 200 and len(workers.pids()) == 3, "a new worker")
    assert workers.logged(r"worker \d \(process \d+\) ended with code 1; replaced in 0.05 s")
    assert len(workers.logged(f"the engine has ended, .*: {REASON}")) == 1
    with workers.connect() as client:
        body = chat_body(model="failing")
        assert client.ask("POST", "/v1/chat/completions", body).status == 200
    workers.popen.send_signal(signal.SIGTERM)
    assert workers.wait() == 0


def test_workers_that_end_at_once_are_started_ever_more_slowly(start):
    workers = start("only-once", "--workers", "2", announces=False)
    found = until(
        lambda: len(p := workers.logged(r"worker 0 .* code 3; replaced in (\S+) s")) >= 4 and p,
        "four ends of worker 0",
    )
    assert found[:4] == ["0.05", "0.1", "0.2", "0.4"]
    workers.popen.send_signal(signal.SIGTERM)
    assert workers.wait() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish_refuses_new_connections_and_exits_0(pair, signum):
    with ExitStack() as stack:
        streams = pair.streams(stack)
        pair.popen.send_signal(signum)
        until(lambda: refuses(pair), "new connections are refused")
        pair.open_gate()
        assert [stream.finish() for stream in streams] == ["and ended"] * 2
    assert pair.wait() == 0
    assert not any(running(pid) for pid in pair.pids())


def refuses(workers):
    try:
        workers.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionError:  # caught in the very moment of closing
        return False
    return False


def test_a_signal_to_every_process_of_the_service_drains_as_well(pair):
    with ExitStack() as stack:
        streams = pair.streams(stack)
        for pid in (*pair.pids(), pair.popen.pid):
            os.kill(pid, signal.SIGTERM)
        until(lambda: refuses(pair), "new connections are refused")
        pair.open_gate()
        assert [stream.finish() for stream in streams] == ["and ended"] * 2
    assert pair.wait() == 0


def test_what_the_grace_period_cuts_off_is_told_that_the_server_stops(start):
    workers = start("gated", "--workers", "2", DRAIN_S="0.2")
    with workers.connect() as client:
        stream = Stream(client, "gated")
        workers.popen.send_signal(signal.SIGTERM)
        stream.finish()
        assert "server_stopping" in stream.events()[-2]
    assert workers.wait() == 0


def test_the_weights_that_workers_share_can_be_changed_by_nobody(pair):
    for pid in (pair.popen.pid, *pair.pids()):
        folder = Path(f"/proc/{pid}/fd")
        named = [fd for fd in folder.iterdir() if "metal-marlin-weights" in os.readlink(fd)]
        assert len(named) == 1
        with open(named[0], "rb+", buffering=0) as weights:
            for change in (lambda: weights.write(b"x"), lambda: weights.truncate(1 << 20)):
                with pytest.raises(PermissionError):
                    change()


def test_a_worker_that_cannot_be_started_is_started_later_and_the_other_serves_on(pair):
    first, second = pair.pids()
    pid = pair.popen.pid
    used = len(os.listdir(f"/proc/{pid}/fd"))
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used - 4, limits[1]))
    os.kill(first, signal.SIGKILL)
    failed = r"worker \d cannot be started \(.*\); tried again in"
    until(lambda: pair.logged(failed), "a failed start")
    assert pair.ask("/health").status == 200
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    pair.wait_for_workers(3)
    assert pair.popen.poll() is None and running(second)


def test_a_supervisor_that_can_start_nobody_waits_at_rest_while_a_client_waits(pair):
    pid = pair.popen.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    for worker in pair.pids():
        os.kill(worker, signal.SIGKILL)
    until(lambda: len(pair.logged("cannot be started")) >= 2, "failed starts")
    with pair.connect() as client:
        client.send(request_bytes("GET", "/health"))
        before = processor_s(pid)
        until(lambda: len(pair.logged("cannot be started")) >= 6, "more failed starts")
        assert processor_s(pid) - before < 0.2
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert client.read().status in (200, 503)


def processor_s(pid):
    """Seconds of a processor that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_a_second_signal_stops_at_once(pair):
    with ExitStack() as stack:
        pair.streams(stack)
        pair.popen.send_signal(signal.SIGTERM)
        until(lambda: pair.logged("stopping"), "the stop")
        pair.popen.send_signal(signal.SIGTERM)
        assert pair.popen.wait(CLIENT_TIMEOUT_S) == 128 + signal.SIGTERM
    assert not any(running(pid) for pid in pair.pids())


def test_while_no_worker_lives_every_answer_is_503(start):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = start("only-once", "--workers", "2", announces=False, port=port)
    until(lambda: workers.logged(r"worker 0 .* code 3; replaced in (0.4) s"), "a longer pause")
    health = until(
        lambda: (answer := workers.ask("/health")).status == 503 and answer, "a 503 of /health"
    )
    assert health.json() == {"status": "error", "model_loaded": False}
    models = until(lambda: (answer := workers.ask("/v1/models")).status == 503 and answer, "a 503")
    assert models.error["type"] == "server_overloaded" and "no worker" in models.error["message"]


def test_workers_end_when_the_supervisor_is_killed(pair):
    with ExitStack() as stack:
        streams = pair.streams(stack)
        pair.popen.kill()
        pair.open_gate()
        assert [stream.finish() for stream in streams] == ["and ended"] * 2
    until(lambda: not any(map(running, pair.pids())), "the workers' end")


def test_a_model_that_cannot_be_loaded_is_one_message_and_an_exit_code(start):
    workers = start("broken", "--workers", "4")
    assert workers.announcement == "" and workers.wait() == 1
    assert [line.strip() for line in workers.log] == ["metal-marlin: broken: cannot be read"]


def test_without_a_model_the_workers_start_and_say_so(start):
    workers = start("--workers", "2")
    assert "no model loaded" in workers.announcement
    with workers.connect() as client:
        answer = client.ask("POST", "/v1/chat/completions", chat_body())
        assert answer.error["code"] == "model_not_loaded"
        assert client.ask("GET", "/health").json() == {"status": "ok", "model_loaded": False}


def test_the_workers_know_the_api_key_and_no_command_line_shows_it(start):
    workers = start("gated", "--workers", "2", METAL_MARLIN_API_KEY="s\u00e9cret-key")
    pids = [workers.popen.pid, *workers.wait_for_workers(2)]
    assert workers.ask("/v1/models").status == 401
    key = "Authorization: Bearer " + "s\u00e9cret-key".encode().decode("latin-1")
    assert workers.ask("/v1/models", key).status == 200
    for pid in pids:
        assert b"cret-key" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_worker_whose_engine_hangs_takes_no_connections_and_is_replaced(start):
    workers = start("failing", "--workers", "2", HUNG_S="3")
    workers.wait_for_workers(2)
    hung = {"role": "user", "content": DEVICE_HANGS}
    body = chat_body(model="failing")
    with workers.connect() as victim:
        asked = chat_body(model="failing", messages=[hung])
        victim.send(request_bytes("POST", "/v1/chat/completions", asked))
        time.sleep(1)
        for _ in range(12):
            with workers.connect() as client:
                assert client.ask("POST", "/v1/chat/completions", body).status == 200
        until(lambda: workers.logged(r"worker \d \(process \d+\) hangs: nothing was"), "its end")
        until(lambda: workers.logged("ended by signal 6; replaced in"), "its replacement")
    workers.wait_for_workers(2)
    assert workers.logged("Fatal Python error: Aborted")
    assert any("failing_engine.py" in line for line in workers.log)
    for _ in range(6):
        with workers.connect() as client:
            assert client.ask("POST", "/v1/chat/completions", body).status == 200


def test_a_worker_that_is_stopped_is_replaced(start):
    workers = start("gated", "--workers", "2", HUNG_S="1")
    workers.wait_for_workers(2)
    victim = workers.pids()[0]
    os.kill(victim, signal.SIGSTOP)
    until(lambda: not running(victim), "its end")
    until(lambda: workers.logged("was ended by signal 9; replaced in"), "its replacement")


def test_a_worker_that_is_stopped_before_it_ever_served_is_replaced(start):
    workers = start("stopped-at-birth", "--workers", "2", HUNG_S="1")
    until(lambda: workers.logged(r"worker \d \(process \d+\) hangs: nothing was"), "its end")
    until(lambda: workers.logged("was ended by signal 9; replaced in"), "its replacement")
    workers.wait_for_workers(2)
    assert len(workers.logged("hangs")) == 1


def test_a_worker_that_is_stopped_ends_when_its_supervisor_is_killed(pair):
    for pid in pair.pids():
        os.kill(pid, signal.SIGSTOP)
    pair.popen.kill()
    until(lambda: not any(map(running, pair.pids())), "the workers' end")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("deaf", "Panic: no threads to run on"),
        ("dumb", r"the last \d+ answers were internal errors"),
    ],
)
def test_a_worker_that_answers_nothing_but_500s_is_replaced(start, model, reason):
    workers = start(model, "--workers", "2")
    workers.wait_for_workers(2)
    body = chat_body(model=model, messages=[{"role": "user", "content": BREAKS}])
    fine = chat_body(model=model)

    def replaced():
        assert workers.ask("/health").status == 200  # of the other
        with workers.connect() as client:
            client.ask("POST", "/v1/chat/completions", fine)
        return workers.logged("ended with code 1; replaced in")

    with workers.connect() as victim:  # stays with its worker
        answers = []
        with suppress(AssertionError, OSError):  # it may end before the last one
            for _ in range(5):
                answers.append(victim.ask("POST", "/v1/chat/completions", body))
        said = {(answer.status, answer.error["code"]) for answer in answers}
        assert said == {(500, "internal_error")}
        until(replaced, "the worker's end")
    workers.wait_for_workers(3)
    assert len(workers.logged(f"this process cannot answer, and ends: {reason}")) == 1
    for _ in range(6):
        with workers.connect() as client:
            assert client.ask("POST", "/v1/chat/completions", fine).status == 200
    workers.popen.send_signal(signal.SIGTERM)
    assert workers.wait() == 0
