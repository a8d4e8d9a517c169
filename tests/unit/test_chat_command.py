"""`metal-marlin chat`: what a conversation in a terminal, or a pipe, sends and shows."""

import io
import json
import re
from pathlib import Path

import pytest
from server.fakes import ByteTokenizer, FakeEngine, say, say_then_hang

from marlin import cli
from marlin.commands import chat
from marlin.engine.served_model import ServedModel
from marlin.errors import ConfigError, MarlinError, RequestError
from marlin.library import Model

TEMPLATES = Path(__file__).parent.parent / "data" / "chat_templates"


class Qwen(ByteTokenizer):
    chat_template = (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text()


def thinking():
    """An engine that thinks before it answers."""
    answer = "<think>\nHm.\n</think>\n\nFour."
    return FakeEngine(say(*([byte] for byte in answer.encode())))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def talk(*lines, engine=None, tokenizer=None, words=(), kind=io.StringIO):
    """(what was shown, what was said beside it, the engine)."""
    engine = engine or FakeEngine()
    arguments = cli.read(["chat", "MODEL", *words], {})
    stdin, stdout, stderr = (kind("".join(f"{line}\n" for line in lines)), kind(), kind())
    with Model(ServedModel("tiny", engine, tokenizer or ByteTokenizer())) as model:
        assert chat.run(arguments, model, stdin, stdout, stderr) == 0
    return stdout.getvalue(), stderr.getvalue(), engine


def prompts(engine):
    return [bytes(request.prompt_token_ids).decode() for request in engine.requests]


def test_an_answer_becomes_a_part_of_the_next_prompt():
    shown, said, engine = talk("Hi", "And \\", "now?", words=["--system", "Be kind"])
    assert (shown, said) == ("Hello there!\n" * 2, "")
    assert prompts(engine)[1] == (
        "system: Be kind\nuser: Hi\nassistant: Hello there!\nuser: And \nnow?\nassistant:"
    )


def test_parameters_are_set_and_checked_at_once_and_taken_back():
    lines = [
        "/set temperature 0.25",
        '/set stop ["x"]',
        "/set",
        "/set temperature",
        "/set",
        "/quit",
    ]
    _, said, _ = talk(*lines, "never asked", kind=Terminal)
    assert '{"temperature": 0.25, "stop": ["x"]}' in said
    assert '{"stop": ["x"]}\n' in said
    with pytest.raises(RequestError, match="temperature"):
        talk("/set temperature 9")


def test_help_lists_every_command_with_what_it_does():
    _, said, _ = talk("/help", kind=Terminal)
    names = ("help", "system", "set", "save", "load", "regenerate", "stats", "quit")
    listed = [re.search(rf"^\W*/{name} +\w", said, re.MULTILINE) for name in names]
    assert None not in listed, said


def test_a_mistake_in_a_terminal_is_said_and_the_conversation_goes_on():
    wrong = ["/set messages []", "/set self 1", "/set model x", "/set timeout_s soon"]
    lines = ["/nonsense", "/set top_p 7", "/save", "/load /nowhere/x.json", *wrong, "Hi"]
    shown, said, engine = talk(*lines, kind=Terminal)
    assert said.count("\n! ") == 8
    assert shown == "Hello there!\n"
    assert len(engine.requests) == 1


def test_a_mistake_in_a_pipe_ends_the_command():
    with pytest.raises(ConfigError, match="no command /nonsense"):
        talk("/nonsense", "Hi")


def test_a_conversation_is_written_down_and_gone_on_with(tmp_path):
    path = tmp_path / "kept.json"
    talk("/system Be kind", "/set seed 3", "Hi", f"/save {path}")
    assert json.loads(path.read_text())["messages"][1]["content"] == "Hello there!"
    _, _, engine = talk(f"/load {path}", "More?")
    assert prompts(engine) == [
        "system: Be kind\nuser: Hi\nassistant: Hello there!\nuser: More?\nassistant:"
    ]
    assert engine.requests[0].params.seed == 3
    path.write_text('{"messages": [{"role": "king"}]}')
    with pytest.raises(MarlinError, match="role"):
        talk(f"/load {path}")
    for kept, name in (({"parameters": {"self": 1}}, "self"), ({"system": 5}, "content")):
        path.write_text(json.dumps({"messages": [], **kept}))
        with pytest.raises(MarlinError, match=name):
            talk(f"/load {path}")


def test_an_answer_is_given_again():
    _, _, engine = talk("Hi", "/regenerate")
    assert prompts(engine) == ["user: Hi\nassistant:"] * 2
    with pytest.raises(ConfigError, match="nothing was said"):
        talk("/regenerate")


def test_an_answer_that_cannot_be_given_again_stays(tmp_path):
    path = tmp_path / "kept.json"
    lines = ["Hi", "/system " + "x" * 500, "/regenerate", f"/save {path}"]
    _, said, _ = talk(*lines, engine=FakeEngine(max_context_tokens=100), kind=Terminal)
    assert "\n! " in said
    kept = json.loads(path.read_text())["messages"]
    assert [message["role"] for message in kept] == ["user", "assistant"]


def test_thoughts_are_grey_in_a_terminal_and_left_out_of_a_pipe():
    shown, _, _ = talk("2+2?", engine=thinking(), tokenizer=Qwen(), kind=Terminal)
    assert "\x1b[90mH\x1b[0m" in shown and shown.endswith("\nFour.\n")
    assert talk("2+2?", engine=thinking(), tokenizer=Qwen())[0].strip() == "Four."


def test_a_terminal_gets_no_orders_from_a_model():
    engine = FakeEngine(say(b"a\x1b]0;title\x07b\x9bc\tok"))
    assert "\x1b" not in talk("Hi", engine=engine, kind=Terminal)[0]
    engine = FakeEngine(say(b"a\x1b[2Jb"))
    assert talk("Hi", engine=engine)[0] == "a\x1b[2Jb\n"  # a pipe gets the text as it is


def test_control_c_stops_an_answer_and_keeps_what_there_was(monkeypatch):
    engine = FakeEngine(say_then_hang(b"Once"))

    class Interrupted(Terminal):
        def write(self, text):
            super().write(text)
            if text == "Once" and not engine.aborted.acquire(blocking=False):
                raise KeyboardInterrupt
            return len(text)

    shown, said, _ = talk("Tell", "/stats", engine=engine, kind=Interrupted)
    assert "Once" in shown and "2 messages" in said
    assert engine.aborted.acquire(timeout=5)


def test_a_model_without_a_template_says_so():
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = None
    with pytest.raises(MarlinError, match="no chat template"):
        talk("Hi", tokenizer=tokenizer)
