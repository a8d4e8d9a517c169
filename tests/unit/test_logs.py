"""Log lines: their JSON, their text, and what cannot get through them."""

import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest

from marlin.server.observe import logs
from marlin.server.observe.log_writer import LogWriter
from marlin.server.observe.logs import JsonFormatter, TextFormatter, log_access, rfc3339
from marlin.server.observe.metrics import Metrics
from marlin.server.observe.metrics_page import MetricsPage


def record(message, *arguments, error=None, **extra):
    exc_info = error and (type(error), error, error.__traceback__)
    made = logging.LogRecord("marlin.server", logging.INFO, "", 1, message, arguments, exc_info)
    made.__dict__.update(extra)
    return made


def test_a_json_line_holds_what_every_line_has_and_the_records_own_fields():
    made = record("%d requests", 3, fields={"request_id": "abc", "status": 200})
    made.created = 0.25
    line = json.loads(JsonFormatter().format(made))
    assert line == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "INFO",
        "logger": "marlin.server",
        "message": "3 requests",
        "pid": made.process,
        "request_id": "abc",
        "status": 200,
    }


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "\x00\x7f", "\u2028\u2029", "\ud800", "ü"])
def test_a_json_line_is_one_line_of_ascii_whatever_it_holds(text):
    line = JsonFormatter().format(record("%s", text, fields={"path": text}))
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["message"] == json.loads(line)["path"] == text


def test_an_exception_is_a_field_of_its_json_line():
    try:
        raise KeyError("lost")
    except KeyError as error:
        line = JsonFormatter().format(record("internal error", error=error))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("KeyError: 'lost'")


def test_text_escapes_control_characters_so_that_no_line_can_be_forged():
    line = TextFormatter().format(record("%s", "x\n2026 INFO forged\r\x1b[2J\x85\u2028"))
    assert line.endswith(r"INFO x\x0a2026 INFO forged\x0d\x1b[2J\x85\u2028")


def test_text_indents_a_traceback_so_that_no_line_of_it_looks_like_a_log_line():
    try:
        raise ValueError("first\n2026 INFO forged\x1b")
    except ValueError as error:
        first, *others = TextFormatter().format(record("bad", error=error)).split("\n")
    assert first.endswith("INFO bad")
    assert others[-1] == r"  2026 INFO forged\x1b" and all(s.startswith("  ") for s in others)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.9996, "2023-11-14T22:13:20.999Z"),
        (951_782_400.5, "2000-02-29T00:00:00.500Z"),
    ],
)
def test_times_are_rfc_3339_in_utc(seconds, text):
    assert rfc3339(seconds) == text


def access_line(caplog, path, quiet=False, **attributes):
    given = {
        **{"command": "POST", "path": path, "request_id": "abc", "status": 200, "outcome": None},
        **{"client_address": ("10.0.0.1", 40_000), "num_prompt_tokens": 0, "num_output_tokens": 0},
        **attributes,
    }
    both = SimpleNamespace(principal=None, **given)  # the handler and the record in one
    with caplog.at_level(logging.DEBUG, logger="marlin.server"):
        log_access(both, both, 0.0125, quiet)
    return caplog.records[-1]


def test_the_line_of_a_request_has_its_numbers_in_the_text_and_as_fields(caplog):
    line = access_line(caplog, "/v1/completions", num_prompt_tokens=26, num_output_tokens=12)
    assert line.getMessage() == (
        "10.0.0.1 POST /v1/completions 200 0.013s prompt=26 output=12 id=abc"
    )
    assert line.fields == {
        "request_id": "abc",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "duration_ms": 12.5,
        "client": "10.0.0.1",
        "prompt_tokens": 26,
        "output_tokens": 12,
    }


def test_a_client_that_left_before_an_answer_is_said_to_be_gone(caplog):
    line = access_line(caplog, "/v1/models", status=None, outcome="disconnected")
    assert line.getMessage() == "10.0.0.1 POST /v1/models gone 0.013s (client left) id=abc"
    assert line.fields["status"] is None and line.fields["client_left"] is True


def test_a_quiet_request_is_logged_at_debug(caplog):
    assert access_line(caplog, "/health", quiet=True).levelname == "DEBUG"
    assert access_line(caplog, "/health").levelname == "INFO"


def test_a_line_has_the_beginning_of_a_long_path(caplog):
    line = access_line(caplog, "/" + "a" * 8000)
    assert line.fields["path"] == "/" + "a" * 199 + "..."
    assert len(line.getMessage()) < 300


@pytest.fixture
def log_writer():
    """log_writer(stream, ...) -> a LogWriter, whose thread ends with the test."""
    writers = []

    def make(*arguments, **options):
        writers.append(LogWriter(*arguments, **options))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


