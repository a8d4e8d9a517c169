"""The command line: what answers at once, how mistakes read, and what is said at a start."""

import errno
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from marlin import __version__, cli
from marlin.commands.table import COMMANDS


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["generate", "--help"]])
def test_help_loads_nothing_heavy(words):
    code = (
        "import sys; from marlin.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'tokenizers', 'safetensors', 'ctypes', 'socket'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: metal-marlin" in done.stdout


def test_a_reader_that_left_is_no_reason_to_complain():
    code = (
        "import sys; from marlin import cli\n"
        "def told(*_): print('much ' * 9999, flush=True)\n"
        "cli._run = told\n"
        "sys.exit(cli.main())"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", code, "version"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("words", [["version"], ["--version"], ["serve", "--version"]])
def test_version_is_the_packages(words, capsys):
    assert cli.main(words, {}) == 0
    assert capsys.readouterr().out == f"metal-marlin {__version__}\n"


def test_the_package_is_the_command_for_python_m(checkout):
    done = subprocess.run(
        [sys.executable, "-m", "marlin", "version"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"metal-marlin {__version__}\n")


@pytest.mark.parametrize("command", ["generate", "info", "quantize", "serve"])
def test_words_that_nothing_could_say_are_refused_whatever_the_command(command, capsys):
    assert cli.main([command, "models/m\udcff"], {}) == 2
    said = capsys.readouterr().err
    assert "an argument is not UTF-8" in said and "'models/m\\udcff'" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device"),
        (OSError(errno.EFBIG, "File too large"), "File too large"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("can't start new thread"), "no thread can be started: a limit (ulimit"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(monkeypatch, capsys, error, said):
    def run(_arguments):
        raise error

    monkeypatch.setattr(cli, "module_of", lambda _name: SimpleNamespace(run=run))
    assert cli.main(["info"], {}) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"metal-marlin: {said}")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("x"), OSError("no number")])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    def run(_arguments):
        raise error

    monkeypatch.setattr(cli, "module_of", lambda _name: SimpleNamespace(run=run))
    with pytest.raises(type(error)):
        cli.main(["info"], {})


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1:surrogateescape"])
def test_what_the_terminals_encoding_lacks_is_an_escape(checkout, encoding):
    code = "from marlin.streams import *; speak_any_text(); print('\u4f60 caf\u00e9')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    accent = b"\xe9" if "latin" in encoding else b"\\xe9"
    assert done.stdout == b"\\u4f60 caf" + accent + b"\n"


def test_no_command_shows_the_commands_and_fails(capsys):
    assert cli.main([], {}) == 2
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and text in shown for name, text in COMMANDS.items())


