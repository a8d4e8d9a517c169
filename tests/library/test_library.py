"""A model in a program's own process, as docs/embedding.md has it."""

import asyncio
import gc
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import numpy as np
import pytest

import marlin
from marlin.aio import pieces
from marlin.errors import (
    ConfigError,
    MarlinError,
    NotServedError,
    StoppingError,
    TimedOutError,
)
from marlin.server.api import keys

WAIT_S = 30  # whoever waits this long has found a hang
QUESTION = [{"role": "user", "content": "What is 2+2?"}]
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer", "maximum": 99}},
          "required": ["sum"], "additionalProperties": False}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def model(demo_model_path):
    batching = marlin.Batching(num_blocks=128, block_size=16, max_sequences=8)
    with marlin.open_model(demo_model_path, max_context_tokens=1024, batching=batching) as opened:
        yield opened


def test_an_answer_is_the_same_whole_streamed_and_on_a_loop(model):
    asked = {"max_tokens": 12, "seed": 3}
    whole = model.generate("Once upon a time", **asked)
    assert (whole.finish_reason, whole.usage.num_output_tokens) == ("length", 12)
    with model.stream("Once upon a time", **asked) as stream:
        parts = list(stream)
    assert "".join(part.text for part in parts) == whole.text
    assert [part.finish_reason for part in parts][-2:] == [None, "length"]

    async def gather():
        streams = [model.stream("Once upon a time", **asked) for _ in range(3)]
        return await asyncio.gather(*map(text_of, streams))

    async def text_of(stream):
        return "".join([piece.text async for piece in pieces(stream)])

    assert asyncio.run(gather()) == [whole.text] * 3


def test_it_answers_as_the_server_in_the_same_process(model):
    import openai

    ours = model.chat(QUESTION, temperature=0, max_tokens=16)
    with marlin.Server(model, api_key="a key of sixteen bytes") as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="a key of sixteen bytes")
        with client:
            theirs = client.chat.completions.create(
                model=model.name, messages=QUESTION, temperature=0, max_tokens=16
            )
    assert ours.text == theirs.choices[0].message.content
    assert ours.usage.num_prompt_tokens == theirs.usage.prompt_tokens


def test_a_schema_holds(model):
    answer = model.chat(QUESTION, response_format=FORMAT, temperature=0)
    assert json.loads(answer.text).keys() == {"sum"}


@pytest.mark.parametrize(
    "ask, param",
    [
        (lambda m: m.chat([{"role": "usr", "content": "x"}]), "messages[0].role"),
        (lambda m: m.generate("x", temperature=3), "temperature"),
        (lambda m: m.generate("x", tempratur=1), "tempratur"),
        (lambda m: m.generate("x", n=2), "n"),
        (lambda m: m.generate(["x", "y"]), "prompt"),
        (lambda m: m.generate("x", stream=True), "stream"),
        (lambda m: m.stream("word " * 5000), "prompt"),
        (lambda m: m.generate("x", echo=True), "echo"),
        (lambda m: m.generate("x", logprobs=0), "logprobs"),
        (lambda m: m.chat(QUESTION, logprobs=True, top_logprobs=2), "logprobs"),
        (lambda m: m.embed("x", encoding_format="base64"), "encoding_format"),
        (lambda m: m.detokenize([5, -1]), "token_ids[1]"),
        (lambda m: m.detokenize([10**7]), "token_ids[0]"),
        (lambda m: m.chat(QUESTION, response_format={"type": "xml"}), "response_format.type"),
    ],
)
def test_what_the_api_refuses_is_refused_by_name_and_at_once(model, ask, param):
    with pytest.raises(MarlinError) as caught:
        ask(model)
    assert caught.value.param == param or param in caught.value.message


