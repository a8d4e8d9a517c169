"""The command line: what answers at once, how mistakes read, and what generate writes."""

import io
import subprocess
import sys

import pytest
from server.fakes import ByteTokenizer, FakeEngine, StoppedByEngine, say

from marlin import __version__, cli
from marlin.commands import generate
from marlin.engine.served_model import ServedModel
from marlin.errors import ConfigError, MarlinError, RequestError


def generated(*words, stdin="", engine=None, tokenizer=None):
    """Run generate with a scripted engine; returns (output, engine)."""
    engine = engine or FakeEngine()
    loaded = ServedModel("tiny", engine, tokenizer or ByteTokenizer())
    arguments = cli._build_parser("generate").parse_args(["generate", "MODEL", *words])
    output = io.StringIO()
    code = generate.run(arguments, lambda path, **_: loaded, io.StringIO(stdin), output)
    assert code == 0
    return output.getvalue(), engine


def prompt_of(engine):
    return bytes(engine.requests[0].prompt_token_ids).decode()


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


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"metal-marlin {__version__}\n"


def test_no_command_shows_the_commands_and_fails(capsys):
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    commands = ("serve", "generate", "quantize", "bench", "info", "selftest")
    assert all(command in shown for command in commands)


@pytest.mark.parametrize(
    ("words", "environ", "message"),
    [
        (["serve", "--port", "x"], {}, "--port must be a whole number, 0 to 65535, got 'x'"),
        (["serve"], {"METAL_MARLIN_PORT": "x"}, "METAL_MARLIN_PORT must be a whole number"),
    ],
)
def test_a_wrong_setting_is_one_line_and_code_2(words, environ, message, capsys):
    assert cli.main(words, environ) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("--threads", "257", "must be 1 to 256"),
        ("--max-tokens", "0", "must be 1 or more"),
        ("--max-context", "0", "must be 1 or more"),
        ("--seed", "-1", "must be a whole number, 0 or more"),
        ("--top-k", "few", "must be a whole number, 0 or more"),
    ],
)
def test_generate_names_the_option_and_its_limits(option, text, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", "M", option, text])
    assert ended.value.code == 2
    assert f"argument {option}: {expected}, got {text!r}\n" in capsys.readouterr().err


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
    monkeypatch.setattr("marlin.cli._set_up_logging", lambda _settings: None)
    monkeypatch.setattr("marlin.server.process.serve.serve", lambda _settings, _load: 0)
    assert cli.main(["serve", *words], {}) == 0
    assert [record.getMessage() for record in caplog.records] == ([said] if said else [])


def test_generate_uses_the_chat_template_of_a_model_that_has_one():
    output, engine = generated("--prompt", "Hi", "--system", "Be kind")
    assert output == "Hello there!\n"
    assert prompt_of(engine) == "system: Be kind\nuser: Hi\nassistant:"
    assert engine.closed


def test_generate_raw_continues_the_prompt():
    output, engine = generated("--prompt", "Hi", "--raw")
    assert (output, prompt_of(engine)) == ("Hello there!\n", "Hi")


def test_generate_continues_the_prompt_for_a_model_without_a_template():
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = None
    assert prompt_of(generated("--prompt", "Hi", tokenizer=tokenizer)[1]) == "Hi"
    with pytest.raises(MarlinError, match="no chat template"):
        generated("--prompt", "Hi", "--chat", tokenizer=tokenizer)


@pytest.mark.parametrize("words", [[], ["--prompt", "-"]])
def test_generate_reads_its_prompt_from_standard_input(words):
    assert prompt_of(generated("--raw", *words, stdin="two\nlines\n")[1]) == "two\nlines"


def test_generate_passes_sampling_and_stop_strings_on():
    words = ["--max-tokens", "9", "--temperature", "0", "--top-k", "3", "--seed", "5"]
    output, engine = generated("--prompt", "Hi", *words, "--stop", "x", "--stop", "lo")
    params = engine.requests[0].params
    assert (params.max_tokens, params.temperature, params.top_k, params.seed) == (9, 0.0, 3, 5)
    assert params.top_p == 0.9
    assert output == "Hel\n"


@pytest.mark.parametrize(
    ("words", "speculative"), [([], None), (["--speculative", "ngram"], "ngram")]
)
def test_generate_speculates_when_told_to(words, speculative):
    given = {}

    def load(_path, **options):
        given.update(options)
        raise MarlinError("enough")

    arguments = cli._build_parser("generate").parse_args(["generate", "M", "--prompt", "x", *words])
    with pytest.raises(MarlinError, match="enough"):
        generate.run(arguments, load)
    assert given["speculative"] == speculative


@pytest.mark.parametrize(
    ("words", "param"),
    [
        (["--temperature", "3"], "temperature"),
        (["--top-p", "2"], "top_p"),
        (["--stop", ""], "stop"),
    ],
)
def test_generate_refuses_what_the_server_refuses(words, param):
    with pytest.raises(RequestError, match=param):
        generated("--prompt", "Hi", *words)


@pytest.mark.parametrize("command", [["generate", "M"], ["bench", "M"], ["selftest"]])
def test_a_device_is_metal_or_cpu(command, capsys):
    for kind in ("metal", "cpu"):
        parsed = cli._build_parser(command[0]).parse_args([*command, "--device", kind])
        assert parsed.device == kind
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--device", "tpu"])
    assert ended.value.code == 2
    assert "--device: invalid choice: 'tpu'" in capsys.readouterr().err


def test_generate_passes_the_device_on():
    given = {}

    def load(_path, **options):
        given.update(options)
        raise MarlinError("enough")

    words = ["generate", "M", "--prompt", "x", "--device", "metal", "--threads", "3"]
    with pytest.raises(MarlinError, match="enough"):
        generate.run(cli._build_parser("generate").parse_args(words), load)
    assert (given["device_kind"], given["num_threads"]) == ("metal", 3)


def test_generate_refuses_a_system_message_without_a_template():
    with pytest.raises(ConfigError, match="--system"):
        generated("--prompt", "Hi", "--raw", "--system", "Be kind")


def test_generate_fails_when_the_engine_gives_up():
    def script(_request):
        yield b"Hel"
        raise StoppedByEngine

    with pytest.raises(MarlinError, match="before the answer was complete"):
        generated("--prompt", "Hi", engine=FakeEngine(script))


def test_generate_ends_without_output_for_an_empty_answer():
    assert generated("--prompt", "Hi", engine=FakeEngine(say(b"")))[0] == "\n"