@pytest.mark.parametrize("words", [["help"], ["--help"], ["-h"]])
def test_help_shows_the_commands(words, capsys):
    assert cli.main(words, {}) == 0
    assert all(f"  {name} " in capsys.readouterr().out for name in [*COMMANDS][:1])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_its_options_however_it_is_asked_for(command, capsys):
    shown = set()
    for words in (["help", command], [command, "--help"], [command, "-h"]):
        assert cli.main(words, {}) == 0
        shown.add(capsys.readouterr().out)
    (text,) = shown
    assert text.startswith(f"usage: metal-marlin {command} ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serv"], "no command serv; did you mean serve?"),
        (["run", "M"], "no command run; did you mean generate?"),
        (["doctor"], "no command doctor; did you mean info?"),
        (["xyz"], "no command xyz; there are serve, generate, "),
        (["pull", "Qwen/Qwen3"], "no command pull: nothing is downloaded or kept; "),
        (["help", "serv"], "no command serv; did you mean serve?"),
        (["--log-level", "DEBUG", "serve"], "--log-level comes after the command: "),
        (
            ["serve", "M", "--ctx-size", "9"],
            "serve: no option --ctx-size; did you mean --max-context?",
        ),
        (
            ["serve", "M", "--alias=x"],
            "serve: no option --alias; did you mean --served-model-name?",
        ),
        (["serve", "M", "--hsot", "x"], "serve: no option --hsot; did you mean --host?"),
        (
            ["serve", "M", "--api-key", "x"],
            "serve: no option --api-key: the key is in METAL_MARLIN_API",
        ),
        (["serve", "-m", "M"], "serve: no option -m: the model's path is an argument of its own"),
        (["serve", "--zzz"], "serve: no option --zzz (metal-marlin serve --help)"),
        (
            ["generate", "M", "x", "--temp", "1"],
            "generate: no option --temp; did you mean --temperature?",
        ),
        (
            ["generate", "M", "two", "words"],
            "generate: what is 'words' for? Words that belong together",
        ),
        (["generate"], "generate: missing MODEL (metal-marlin generate --help)"),
        (["generate", "M", "x", "--top-k"], "--top-k needs a value"),
        (["generate", "M", "x", "--raw", "--chat"], "--chat not allowed with argument --raw"),
    ],
)
def test_a_word_that_means_nothing_here_is_one_line_that_helps(words, said, capsys):
    assert cli.main(words, {}) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"metal-marlin: {said}") and error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "M", "--promp", "x"],
        ["generate", "M", "x", "--max-to", "4"],
        ["info", "--js"],
        ["serve", "M", "--enable-metric"],
        ["serve", "M", "--no-enable-metric"],
    ],
)
def test_options_cannot_be_abbreviated(words, capsys):
    assert cli.main(words, {}) == 2
    assert f"no option {next(w for w in words if w.startswith('--'))}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "environ", "said"),
    [
        (["serve", "--port", "x"], {}, "--port must be a whole number, 0 to 65535, got 'x'"),
        (["serve"], {"METAL_MARLIN_PORT": "x"}, "METAL_MARLIN_PORT must be a whole number, 0 to"),
        (
            ["serve"],
            {"METAL_MARLIN_TIMEOUT": "soon"},
            "METAL_MARLIN_TIMEOUT must be a number of sec",
        ),
        (["generate", "M", "x", "--threads", "257"], {}, "--threads must be 1 to 256, got '257'"),
        (
            ["generate", "M", "x"],
            {"METAL_MARLIN_THREADS": "0"},
            "METAL_MARLIN_THREADS must be 1 to",
        ),
        (
            ["generate", "M", "x", "--max-tokens", "0"],
            {},
            "--max-tokens must be 1 or more, got '0'",
        ),
        (["generate", "M", "x", "--max-context", "0"], {}, "--max-context must be 1 or more, got"),
        (
            ["generate", "M", "x", "--seed", "-1"],
            {},
            "--seed must be a whole number, 0 or more, got",
        ),
        (["generate", "M", "x", "--top-k", "few"], {}, "--top-k must be a whole number, 0 or more"),
        (
            ["generate", "M", "x", "--temperature", "abc"],
            {},
            "--temperature must be a number, got 'abc'",
        ),
        (
            ["generate", "M", "x", "--temperature", "5"],
            {},
            "--temperature must be a number from 0 to 2",
        ),
        (["generate", "M", "x", "--top-p", "2"], {}, "--top-p must be "),
        (["generate", "M", "x", "--stop", ""], {}, "--stop "),
        (["generate", "M", "x", "--device", "tpu"], {}, "--device must be metal or cpu, got 'tpu'"),
        (["bench", "M", "--device", "tpu"], {}, "--device must be metal or cpu, got 'tpu'"),
        (["bench", "M", "--repeat", "0"], {}, "--repeat must be 1 or more, got '0'"),
        (["bench", "M", "--output-tokens", "1"], {}, "--output-tokens must be 2 or more, got '1'"),
        (["selftest"], {"METAL_MARLIN_DEVICE": "tpu"}, "METAL_MARLIN_DEVICE must be metal or cpu"),
        (
            ["quantize", "S", "D", "--format", "fp3"],
            {},
            "--format must be fp4 or int4 or int8 or iq4 or int5 or int6, got",
        ),
        *[
            (
                ["quantize", "S", "D", "--format", kind],
                {},
                f"--format is read and not written: take {other}, which loses less, got '{kind}'",
            )
            for kind, other in (("fp8", "int8"), ("nf4", "iq4"))
        ],
        (["quantize", "S", "D", "--mixed", "four"], {}, "--mixed must be a number, got 'four'"),
        (
            ["quantize", "S", "D", "--mixed", "5", "--format", "fp4"],
            {},
            "--mixed chooses --format and --group-size: leave them out",
        ),
        (["quantize", "S", "D", "--group-size", "48"], {}, "--group-size must be 32 or 64 or 128"),
        (["completion", "csh"], {}, "bash|zsh|fish must be bash or zsh or fish, got 'csh'"),
    ],
)
def test_a_wrong_value_is_one_line_in_one_style_and_code_2(words, environ, said, capsys):
    assert cli.main(words, environ) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"metal-marlin: {said}") and error.count("\n") == 1


