"""`metal-marlin generate`: where its prompt comes from, what it passes on and what it writes."""

import io
import json
import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from server.fakes import ByteTokenizer, FakeEngine, StoppedByEngine, say

from marlin import cli
from marlin.commands import generate, serve
from marlin.config import serve_config
from marlin.engine.served_model import ServedModel
from marlin.errors import ConfigError, MarlinError


def loading(engine, tokenizer=None):
    """What loads a model; the command closes it."""
    return lambda path, **_: ServedModel("tiny", engine, tokenizer or ByteTokenizer())


def generated(*words, stdin="", engine=None, tokenizer=None):
    """Run generate with a scripted engine; returns (output, engine)."""
    engine = engine or FakeEngine()
    load = loading(engine, tokenizer)
    arguments = cli.read(["generate", "MODEL", *words], {})
    output = io.StringIO()
    code = generate.run(arguments, load, io.StringIO(stdin), output)
    assert code == 0
    return output.getvalue(), engine


def prompt_of(engine):
    return bytes(engine.requests[0].prompt_token_ids).decode()


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


@pytest.mark.parametrize("words", [["Hi there"], ["-p", "Hi there"], ["--prompt=Hi there"]])
def test_generate_takes_its_prompt_as_an_argument_or_an_option(words):
    assert prompt_of(generated("--raw", *words)[1]) == "Hi there"


def test_generate_refuses_two_prompts():
    with pytest.raises(ConfigError, match="one prompt"):
        generated("Hi", "-p", "Hello")


@pytest.mark.parametrize(
    ("words", "stdin"), [([], ""), ([], "\n"), (["--prompt", ""], ""), (["  "], ""), (["-"], "\n")]
)
@pytest.mark.parametrize("mode", [[], ["--raw"]])
def test_generate_makes_up_no_answer_to_an_empty_prompt(words, stdin, mode):
    engine = FakeEngine()
    with pytest.raises(ConfigError, match="the prompt is empty"):
        generated(*words, *mode, stdin=stdin, engine=engine)
    assert engine.requests == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(*words, stdin="Hi\n", engine=None):
    """(standard output, standard error) of generate with a person at both ends."""
    load = loading(engine or FakeEngine())
    output, error = io.StringIO(), Terminal()
    arguments = cli.read(["generate", "MODEL", *words], {})
    generate.run(arguments, load, Terminal(stdin), output, error)
    return output.getvalue(), error.getvalue()


def test_generate_on_a_terminal_says_that_it_waits_for_a_prompt():
    assert "Type the prompt; Ctrl-D" in on_a_terminal()[1]
    assert "Type the prompt" not in on_a_terminal("Hi")[1]


def test_generate_on_a_terminal_ends_with_a_line_of_statistics():
    output, error = on_a_terminal("Hi", "--raw", "--seed", "5")
    assert output == "Hello there!\n"
    assert re.fullmatch(r"2 \+ 12 tokens, \d\.\d\d s to the first.*, seed 5\n", error)


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_loading_is_shown_to_whoever_waits_at_a_terminal(command, monkeypatch):
    shown = []

    @contextmanager
    def waiting(_stream, what, *_):
        shown.append(what)
        yield lambda: None

    monkeypatch.setattr(f"marlin.commands.{command}.waiting", waiting)
    model = SimpleNamespace(engine=SimpleNamespace())
    monkeypatch.setattr("marlin.engine.load.load_model", lambda *_, **__: model)
    if command == "serve":
        assert serve.load(serve_config({"model_path": "m.gguf"}, {})) is model
        assert shown == ["loading m.gguf"]
    else:
        on_a_terminal("Hi", "--raw")
        assert shown == ["loading MODEL", "reading 2 tokens"]


def test_generate_names_variables_that_nothing_reads():
    arguments = cli.read(["generate", "M", "Hi"], {"METAL_MARLIN_TEMPERATURE": "1"})
    error = io.StringIO()
    load = loading(FakeEngine())
    generate.run(arguments, load, io.StringIO(), io.StringIO(), error)
    assert error.getvalue() == "metal-marlin: nothing reads METAL_MARLIN_TEMPERATURE\n"


def test_generate_prints_nothing_but_the_answer_where_there_is_no_terminal(capsys):
    assert generated("Hi", "--raw")[0] == "Hello there!\n"
    assert capsys.readouterr().err == ""


def test_generate_as_json_is_one_object_with_text_and_counts():
    answer = json.loads(generated("Hi", "--raw", "--json", "--seed", "5")[0])
    times = answer.pop("first_token_s"), answer.pop("total_s")
    assert 0 <= times[0] <= times[1]
    assert answer == {
        "model": "tiny",
        "text": "Hello there!",
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "completion_tokens": 12,
        "seed": 5,
    }


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

    arguments = cli.read(["generate", "M", "--prompt", "x", *words], {})
    with pytest.raises(MarlinError, match="enough"):
        generate.run(arguments, load)
    assert given["speculative"] == speculative


def test_generate_passes_the_device_on():
    given = {}

    def load(_path, **options):
        given.update(options)
        raise MarlinError("enough")

    words = ["generate", "M", "--prompt", "x", "--device", "metal", "--threads", "3"]
    with pytest.raises(MarlinError, match="enough"):
        generate.run(cli.read(words, {}), load)
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