@pytest.fixture
def pipe():
    """(descriptor to read, text stream to write) of a pipe."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def lines_of(reader, count):
    data = b""
    while data.count(b"\n") < count:
        data += os.read(reader, 65536)
    return data.decode().splitlines()


def test_lines_come_out_in_order_and_flush_waits_for_them(pipe, log_writer):
    reader, stream = pipe
    writer = log_writer(stream)
    for number in range(500):
        writer.handle(record("%d", number))
    writer.flush()
    os.set_blocking(reader, False)
    assert os.read(reader, 65536).decode().split() == [str(number) for number in range(500)]


def test_a_stream_that_is_closed_has_its_lines_and_no_other_file_gets_them(pipe, log_writer):
    reader, stream = pipe
    writer = log_writer(stream)
    with tempfile.TemporaryFile() as other:
        os.dup2(other.fileno(), stream.fileno())
        writer.handle(record("for the pipe"))
        assert lines_of(reader, 1) == ["for the pipe"]
        assert os.fstat(other.fileno()).st_size == 0


def test_who_logs_never_waits_for_a_reader_and_what_was_lost_is_counted(pipe, log_writer):
    reader, stream = pipe
    writer = log_writer(stream, num_lines=10)
    writer.handle(record("x" * 200_000))  # more than a pipe takes
    end = time.monotonic() + 10
    while writer._lines:
        assert time.monotonic() < end, "nothing is being written"
        time.sleep(0.001)
    started = time.monotonic()
    for number in range(100):
        writer.handle(record("%d", number))
    assert time.monotonic() - started < 5
    _, *lines = lines_of(reader, 1 + 10 + 1)
    assert lines[:10] == [str(number) for number in range(10)]
    assert lines[10].startswith("90 log lines were lost")
    assert (writer.take_lost(), writer.take_lost()) == (90, 0)


def test_a_writer_that_is_closed_writes_what_it_has_and_ends_its_thread(pipe, log_writer):
    reader, stream = pipe
    writer = log_writer(stream)
    writer.handle(record("the last"))
    writer.close()
    assert lines_of(reader, 1) == ["the last"]
    writer._thread.join(10)
    assert not writer.is_alive


def test_a_stream_that_fails_loses_lines_and_nothing_else(log_writer):
    with open("/dev/full", "w") as stream:
        writer = log_writer(stream)
        for number in range(3):
            writer.handle(record("%d", number))
            writer.flush()
        assert writer._num_dropped == 3
        assert (writer.take_lost(), writer.take_lost()) == (3, 0)


@pytest.fixture
def root_writer(log_writer):
    """root_writer(stream): a LogWriter of the root logger, for the test."""
    writers = []

    def add(stream):
        writers.append(log_writer(stream))
        logging.getLogger().addHandler(writers[-1])
        return writers[-1]

    yield add
    for writer in writers:
        logging.getLogger().removeHandler(writer)


def test_lost_lines_are_a_metric_that_counts_each_once(root_writer):
    metrics = Metrics()
    page = MetricsPage(metrics, None, SimpleNamespace(num_waiting=0), ())
    with open("/dev/full", "w") as stream:
        writer = root_writer(stream)
        for _ in range(2):
            logging.getLogger("marlin.x").critical("lost")
            writer.flush()
        for _ in range(2):
            text = page.answer("text/plain")[0].decode()
            assert "metal_marlin_log_lines_lost_total 2\n" in text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_has_ended_is_noticed(root_writer, pipe):
    writer = root_writer(pipe[1])
    assert logs.writer_ended() is None

    def end(_data):
        raise SystemExit

    writer._write = end
    writer.handle(record("x"))
    writer._thread.join(10)
    assert logs.writer_ended() == "log lines are not written"


def test_configure_sends_lines_of_the_level_to_the_stream_and_can_be_called_again():
    code = (
        "import logging, tempfile\n"
        "from marlin.server.observe.logs import configure\n"
        "first, second = tempfile.TemporaryFile('w+'), tempfile.TemporaryFile('w+')\n"
        "configure('INFO', 'text', first)\n"
        "configure('WARNING', 'json', second)\n"
        "logging.getLogger('marlin.x').info('hidden')\n"
        "logging.getLogger('marlin.x').warning('shown')\n"
        "logging.shutdown()\n"
        "assert (first.seek(0), first.read()) == (0, '')\n"
        "second.seek(0)\n"
        "line = second.read()\n"
        "assert line.count('\\n') == 1 and 'shown' in line\n"
    )
    # In a process of its own: pytest owns this one's root logger.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_message_that_is_not_a_template_is_left_alone():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.handle(record("100% sure"))
    assert json.loads(stream.getvalue())["message"] == "100% sure"