@pytest.mark.parametrize("words", [["serve"], ["serve", "--check"]])
def test_unknown_variables_are_named_when_a_server_starts(words, monkeypatch, caplog):
    monkeypatch.setattr("marlin.commands.serve.set_up_logging", lambda _settings: None)
    monkeypatch.setattr("marlin.server.process.serve.serve", lambda _settings, _load: 0)
    environ = {"METAL_MARLIN_TEMPERATURE": "1", "METAL_MARLIN_TIMEOUT": "5", "HOME": "/root"}
    assert cli.main(words, environ) == 0
    (record,) = caplog.records
    assert record.getMessage() == "no such variable, nothing reads it: METAL_MARLIN_TEMPERATURE"


@pytest.mark.parametrize(("key", "warns"), [("x" * 15, True), ("\u00e9" * 8, False), ("", False)])
def test_a_key_that_can_be_guessed_is_warned_of(key, warns, monkeypatch, caplog):
    monkeypatch.setattr("marlin.commands.serve.set_up_logging", lambda _settings: None)
    assert cli.main(["serve", "--check"], {"METAL_MARLIN_API_KEY": key}) == 0
    assert ("METAL_MARLIN_API_KEY has fewer than 16 bytes" in caplog.text) == warns
    assert "xxx" not in caplog.text


def test_an_error_names_the_variable_that_overrode_the_model_that_was_typed(
    tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr("marlin.commands.serve.set_up_logging", lambda _settings: None)
    environ = {"METAL_MARLIN_MODEL_PATH": f"{tmp_path}/absent.gguf"}
    assert cli.main(["serve", "M", "--port", "0", "--host", "127.0.0.1"], environ) == 1
    *_, error = capfd.readouterr().err.splitlines()
    assert error.startswith(f"metal-marlin: {tmp_path}/absent.gguf: no such file or folder")
    assert error.endswith("(METAL_MARLIN_MODEL_PATH is set and overrides the argument M)")


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--port", "70000"], 2), (["--zzz"], 2)])
def test_serve_can_check_its_options_and_serve_nothing(words, code, capsys, monkeypatch):
    monkeypatch.setattr("marlin.commands.serve.set_up_logging", lambda _settings: None)
    assert cli.main(["serve", "M", "--check", *words], {}) == code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-kv-blocks", "64"], "no effect without --enable-batching: --num-kv-blocks"),
        (
            ["--no-enable-batching", "--block-size=32", "--num-kv-blocks=64"],
            "no effect without --enable-batching: --num-kv-blocks, --block-size",
        ),
        (["--enable-batching", "--block-size", "32"], None),
        ([], None),
    ],
)
def test_sizes_of_a_paged_cache_that_is_not_there_are_one_warning(words, said, monkeypatch, caplog):
    monkeypatch.setattr("marlin.commands.serve.set_up_logging", lambda _settings: None)
    monkeypatch.setattr("marlin.server.process.serve.serve", lambda _settings, _load: 0)
    assert cli.main(["serve", *words], {}) == 0
    assert [record.getMessage() for record in caplog.records] == ([said] if said else [])


def test_the_version_costs_hardly_any_processor_time(checkout):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([checkout / "bin" / "metal-marlin", "--version"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.25
