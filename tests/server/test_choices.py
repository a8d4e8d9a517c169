"""Several choices in one call, by n and by lists of prompts: their order, seeds, counts and end."""

import unicodedata

import openai
import pytest
from clients import MODEL, chat_body, completion_body, request_bytes
from fakes import EOS_ID, ByteTokenizer, FakeEngine, say, say_then_hang, wait_for_abort

from marlin.errors import StoppingError

MESSAGES = [{"role": "user", "content": "Hi"}]


def say_the_seed(request):
    """An answer that tells prompt and seed, as sampling would."""
    yield b"%b:%d" % (bytes(request.prompt_token_ids[-2:]), request.params.seed or 0)


@pytest.fixture
def seeds(start_server, sdk):
    return sdk(start_server(FakeEngine(say_the_seed)))


def texts(answer):
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [getattr(choice, "text", None) or choice.message.content for choice in answer.choices]


def streamed(chunks):
    """{index: (text, finish reasons)} of a stream of either endpoint."""
    found = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text, reasons = found.setdefault(choice.index, ([], []))
            delta = choice.delta.content if hasattr(choice, "delta") else choice.text
            text.append(delta or "")
            reasons.append(choice.finish_reason)
    return {index: ("".join(text), reasons) for index, (text, reasons) in found.items()}


def test_each_choice_draws_with_the_seed_plus_its_index(seeds):
    def ask(**changes):
        return texts(seeds.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, **changes))

    assert ask(seed=40) == ["t::40", "t::41", "t::42"] == ask(seed=40)
    assert ask(seed=-1)[1] == "t::0"  # seeds are 64 bits and wrap


def test_without_a_seed_the_engine_draws_one_for_each_choice(server, sdk):
    sdk(server).chat.completions.create(model=MODEL, messages=MESSAGES, n=2)
    first, second = server.engine.requests
    assert first.params.seed is None is second.params.seed
    assert first.seed != second.seed


def test_prompts_times_n_choices_are_numbered_prompt_by_prompt(seeds):
    answer = seeds.completions.create(model=MODEL, prompt=["one", "two"], n=2, seed=7)
    assert texts(answer) == ["ne:7", "ne:8", "wo:7", "wo:8"]


def test_prompts_may_be_lists_of_token_ids(seeds):
    answer = seeds.completions.create(model=MODEL, prompt=[[65, 66], [67, 68]], seed=1)
    assert texts(answer) == ["AB:1", "CD:1"]


def test_usage_counts_each_prompt_once_and_every_output(seeds):
    usage = seeds.completions.create(model=MODEL, prompt=["one", "four"], n=2, seed=1).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 16)
    assert usage.total_tokens == 23
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_cached_tokens_of_the_prompts_are_counted(start_server, sdk):
    def script(request):
        request.num_cached_tokens = 2
        yield b"a"

    client = sdk(start_server(FakeEngine(script)))
    usage = client.completions.create(model=MODEL, prompt=["one", "two"], n=3).usage
    assert usage.prompt_tokens_details.cached_tokens == 4


