"""Every documented option and variable: its default, its effect, and which source wins.

Real processes, around the mock model but where only a real one has what is set.
"""

import re
import socket
import subprocess
import sys

import pytest
from contract import CHAT, MODEL, chat
from served import PATIENCE_S, ROOT, Served, serve_mock

from marlin.config import serve_config
from marlin.errors import ConfigError

MOCK = {"METAL_MARLIN_MOCK_MODEL": "1"}
# The option and environment tables of the document.
DEFAULTS = {
    "host": "0.0.0.0",
    "port": 8000,
    "workers": 1,
    "max_concurrent_requests": 10,
    "max_tokens": 512,
    "timeout_s": 120.0,
    "log_level": "INFO",
    "enable_metrics": True,
    "enable_batching": False,
    "num_kv_blocks": 512,
    "block_size": 16,
    "model_path": None,
    "api_key": None,
}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def run(*words, **environ):
    """A `metal-marlin` command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-c", "import sys; from marlin.cli import main; sys.exit(main())", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environ,
    )


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_setting_that_nobody_gives_has_the_documented_default(name):
    assert getattr(serve_config({}, {}), name) == DEFAULTS[name]


@pytest.mark.parametrize(
    "option",
    [
        *("host", "port", "workers", "max-concurrent-requests", "max-tokens", "timeout"),
        *("log-level", "enable-metrics", "enable-batching", "num-kv-blocks", "block-size"),
    ],
)
def test_every_documented_option_is_in_the_help(option):
    assert re.search(rf"--{option}\b", run("serve", "--help").stdout)


def test_host_and_port_say_where_it_listens():
    port = free_port()
    with serve_mock("--host", "127.0.0.1", "--port", port, port=port) as served:
        assert (served.host, served.port) == ("127.0.0.1", port)
        assert served.ask("GET", "/health")[0] == 200


def test_variables_say_where_it_listens_and_options_override_them():
    ports = free_port(), free_port()
    environ = {"METAL_MARLIN_HOST": "127.0.0.2", "METAL_MARLIN_PORT": str(ports[0])}
    with serve_mock(environ=environ, port=ports[0]) as served:
        assert (served.host, served.port) == ("127.0.0.2", ports[0])
    options = ("--host", "127.0.0.1", "--port", ports[1])
    with serve_mock(*options, environ=environ, port=ports[1]) as served:
        assert (served.host, served.port) == ("127.0.0.1", ports[1])


def test_the_default_address_is_all_of_the_machines_with_a_warning():
    with Served("models/m", environ=MOCK) as served:
        assert served.host == "0.0.0.0"
        # An address that a browser takes, too.
        assert (
            served.process.stdout.readline() == f"on this machine: http://127.0.0.1:{served.port}\n"
        )
        served.stop()
        assert served.log().count("without METAL_MARLIN_API_KEY") == 1


def test_a_server_without_a_model_says_what_is_missing():
    with Served("--host", "127.0.0.1") as served:
        assert "no model loaded (every request gets 503; MODEL_PATH is missing)" in (
            served.announcement
        )


def test_the_model_path_variable_overrides_the_argument():
    with serve_mock(environ={"METAL_MARLIN_MODEL_PATH": "elsewhere/second.gguf"}) as served:
        assert "serving second " in served.announcement


def test_max_tokens_is_the_default_of_a_request():
    body = chat(ignore_eos=True)
    del body["max_tokens"]
    with serve_mock("--max-tokens", 7, model=body["model"]) as served:
        assert served.post(CHAT, body)["usage"]["completion_tokens"] == 7


def test_log_level_chooses_what_is_logged():
    for level, seen in (("DEBUG", True), ("ERROR", False)):
        with serve_mock("--log-level", level) as served:
            served.ask("GET", "/v1/models")
            served.stop()
            assert ("/v1/models" in served.log()) == seen


def test_the_log_level_variable_is_overridden_by_its_option():
    environ = {"METAL_MARLIN_LOG_LEVEL": "ERROR"}
    for options, seen in (((), False), (("--log-level", "INFO"), True)):
        with serve_mock(*options, environ=environ) as served:
            served.ask("GET", "/v1/models")
            served.stop()
            assert ("/v1/models" in served.log()) == seen


def test_enable_batching_takes_its_two_sizes(demo_model_path):
    options = ("--enable-batching", "--num-kv-blocks", "24", "--block-size", "32")
    with Served(demo_model_path, "--host", "127.0.0.1", *options) as served:
        metrics = served.send("GET", "/metrics", headers={"Accept": "text/plain"})[2].decode()
        card = served.ask("GET", f"/v1/models/{demo_model_path.stem}")[1]
    assert "metal_marlin_kv_blocks 24" in metrics.splitlines()
    assert card["config"]["max_context_length"] == 24 * 32


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ((), 200),
        (("--enable-metrics",), 200),
        (("--enable-metrics=true",), 200),
        (("--enable-metrics=false",), 404),
        (("--no-enable-metrics",), 404),
    ],
)
def test_enable_metrics_decides_whether_there_are_any(options, status):
    with serve_mock(*options) as served:
        assert served.ask("GET", "/metrics")[0] == status
        assert served.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("options", "environ", "number"),
    [
        (("--workers", "2"), {}, 2),
        ((), {"METAL_MARLIN_WORKERS": "3"}, 3),
        (("--workers", "1"), {"METAL_MARLIN_WORKERS": "3"}, 1),
    ],
)
def test_workers_is_the_number_of_processes_that_serve(options, environ, number):
    with serve_mock(*options, environ=environ, model=f"models/{MODEL}") as served:
        parents = subprocess.run(["ps", "-A", "-o", "ppid="], capture_output=True, text=True)
        children = parents.stdout.split().count(str(served.process.pid))
        assert children == (number if number > 1 else 0)
        assert served.post(CHAT, chat())["choices"]
        assert served.ask("GET", "/health") == (200, {"status": "ok", "model_loaded": True})
        assert served.stop() == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--port", "65536"], "--port"),
        (["--workers", "0"], "--workers"),
        (["--max-concurrent-requests", "none"], "--max-concurrent-requests"),
        (["--max-tokens", "-1"], "--max-tokens"),
        (["--timeout", "nan"], "--timeout"),
        (["--log-level", "LOUD"], "--log-level"),
        (["--num-kv-blocks", "0"], "--num-kv-blocks"),
        (["--block-size", "17"], "--block-size"),
        (["--enable-metrics=perhaps"], "--enable-metrics"),
    ],
)
def test_a_wrong_value_is_named_and_ends_the_start(words, named):
    done = run("serve", "m", *words, **MOCK)
    assert done.returncode == 2
    assert named in done.stderr and "Traceback" not in done.stderr


def test_a_path_without_a_model_is_an_error_and_never_becomes_the_mock():
    for value in ("", "0"):
        done = run("serve", "no/such/model", METAL_MARLIN_MOCK_MODEL=value)
        assert done.returncode == 1
        assert "no/such/model" in done.stderr and "mock" not in done.stdout + done.stderr


@pytest.mark.parametrize("value", ["true", "2", "yes", " 1"])
def test_the_mock_variable_is_1_or_0(value):
    with pytest.raises(ConfigError, match="METAL_MARLIN_MOCK_MODEL must be 1 or 0"):
        serve_config({}, {"METAL_MARLIN_MOCK_MODEL": value})


def test_the_mock_calls_itself_one_in_log_and_model_card():
    with serve_mock() as served:
        assert served.ask("GET", "/v1/models/mock")[1]["config"]["format"] == "mock"
        served.stop()  # lines are written behind what they tell of
        assert "mock is a mock" in served.log()


def documented_commands():
    """(command, variables exported before it) of every `metal-marlin serve` in the documents."""
    found = {}
    for page in ("serving.md", "deployment.md"):
        text = (ROOT / "docs" / page).read_text()
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            exported = dict(re.findall(r'^export (\w+)="(.*)"$', block, re.MULTILINE))
            commands = [line for line in lines if line.startswith("metal-marlin serve ")]
            found.update((" ".join(command.split()), exported) for command in commands)
    return found


COMMANDS = documented_commands()


def test_the_documents_have_the_configurations_to_be_tried():
    options = " ".join(COMMANDS)
    for word in ("--workers 4", "--log-level DEBUG", "--enable-batching", "--block-size 32"):
        assert word in options
    assert {"METAL_MARLIN_API_KEY": "your-secret-key"} in COMMANDS.values()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_starts_answers_and_stops(command):
    words, exported = command.split()[2:], COMMANDS[command]
    with Served(*words, environ={**MOCK, **exported}) as served:  # the last --port, 0, wins
        model = re.search(r"serving (\S+) ", served.announcement)[1]
        key = {"Authorization": f"Bearer {exported.get('METAL_MARLIN_API_KEY', 'unused')}"}
        assert served.ask("POST", CHAT, chat(model=model), key)[0] == 200
        assert served.stop() == 0
