"""bin/chat: a conversation with a server, as a process."""

import os
import subprocess
import sys

import pytest
from fakes import FakeEngine, say, say_then_hang
from scripted import Qwen
from served import PATIENCE_S, ROOT


def talk(url, *lines, words=(), key=None):
    """(exit code, what was shown, what was said beside it)."""
    environ = {name: text for name, text in os.environ.items() if "METAL_MARLIN" not in name}
    done = subprocess.run(
        [sys.executable, ROOT / "bin" / "chat", url, *words],
        input="".join(f"{line}\n" for line in lines),
        env=environ | ({"METAL_MARLIN_API_KEY": key} if key else {}),
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def url_of(server):
    return f"http://127.0.0.1:{server.port}"


def prompts(engine):
    return [bytes(request.prompt_token_ids).decode() for request in engine.requests]


def test_answers_are_shown_and_become_a_part_of_the_next_prompt(start_server):
    engine = FakeEngine()
    found = talk(url_of(start_server(engine)), "Hi", "And now?", words=["--system", "Be kind"])
    assert found == (0, "Hello there!\n" * 2, "")
    assert prompts(engine)[1] == (
        "system: Be kind\nuser: Hi\nassistant: Hello there!\nuser: And now?\nassistant:"
    )


def test_thoughts_stay_out_of_a_pipe(start_server):
    answer = b"<think>\nHm.\n</think>\n\nFour."
    engine = FakeEngine(say(*([byte] for byte in answer)))
    code, shown, _ = talk(url_of(start_server(engine, Qwen())), "2+2?")
    assert (code, shown) == (0, "Four.\n")


def test_the_key_is_sent_and_a_missing_one_is_the_servers_own_words(start_server):
    url = url_of(start_server(environ={"METAL_MARLIN_API_KEY": "secret"}))
    assert talk(url, "Hi", key="secret")[:2] == (0, "Hello there!\n")
    code, shown, said = talk(url, "Hi")
    assert (code, shown) == (1, "")
    assert said.startswith("bin/chat: 401: ")


@pytest.mark.parametrize(
    ("lines", "words", "told"),
    [
        (["/set temperature hot"], [], "temperature"),
        (["Hi"], ["--model", "other"], "other"),
        (["/nothing"], [], "no command /nothing"),
    ],
)
def test_what_is_refused_is_said_and_ends_a_pipe(start_server, lines, words, told):
    code, shown, said = talk(url_of(start_server()), *lines, words=words)
    assert (code, shown) == (1, "")
    assert told in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1:x", "http://127.0.0.1:1"]
)
def test_what_is_no_server_is_said_in_a_line(url):
    code, shown, said = talk(url, "Hi")
    assert (code, shown) == (1, "")
    assert said.startswith("bin/chat: ") and len(said.splitlines()) == 1


def test_an_answer_that_breaks_off_is_no_answer(start_server):
    server = start_server(FakeEngine(say_then_hang([72])), options={"timeout_s": 1})
    code, _, said = talk(url_of(server), "Hi")
    assert code == 1
    assert "bin/chat: " in said