@pytest.mark.parametrize("n", [1, 3])
def test_streamed_choices_have_the_text_of_whole_ones(seeds, n):
    chunks = list(
        seeds.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            n=n,
            seed=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    found = streamed(chunks)
    assert {index: text for index, (text, _) in found.items()} == {
        index: f"t::{40 + index}" for index in range(n)
    }
    for _, reasons in found.values():
        assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    roles = [c.choices[0].index for c in chunks if c.choices and c.choices[0].delta.role]
    assert sorted(roles) == list(range(n))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 5 * n
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_streamed_completions_of_several_prompts(seeds):
    chunks = seeds.completions.create(model=MODEL, prompt=["one", "two"], seed=3, stream=True)
    found = streamed(chunks)
    assert {i: text for i, (text, _) in found.items()} == {0: "ne:3", 1: "wo:3"}


def test_a_choice_is_streamed_while_another_one_has_nothing_yet(start_server, sdk):
    def script(request):
        if request.params.seed == 5:
            wait_for_abort(request)
        yield b"ready"

    server = start_server(FakeEngine(script), poll_s=0.02)
    with sdk(server).chat.completions.create(
        model=MODEL, messages=MESSAGES, n=2, seed=5, stream=True
    ) as chunks:
        assert next(iter(chunks)).choices[0].index == 1


def test_a_call_takes_one_slot_however_many_choices_it_has(start_server, sdk):
    engine = FakeEngine(say_then_hang(b"text"))
    server = start_server(engine, options={"max_concurrent_requests": "2"}, poll_s=0.02)
    bodies = [chat_body(n=16, stream=True), chat_body(stream=True)]
    with server.connect() as many, server.connect() as one:
        for client, body in zip((many, one), bodies, strict=True):
            client.send(request_bytes("POST", "/v1/chat/completions", body))
            assert b"200 OK" in client.read_stream_head()
        assert len(engine.requests) == 17


def test_a_client_that_leaves_ends_all_choices(start_server):
    engine = FakeEngine(say_then_hang(b"text"))
    server = start_server(engine, poll_s=0.02)
    with server.connect() as client:
        body = chat_body(n=3, stream=True)
        client.send(request_bytes("POST", "/v1/chat/completions", body)).read_stream_head()
    for _ in range(3):
        assert engine.aborted.acquire(timeout=10)
    server.wait_until_idle()


def test_the_failure_of_one_choice_ends_the_others(start_server, sdk):
    def script(request):
        if request.params.seed == 6:
            raise ZeroDivisionError
        yield b"a"
        wait_for_abort(request)

    engine = FakeEngine(script)
    client = sdk(start_server(engine, poll_s=0.02))
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2, seed=5)
    assert engine.aborted.acquire(timeout=10)


@pytest.mark.parametrize(
    "prompts", [[[97] * 5, [97] * 20], [[97] * 5, [97, 257]], ["a" * 5, "a" * 20]]
)
def test_a_prompt_that_is_refused_lets_none_beside_it_begin(start_server, sdk, prompts):
    engine = FakeEngine(say_then_hang(b"a"), max_context_tokens=10)
    client = sdk(start_server(engine, poll_s=0.02))
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)):
        client.completions.create(model=MODEL, prompt=prompts)
    assert engine.requests == []


def test_a_prompt_that_the_engine_does_not_take_ends_those_before_it(start_server, sdk):
    class StoppingEngine(FakeEngine):
        def submit(self, *arguments):
            if self.requests:
                raise StoppingError("the engine has stopped")
            return super().submit(*arguments)

    engine = StoppingEngine(say_then_hang(b"a"))
    client = sdk(start_server(engine, poll_s=0.02))
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model=MODEL, prompt=["one", "two"])
    assert engine.aborted.acquire(timeout=10)
    assert len(engine.requests) == 1


def test_echo_begins_a_text_with_its_prompt(start_server, sdk):
    client = sdk(start_server(FakeEngine(say_the_seed)))
    asked = {"model": MODEL, "prompt": ["one", "two"], "echo": True, "seed": 1, "n": 2}
    expected = ["onene:1", "onene:2", "twowo:1", "twowo:2"]
    answer = client.completions.create(**asked)
    assert texts(answer) == expected
    assert answer.usage.completion_tokens == 16
    found = streamed(client.completions.create(**asked, stream=True))
    assert [found[index][0] for index in range(4)] == expected


class ChangingTokenizer(ByteTokenizer):
    """Puts a special token before a text, composes its characters, and has no token for BEL."""

    def encode(self, text, *, add_special_tokens=True):
        composed = unicodedata.normalize("NFC", text).replace("\a", "")
        return [EOS_ID, *composed.encode("utf-8")]


