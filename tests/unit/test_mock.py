"""The mock model keeps the promises of the engine and the tokenizer it stands in for."""

import pytest

from marlin.engine.engine import Engine
from marlin.engine.mock import MockEngine, MockTokenizer, load_mock
from marlin.engine.request import FinishEvent, TokenEvent
from marlin.engine.sampling import SamplingParams
from marlin.errors import ContextLengthError, RequestError, StoppingError


@pytest.fixture
def tokenizer():
    return MockTokenizer()


@pytest.fixture
def engine(tokenizer):
    engine = MockEngine(tokenizer, 64, step_s=0)
    yield engine
    engine.close()


def finish(request):
    """Returns (token ids, finish reason)."""
    token_ids = []
    while isinstance(event := request.events.get(timeout=10), TokenEvent):
        token_ids += event.token_ids
    assert isinstance(event, FinishEvent)
    return token_ids, event.reason


def answer(engine, prompt, **params):
    return finish(engine.submit(prompt, SamplingParams(**params), "r"))


@pytest.mark.parametrize(
    "text", ["", "The quick brown fox", "x  y\n", "\u6df1\u3044 <|im_end|> Caf\u00e9"]
)
def test_every_text_survives_its_tokens(tokenizer, text):
    token_ids = tokenizer.encode(text)
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == text
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids)


def test_words_are_tokens_and_special_tokens_are_hidden(tokenizer):
    assert len(tokenizer.encode("The quick brown fox")) == 4
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>")) == "a"


def test_the_mock_has_every_method_of_the_engine():
    public = {name for name in vars(Engine) if not name.startswith("_")}
    assert public <= {name for name in vars(MockEngine) if not name.startswith("_")}


def test_a_seed_repeats_an_answer_and_another_one_changes_it(engine):
    first = answer(engine, [65, 66], seed=1)
    assert answer(engine, [65, 66], seed=1) == first != answer(engine, [65, 66], seed=2)


def test_temperature_0_depends_on_the_prompt_alone(engine):
    first = answer(engine, [65], temperature=0, seed=1)
    assert answer(engine, [65], temperature=0, seed=2) == first
    assert answer(engine, [66], temperature=0) != first


def test_an_answer_ends_by_itself_at_max_tokens_or_with_the_context(engine):
    assert answer(engine, [65], seed=1, max_tokens=3)[1] == "length"
    token_ids, reason = answer(engine, [65] * 60, seed=1, ignore_eos=True)
    assert (len(token_ids), reason) == (4, "length")
    whole = MockEngine(MockTokenizer(), step_s=0)
    assert answer(whole, [65], seed=1)[1] == "stop"


def test_answers_hold_characters_that_arrive_in_parts(tokenizer):
    engine = MockEngine(tokenizer, step_s=0)
    token_ids, _ = answer(engine, [65], seed=3, ignore_eos=True, max_tokens=200)
    assert any(byte >= 0xC0 for byte in token_ids if byte < 256)
    assert "\ufffd" not in tokenizer.decode(token_ids[:-3])


def test_an_aborted_request_ends_as_aborted(tokenizer):
    engine = MockEngine(tokenizer, 10**9, step_s=0.001)
    request = engine.submit([65], SamplingParams(max_tokens=10**8, ignore_eos=True), "r")
    request.events.get(timeout=10)
    request.abort()
    assert finish(request)[1] == "abort"
    assert engine.stats().num_running == 0


def test_closing_ends_what_runs_and_refuses_what_comes(tokenizer):
    engine = MockEngine(tokenizer, 10**9)
    request = engine.submit([65], SamplingParams(max_tokens=10**8, ignore_eos=True), "r")
    engine.close()
    assert finish(request)[1] == "abort" and not engine.alive
    with pytest.raises(StoppingError):
        engine.submit([65], SamplingParams(), "r")


def test_prompts_are_refused_as_the_engine_refuses_them(engine):
    with pytest.raises(RequestError, match="no tokens"):
        engine.submit([], SamplingParams(), "r")
    with pytest.raises(ContextLengthError, match="64 tokens; the context holds 64"):
        engine.submit([65] * 64, SamplingParams(), "r")


def test_an_answer_that_fails_reaches_whoever_waits_for_it(tokenizer):
    def broken(_request):
        raise ValueError("on purpose")
        yield

    request = MockEngine(tokenizer, answer=broken).submit([65], SamplingParams(), "r")
    event = request.events.get(timeout=10)
    assert event.reason == "error" and str(event.error) == "on purpose"


def test_it_is_named_after_the_last_part_of_a_path_that_need_not_exist(caplog):
    model = load_mock("no/such/folder/qwen3.gguf")
    assert (model.model_id, model.format) == ("qwen3", "mock")
    assert "qwen3 is a mock" in caplog.text
    model.close()