def test_log_probabilities_are_those_that_answers_are_drawn_by(model):
    ids = model.tokenize("The capital of France is")
    found = model.log_probabilities(ids)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-9)
    assert (
        model.detokenize([int(found.argmax())])
        == model.generate(ids, max_tokens=1, temperature=0).text
    )
    np.testing.assert_array_equal(found, model.log_probabilities("The capital of France is"))


def test_log_probabilities_are_told_where_an_end_token_is_likeliest(model):
    turn = "<|im_start|>user\nSay OK.<|im_end|>\n<|im_start|>assistant\nOK."
    found = model.log_probabilities(turn)
    assert model.generate(turn, max_tokens=1, temperature=0).finish_reason == "stop"
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-9)


def test_a_server_gives_signs_of_life_and_reads_its_keys_again(model, tmp_path):
    """Without the signs its /health was 503 after a minute."""
    path, secret = tmp_path / "keys.json", "mm-" + "1" * 40
    write_keys(path, "mm-" + "0" * 40)
    with marlin.Server(model, key_file=str(path)) as server:
        write_keys(path, secret)
        asked = urllib.request.Request(server.url + "/v1/models", headers={"x-api-key": secret})
        until, is_known = time.monotonic() + WAIT_S, False
        while not is_known and time.monotonic() < until:
            with suppress(urllib.error.HTTPError), urllib.request.urlopen(asked):
                is_known = True
    assert is_known


def write_keys(path, secret):
    path.write_bytes(keys.encode(keys.with_new_key({"keys": []}, "team", secret)))
    path.chmod(0o600)


@pytest.mark.parametrize(
    "setting", ["audit_log", "lock_down", "workers", "uds", "require_key", "timeout_s", "nonsense"]
)
def test_a_server_refuses_a_setting_that_it_would_not_keep(model, setting):
    with pytest.raises(ConfigError, match=f"no setting {setting};"):
        marlin.Server(model, **{setting: "1"})


def test_a_server_goes_by_the_options_of_serve(model):
    with marlin.Server(model, served_model_name="other", timeout="7") as server:
        with urllib.request.urlopen(server.url + "/v1/models") as answer:
            assert [card["id"] for card in json.load(answer)["data"]] == ["other"]


