"""Validation of OpenAI requests: what is taken, what is refused, and under which name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin.errors import MarlinError, RequestError
from marlin.server.api import fields, names, openai_requests
from marlin.server.http.limits import Limits

LIMITS = Limits()


def chat(**changes):
    messages = [{"role": "user", "content": "Hi"}]
    return openai_requests.parse_chat({"model": "m", "messages": messages, **changes}, LIMITS, 512)


def completion(**changes):
    return openai_requests.parse_completion({"model": "m", "prompt": "Hi", **changes}, LIMITS, 512)


REFUSED_BY_BOTH = [
    ({"model": None}, "model"),
    ({"model": 7}, "model"),
    ({"temperature": "0.7"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": 1.0}, "top_k"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"presence_penalty": -2.5}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 2.5}, "repetition_penalty"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 5.0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"stream": 1}, "stream"),
    ({"stream": "true"}, "stream"),
    ({"ignore_eos": "no"}, "ignore_eos"),
    ({"stop": 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", None]}, "stop[1]"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 1025}, "stop"),
    ({"stop": "\ud800"}, "stop"),
    ({"stream_options": []}, "stream_options"),
    ({"stream_options": {"usage": True}}, "stream_options.usage"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 2.0}, "n"),
    ({"n": True}, "n"),
    ({"best_of": 3}, "best_of"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"n": 2, "best_of": "2"}, "best_of"),
    ({"logit_bias": [50]}, "logit_bias"),
    ({"logit_bias": {str(token_id): 1 for token_id in range(1025)}}, "logit_bias"),
    ({"logit_bias": {"50": 100.5}}, "logit_bias.50"),
    ({"logit_bias": {"50": "1"}}, "logit_bias.50"),
    ({"logit_bias": {"50": True}}, "logit_bias.50"),
    ({"logit_bias": {"50": None}}, "logit_bias.50"),
    ({"logit_bias": {"05": 1}}, "logit_bias.05"),
    ({"logit_bias": {"-5": 1}}, "logit_bias.-5"),
    ({"logit_bias": {" 5": 1}}, "logit_bias. 5"),
    ({"logit_bias": {"": 1}}, "logit_bias."),
    ({"logit_bias": {"the": 1}}, "logit_bias.the"),
    ({"logit_bias": {"\u0665": 1}}, "logit_bias.\\u0665"),
    ({"logit_bias": {"1" * 11: 1}}, "logit_bias." + "1" * 11),
    ({"store": "yes"}, "store"),
    ({"user": 5}, "user"),
    ({"metadata": "x"}, "metadata"),
    ({"temprature": 1}, "temprature"),
    ({"\ud800": 1}, "\\ud800"),
]
REFUSED_IN_CHAT = [
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": "true"}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"echo": True}, "echo"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 1}}},
        "response_format.json_schema.schema",
    ),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]"),
    ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
    ({"structured_outputs": {"grammar": ["a"]}}, "structured_outputs.grammar"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "structured_outputs",
    ),
    ({"verbosity": 1}, "verbosity"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"prompt": "Hi"}, "prompt"),
]
REFUSED_IN_COMPLETIONS = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 5]}, "prompt[1]"),
    ({"prompt": ["a", None]}, "prompt[1]"),
    ({"prompt": [[1], [2, -1]]}, "prompt[1][1]"),
    ({"prompt": ["a", "\ud83d"]}, "prompt[1]"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": ["a"] * 5, "n": 13}, "prompt"),
    ({"prompt": [1, -1]}, "prompt[1]"),
    ({"prompt": [1, True]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": "\ud83d"}, "prompt"),
    ({"echo": 1}, "echo"),
    ({"echo": True, "logprobs": 0, "suffix": "b"}, "suffix"),
    ({"echo": True, "logprobs": 6}, "logprobs"),
    ({"echo": True, "max_tokens": -1}, "max_tokens"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"suffix": 1}, "suffix"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"messages": []}, "messages"),
]


def assert_refused(parse, changes, param):
    with pytest.raises(RequestError) as caught:
        parse(**changes)
    assert caught.value.param == param
    assert (caught.value.status, caught.value.type) == (422, "invalid_request_error")
    assert param in caught.value.message
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(("changes", "param"), REFUSED_BY_BOTH)
def test_both_endpoints_refuse_a_bad_field_by_its_name(changes, param):
    assert_refused(chat, changes, param)
    assert_refused(completion, changes, param)


@pytest.mark.parametrize(("changes", "param"), REFUSED_IN_CHAT)
def test_chat_refuses_a_bad_field_by_its_name(changes, param):
    assert_refused(chat, changes, param)


@pytest.mark.parametrize(("changes", "param"), REFUSED_IN_COMPLETIONS)
def test_completions_refuse_a_bad_field_by_its_name(changes, param):
    assert_refused(completion, changes, param)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_of_chat_is_named(name):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    del body[name]
    with pytest.raises(RequestError, match=f"{name} is required") as caught:
        openai_requests.parse_chat(body, LIMITS, 512)
    assert (caught.value.param, caught.value.code) == (name, "missing_required_parameter")


def test_a_missing_prompt_is_named():
    with pytest.raises(RequestError) as caught:
        openai_requests.parse_completion({"model": "m"}, LIMITS, 512)
    assert caught.value.param == "prompt"


def test_a_message_names_value_and_limit():
    with pytest.raises(RequestError, match=r"temperature must be a number from 0 to 2, got 3\.5"):
        chat(temperature=3.5)


def test_null_means_the_default_for_every_optional_field():
    assert chat(**dict.fromkeys(names.CHAT.known - {"model", "messages"})) == chat()
    assert completion(**dict.fromkeys(names.COMPLETION.known - {"model", "prompt"})) == completion()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"temprature": 1}, "did you mean temperature?"),
        ({"max_token": 1}, "did you mean max_tokens?"),
        ({"Stream": True}, "did you mean stream?"),
        ({"stream_options": {"include_usages": True}}, "did you mean include_usage?"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(changes, hint):
    with pytest.raises(RequestError) as caught:
        chat(**changes)
    assert caught.value.message.endswith(f"; {hint}")


@pytest.mark.parametrize("name", ["mirostat", "", "x" * 100_000])
def test_a_name_like_no_other_is_refused_without_a_guess(name):
    with pytest.raises(RequestError) as caught:
        chat(**{name: 1})
    assert "did you mean" not in caught.value.message


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"store": True, "stop": [], "stream_options": {"include_usage": False}},
        {"n": 1, "logit_bias": {}, "best_of": 1, "safety_identifier": "s", "prompt_cache_key": "k"},
    ],
)
def test_harmless_fields_change_nothing(harmless):
    assert chat(**harmless) == chat()
    assert completion(**harmless) == completion()


@pytest.mark.parametrize(
    "plain",
    [
        {"logprobs": False},
        {"top_logprobs": 0},
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"functions": []},
        {"function_call": "none"},
        {"function_call": "auto"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"verbosity": "low"},
    ],
)
def test_chat_takes_a_value_that_asks_for_nothing_of_an_unsupported_field(plain):
    assert chat(**plain) == chat()


@pytest.mark.parametrize("plain", [{"echo": False}, {"suffix": ""}])
def test_completions_take_a_value_that_asks_for_nothing_of_an_unsupported_field(plain):
    assert completion(**plain) == completion()


def test_stream_options_without_a_stream_have_no_effect():
    for useless in ({}, {"include_usage": True}):
        assert chat(stream_options=useless).stream is False


def test_a_stream_without_obfuscation_is_a_plain_one():
    for off in (False, None):
        given = {"include_usage": True, "include_obfuscation": off}
        plain = chat(stream=True, stream_options={"include_usage": True})
        assert chat(stream=True, stream_options=given) == plain


def test_bounds_themselves_are_in_range():
    request = chat(temperature=2, top_p=1, frequency_penalty=-2, presence_penalty=2)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p) == (2.0, 1.0)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (-2.0, 2.0)
    assert chat(top_k=-1).sampling.top_k == 0
    assert 0 < chat(top_p=0).sampling.top_p < 1e-3


def test_max_completion_tokens_is_max_tokens():
    assert chat(max_completion_tokens=7).sampling.max_tokens == 7
    assert chat(max_completion_tokens=7, max_tokens=7).sampling.max_tokens == 7
    assert chat(max_tokens=9).sampling.max_tokens == 9


def test_a_negative_seed_becomes_the_same_unsigned_one_every_time():
    assert chat(seed=-1).sampling.seed == 2**64 - 1
    assert chat(seed=5).sampling.seed == 5
    assert chat().sampling.seed is None


def test_stop_is_a_string_or_an_array():
    assert chat(stop="a").stop == ("a",)
    assert chat(stop=["a", "b\u00e9"]).stop == ("a", "b\u00e9")
    assert chat().stop == ()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", [("Hi", "prompt")]),
        ([1, 2], [([1, 2], "prompt")]),
        (["Hi"], [("Hi", "prompt[0]")]),
        (["Hi", "Ho"], [("Hi", "prompt[0]"), ("Ho", "prompt[1]")]),
        ([[1, 2], [3]], [([1, 2], "prompt[0]"), ([3], "prompt[1]")]),
    ],
)
def test_a_prompt_is_a_text_or_token_ids_or_a_list_of_them(prompt, expected):
    found = completion(prompt=prompt).prompts
    assert [(one.content, one.param) for one in found] == expected


def test_n_and_best_of_name_one_number_of_choices():
    assert chat().num_choices == 1
    assert chat(n=16).num_choices == 16
    assert completion(n=3, best_of=3).num_choices == 3
    assert completion(n=None, best_of=1) == completion()
    assert completion(prompt=["a"] * 4, n=16).num_choices == 16


def test_logprobs_of_chat_are_a_switch_and_a_count():
    def asked(**changes):
        return chat(**changes).sampling.num_logprobs

    assert asked() is None
    assert asked(logprobs=False, top_logprobs=0) is None
    assert asked(logprobs=True) == 0
    assert asked(logprobs=True, top_logprobs=20) == 20


def test_logprobs_of_completions_are_a_count():
    assert completion().sampling.num_logprobs is None
    assert completion(logprobs=0).sampling.num_logprobs == 0
    assert completion(logprobs=5).sampling.num_logprobs == 5


def test_logit_bias_maps_token_ids_to_numbers():
    bias = chat(logit_bias={"0": -100, "42": 0.5}).sampling.logit_bias
    assert bias == ((0, -100.0), (42, 0.5))
    assert chat(logit_bias={}).sampling.logit_bias == ()


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"true", b"1.5"])
def test_json_that_is_no_object_is_422(body):
    with pytest.raises(RequestError, match="must be a JSON object") as caught:
        fields.parse_json(body, 100)
    assert caught.value.status == 422


def test_numbers_are_read_as_json_has_them():
    assert fields.parse_json(b'{"a": 1e-999, "b": -0.5e2}', 100) == {"a": 0.0, "b": -50.0}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
NAMES = sorted(names.CHAT.known | names.COMPLETION.known)
MESSAGES = st.lists(st.fixed_dictionaries({"role": JSON, "content": JSON}), max_size=2)


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON | MESSAGES, max_size=4))
@settings(max_examples=200)
def test_no_object_whatever_gets_past_validation_as_anything_but_a_named_error(body):
    full = {"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt": "a", **body}
    chat, completion = openai_requests.parse_chat, openai_requests.parse_completion
    for parse, other in ((chat, "prompt"), (completion, "messages")):
        try:
            request = parse({k: v for k, v in full.items() if k != other}, LIMITS, 512)
        except RequestError as error:
            assert error.message
        else:
            assert request.sampling.max_tokens >= 1


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,0123456789eE+-.\\untrafls', max_size=60))
@settings(max_examples=500)
def test_no_bytes_whatever_get_past_the_json_reader_as_anything_but_a_known_error(body):
    body = body if isinstance(body, bytes) else body.encode()
    try:
        assert isinstance(fields.parse_json(body, 100), dict)
    except MarlinError as error:
        assert error.status in (400, 422)