def test_echo_is_the_text_that_was_given_and_not_what_its_tokens_spell(start_server, sdk):
    client = sdk(start_server(FakeEngine(say(b"!")), ChangingTokenizer()))
    asked = {"model": MODEL, "prompt": "cafe\u0301\a", "echo": True}
    assert texts(client.completions.create(**asked)) == ["cafe\u0301\a!"]
    found = streamed(client.completions.create(**asked, stream=True))
    assert found[0][0] == "cafe\u0301\a!"


def test_echo_spells_token_ids_out(seeds):
    answer = seeds.completions.create(model=MODEL, prompt=[0xC3, 0xA9, 65], echo=True, seed=1)
    assert answer.choices[0].text.startswith("\u00e9A")


def test_the_fingerprint_is_the_same_everywhere(seeds):
    first = seeds.chat.completions.create(model=MODEL, messages=MESSAGES)
    second = seeds.completions.create(model=MODEL, prompt="Hi")
    chunks = list(seeds.completions.create(model=MODEL, prompt="Hi", stream=True))
    prints = {first.system_fingerprint, second.system_fingerprint}
    prints |= {chunk.system_fingerprint for chunk in chunks}
    assert len(prints) == 1
    assert prints.pop().startswith("fp_")


def test_a_bias_outside_the_vocabulary_is_refused_by_its_name(server):
    for path, body in (
        ("/v1/chat/completions", chat_body(logit_bias={"5": 1, "257": 1})),
        ("/v1/completions", completion_body(logit_bias={"5": 1, "257": 1})),
    ):
        with server.connect() as client:
            answer = client.ask("POST", path, body)
        assert (answer.status, answer.error["param"]) == (422, "logit_bias.257")
    assert server.engine.requests == []


def test_a_bias_reaches_the_engine(server, sdk):
    sdk(server).completions.create(model=MODEL, prompt="Hi", logit_bias={"5": -100, "6": 1.5})
    assert server.engine.requests[0].params.logit_bias == ((5, -100.0), (6, 1.5))


def test_the_prompt_at_fault_among_several_is_named(server):
    with server.connect() as client:
        body = completion_body(prompt=[[72], [72, 257]])
        answer = client.ask("POST", "/v1/completions", body)
    assert (answer.status, answer.error["param"]) == (422, "prompt[1][1]")


@pytest.mark.parametrize("stream", [False, True])
def test_chat_log_probabilities_line_up_with_the_text(server, sdk, stream):
    answer = sdk(server).chat.completions.create(
        model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, stop="re", stream=stream
    )
    parts = list(answer) if stream else [answer]
    content = []
    for part in parts:
        choice = part.choices[0]
        if choice.logprobs is None:
            continue
        own = choice.logprobs.content
        text = choice.delta.content if stream else choice.message.content
        assert "".join(token.token for token in own) == text
        content += own
    assert "".join(token.token for token in content) == "Hello the"
    assert content[0].bytes == [ord("H")]
    assert [len(token.top_logprobs) for token in content] == [2] * 9
    assert content[0].top_logprobs[0].token == "H"


@pytest.mark.parametrize("stream", [False, True])
def test_completion_log_probabilities_line_up_with_the_text(server, sdk, stream):
    answer = sdk(server).completions.create(
        model=MODEL, prompt="Hi", logprobs=2, stop="re", stream=stream
    )
    shown = [part.choices[0].logprobs for part in (answer if stream else [answer])]
    shown = [one for one in shown if one is not None]
    assert "".join(token for one in shown for token in one.tokens) == "Hello the"
    assert [offset for one in shown for offset in one.text_offset] == list(range(9))
    assert shown[0].top_logprobs[0]["H"] == shown[0].token_logprobs[0]
    assert len(shown[0].top_logprobs[0]) == 2


def test_no_log_probabilities_are_shown_unasked(server):
    with server.connect() as client:
        for path, body in (
            ("/v1/chat/completions", chat_body()),
            ("/v1/completions", completion_body()),
        ):
            assert "logprobs" not in client.ask("POST", path, body).json()["choices"][0]