def test_a_server_listens_where_it_is_told_or_not_at_all(model):
    with pytest.raises(ConfigError, match="cannot listen on 192.0.2.1: "):  # nobody's, for pages
        marlin.Server(model, host="192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match="cannot listen on 127.0.0.1: "):
            marlin.Server(model, port=taken.getsockname()[1])


def test_texts_and_tokens_are_each_others(model):
    text = "Ärger um 3 Flüsse \N{GRINNING FACE}"
    assert model.detokenize(model.tokenize(text)) == text


def test_a_stream_that_is_left_frees_the_engine(model):
    for _ in range(20):  # more than may run at once
        with model.stream("Tell me", max_tokens=800) as stream:
            next(stream)
    assert model.generate("Tell me", max_tokens=2).usage.num_output_tokens == 2


def test_a_stream_that_is_dropped_before_its_first_piece_frees_the_engine(model, monkeypatch):
    engine, requests = model._served.engine, []
    submit = engine.submit

    def noted(*arguments, **options):
        requests.append(submit(*arguments, **options))
        return requests[-1]

    monkeypatch.setattr(engine, "submit", noted)
    model.stream("Tell me", max_tokens=900)
    gc.collect()
    assert [request.aborted for request in requests] == [True]
    kept = model.stream("Tell me", max_tokens=2, logit_bias={"2": -100})
    assert list(kept)[-1].finish_reason == "length"


def test_another_thread_may_end_a_stream(model):
    stream = model.stream("Tell me", max_tokens=900, logit_bias={"2": -100})
    threading.Timer(0.1, stream.close).start()
    with pytest.raises(StoppingError):
        list(stream)


def test_a_call_may_have_its_time(model):
    with pytest.raises(TimedOutError, match="timeout_s"):
        model.generate("Tell me", max_tokens=900, timeout_s=0.05)


def test_a_cancelled_task_ends_its_answer(model):
    async def main():
        async def read():
            async for _ in pieces(model.stream("Tell me", max_tokens=900)):
                began.set()

        began = asyncio.Event()
        task = asyncio.create_task(read())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert model.generate("Tell me", max_tokens=2).usage.num_output_tokens == 2


def test_many_threads_get_the_answers_of_one(model):
    prompts = [f"Number {index} is" for index in range(12)]
    alone = [model.generate(p, max_tokens=8, temperature=0).text for p in prompts]
    found = [""] * len(prompts)

    def ask(index):
        found[index] = model.generate(prompts[index], max_tokens=8, temperature=0).text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_a_process_has_several_models_and_vectors_of_one(model, demo_model_path):
    with marlin.open_model(demo_model_path, max_context_tokens=256, pooling="mean") as other:
        one, two, again = other.embed(["a river", "a bank", "a river"])
        np.testing.assert_array_equal(one, again)
        assert one.dtype == np.float32 and not np.array_equal(one, two)
        short = other.embed("a river", dimensions=8)[0]
        np.testing.assert_allclose(short, one[:8] / np.linalg.norm(one[:8]), rtol=1e-6)
        assert model.generate("x", max_tokens=1).usage.num_output_tokens == 1
        with pytest.raises(NotServedError):
            model.embed("a river")
    with pytest.raises(StoppingError):
        other.embed("a river")


def test_nothing_happens_behind_the_programs_back(demo_model_path):
    program = f"""
import logging, os, signal, sys, threading
os.environ["METAL_MARLIN_DEVICE"] = "nonsense"
import marlin
assert not {{"numpy", "marlin.library"}} & set(sys.modules)
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
hooks, handlers = (sys.excepthook, threading.excepthook), list(logging.getLogger().handlers)
files = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
with marlin.open_model({str(demo_model_path)!r}, max_context_tokens=128) as model:
    model.generate("x", max_tokens=1)
    with marlin.Server(model):
        pass
assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
assert hooks == (sys.excepthook, threading.excepthook)
assert handlers == logging.getLogger().handlers == []
assert "asyncio" not in sys.modules
left = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
print(left)
"""
    assert run(program).strip() == "[]"


def run(program):
    """What it prints."""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def programs(checkout):
    return re.findall(
        r"```python\n(.*?)```", (checkout / "docs/embedding.md").read_text(), re.DOTALL
    )


@pytest.mark.parametrize("index", range(4))
def test_the_programs_of_the_page_run(checkout, demo_model_path, index):
    program = programs(checkout)[index].replace("MODEL", str(demo_model_path))
    assert run(program).strip()


def test_mypy_reads_the_programs_of_the_page(checkout, tmp_path):
    pytest.importorskip("mypy", reason="needs mypy, which bin/lint installs")
    assert len(programs(checkout)) == 4
    names = []
    for index, program in enumerate(programs(checkout)):
        (tmp_path / f"program{index}.py").write_text(program)
        names.append(f"program{index}.py")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *names]
    environ = {**os.environ, "MYPYPATH": str(checkout)}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert ran.returncode == 0, ran.stdout


def test_the_page_lists_what_is_public(checkout):
    page = (checkout / "docs/embedding.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", page, re.MULTILINE)
    named = {name for cell, _ in rows for name in re.findall(r"`([\w.]+)`", cell)}
    assert named == {*marlin.__all__, "marlin.aio.pieces", "marlin.errors"}
    facts = {cell: re.findall(r"`(\w+)`", words) for cell, words in rows}
    for name in ("Model", "Server"):
        public = {n for n in dir(getattr(marlin, name)) if not n.startswith("_")}
        assert set(facts[f"`{name}`"]) == public | ({"url"} if name == "Server" else set())
    for name in facts["`marlin.errors`"]:
        if name != "param":
            assert issubclass(getattr(marlin.errors, name), MarlinError)
