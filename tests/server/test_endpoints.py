"""What each endpoint answers, to the letter where the API shows a shape."""

import pytest
from clients import MODEL, chat_body, completion_body
from fakes import ByteTokenizer, EngineDown, FakeEngine, say
from tokenizers import Tokenizer, models, pre_tokenizers

HELLO_USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 12,
    "total_tokens": 31,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def ask(server, method, path, body=None, headers=()):
    with server.connect() as client:
        return client.ask(method, path, body, headers)


def test_health_says_that_the_model_is_loaded(server):
    answer = ask(server, "GET", "/health")
    assert (answer.status, answer.json()) == (200, {"status": "ok", "model_loaded": True})
    assert answer.headers["content-type"] == "application/json"


def test_health_turns_503_when_the_engine_has_died(server):
    server.engine.alive = False
    answer = ask(server, "GET", "/health")
    assert (answer.status, answer.json()) == (503, {"status": "error", "model_loaded": True})


def test_models_are_listed_and_shown_one_by_one(server):
    card = {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "metal-marlin"}
    card["max_model_len"] = 64 * 1024
    assert ask(server, "GET", "/v1/models").json() == {"object": "list", "data": [card]}
    for path in (f"/v1/models/{MODEL}", "/v1/models/t%69ny"):
        assert ask(server, "GET", path).json().items() >= card.items()


@pytest.mark.parametrize("end", ["/", "//", "/?beta=true", "?", "?a=%zz&%fc=1&"])
def test_a_slash_or_a_query_at_the_end_of_a_path_changes_nothing(server, end):
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/health"):
        assert ask(server, "GET", path + end).json() == ask(server, "GET", path).json()
    with server.connect() as client:  # on one connection: what was asked before is counted
        assert client.ask("POST", "/v1/chat/completions" + end, chat_body()).status == 200
        counts = client.ask("GET", "/metrics", headers=["Accept: text/plain"]).body.decode()
    assert 'endpoint="/v1/chat/completions",status="200"} 1' in counts
    assert 'endpoint="other"' not in counts


@pytest.mark.parametrize("path", ["/", "/?utm=1"])
def test_the_root_tells_a_probe_that_something_is_there(start_server, path):
    locked = start_server(environ={"METAL_MARLIN_API_KEY": "key"})
    assert ask(locked, "HEAD", path).status == 200
    assert "/v1" in ask(locked, "GET", path).json()["message"]
    assert ask(locked, "POST", path, b"{}").status == 405


def test_a_model_tells_what_it_can_and_how_large_it_is(server):
    shown = ask(server, "GET", f"/v1/models/{MODEL}").json()
    capable = {name for name, can in shown["capabilities"].items() if can is True}
    assert {"chat_completions", "completions", "streaming", "logprobs"} <= capable
    assert shown["capabilities"]["tools"] is False
    assert shown["config"] == {
        "format": "mock",
        "max_context_length": 64 * 1024,
        "num_layers": 0,
        "vocab_size": 257,
        "manifest": None,
    }


def test_a_model_without_a_chat_template_says_that_it_cannot_chat(start_server):
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = None
    shown = ask(start_server(tokenizer=tokenizer), "GET", f"/v1/models/{MODEL}").json()
    assert shown["capabilities"]["chat_completions"] is False
    assert shown["capabilities"]["completions"] is True


def test_chat_answers_in_the_documented_shape(server):
    body = ask(server, "POST", "/v1/chat/completions", chat_body()).json()
    assert body.pop("id").startswith("chatcmpl-")
    assert abs(body.pop("created") - 1_700_000_000) < 10**9
    assert body.pop("system_fingerprint").startswith("fp_")
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there!"},
                "finish_reason": "stop",
            }
        ],
        "usage": HELLO_USAGE,
    }


def test_chat_prompts_are_rendered_by_the_models_template(server):
    messages = [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    ask(server, "POST", "/v1/chat/completions", chat_body(messages=messages))
    prompt = bytes(server.engine.requests[0].prompt_token_ids)
    assert prompt == b"system: Be kind\nuser: Hi\nassistant:"


def test_completions_answer_in_the_documented_shape(server):
    body = ask(server, "POST", "/v1/completions", completion_body()).json()
    assert body.pop("id").startswith("cmpl-")
    assert type(body.pop("created")) is int
    assert body.pop("system_fingerprint").startswith("fp_")
    assert body == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": "Hello there!", "finish_reason": "stop"}],
        "usage": HELLO_USAGE | {"prompt_tokens": 2, "total_tokens": 14},
    }


def test_completions_take_a_prompt_of_token_ids(server):
    ask(server, "POST", "/v1/completions", completion_body(prompt=[72, 105]))
    assert server.engine.requests[0].prompt_token_ids == [72, 105]


def test_a_token_id_outside_the_vocabulary_is_refused_by_its_place(server):
    answer = ask(server, "POST", "/v1/completions", completion_body(prompt=[72, 257]))
    assert (answer.status, answer.error["param"]) == (422, "prompt[1]")
    assert "257" in answer.error["message"]


def test_a_text_of_no_tokens_is_refused(server):
    answer = ask(server, "POST", "/v1/completions", completion_body(prompt=""))
    assert (answer.status, answer.error["param"]) == (422, "prompt")


def test_max_tokens_ends_the_answer_with_reason_length(server):
    body = ask(server, "POST", "/v1/completions", completion_body(max_tokens=5)).json()
    assert body["choices"][0]["text"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5


def test_the_operators_default_max_tokens_holds_where_a_request_names_none(start_server):
    server = start_server(options={"max_tokens": "3"})
    body = ask(server, "POST", "/v1/chat/completions", chat_body()).json()
    assert body["choices"][0]["message"]["content"] == "Hel"


def test_an_absurd_max_tokens_reaches_the_engine_as_the_context_length(start_server):
    server = start_server(FakeEngine(max_context_tokens=100))
    answer = ask(server, "POST", "/v1/completions", completion_body(max_tokens=10**30))
    assert answer.status == 200
    assert server.engine.requests[0].params.max_tokens == 100


def test_sampling_parameters_reach_the_engine(server):
    body = chat_body(temperature=0, top_p=0.5, top_k=7, seed=-1, frequency_penalty=-2)
    ask(server, "POST", "/v1/chat/completions", body)
    params = server.engine.requests[0].params
    assert (params.temperature, params.top_p, params.top_k) == (0.0, 0.5, 7)
    assert (params.seed, params.frequency_penalty) == (2**64 - 1, -2.0)


def test_the_defaults_are_temperature_0_7_top_p_0_9_and_512_tokens(server):
    ask(server, "POST", "/v1/chat/completions", chat_body())
    params = server.engine.requests[0].params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.7, 0.9, 512)


def test_stop_strings_cut_the_answer_across_token_boundaries(server):
    body = ask(server, "POST", "/v1/completions", completion_body(stop=["xyz", "o th"])).json()
    assert body["choices"][0] == {"index": 0, "text": "Hell", "finish_reason": "stop"}
    assert body["usage"]["completion_tokens"] == 8


def test_text_beyond_ascii_arrives_whole(start_server):
    server = start_server(FakeEngine(say("na\u00efve \U0001f600".encode())))
    body = ask(server, "POST", "/v1/completions", completion_body()).json()
    assert body["choices"][0]["text"] == "na\u00efve \U0001f600"


def test_a_model_without_a_chat_template_answers_chat_with_400(start_server):
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = None
    server = start_server(tokenizer=tokenizer)
    answer = ask(server, "POST", "/v1/chat/completions", chat_body())
    assert (answer.status, answer.error["code"]) == (400, "no_chat_template")
    assert "/v1/completions" in answer.error["message"]
    assert ask(server, "POST", "/v1/completions", completion_body()).status == 200


def test_a_template_that_cannot_be_parsed_leaves_completions_working(start_server):
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = "{% for %}"
    server = start_server(tokenizer=tokenizer)
    assert ask(server, "POST", "/v1/chat/completions", chat_body()).status == 400
    assert ask(server, "POST", "/v1/completions", completion_body()).status == 200


def test_another_model_is_404_model_not_found_everywhere(server):
    for answer in (
        ask(server, "POST", "/v1/chat/completions", chat_body(model="gpt-9")),
        ask(server, "POST", "/v1/completions", completion_body(model="gpt-9")),
        ask(server, "GET", "/v1/models/gpt-9"),
    ):
        assert answer.status == 404
        assert answer.error == {
            "message": 'model "gpt-9" is not served here',
            "type": "model_not_found",
            "param": "model",
            "code": "model_not_found",
        }


def test_a_prompt_longer_than_the_context_is_400_with_both_numbers(start_server):
    server = start_server(FakeEngine(max_context_tokens=10))
    answer = ask(server, "POST", "/v1/completions", completion_body(prompt="x" * 33))
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert "33" in answer.error["message"] and "10" in answer.error["message"]


def test_a_server_without_a_model_answers_503_model_not_loaded(start_server):
    server = start_server(model=False)
    answer = ask(server, "POST", "/v1/chat/completions", chat_body())
    assert (answer.status, answer.error["type"]) == (503, "model_not_loaded")
    assert answer.error["code"] == "model_not_loaded"
    assert ask(server, "GET", "/health").json() == {"status": "ok", "model_loaded": False}
    assert ask(server, "GET", "/v1/models").json()["data"] == []
    assert ask(server, "GET", f"/v1/models/{MODEL}").status == 404


@pytest.mark.parametrize("path", ["/v1", "/v1/chat", "/healthz", "//v1/models", "/../health"])
def test_an_unknown_path_is_404_in_json(server, path):
    answer = ask(server, "GET", path)
    assert answer.status == 404
    assert set(answer.error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("DELETE", "/health", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("BREW", "/v1/models/tiny", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_ones(server, method, path, allowed):
    answer = ask(server, method, path, b"" if method == "PUT" else None)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.error["code"] == "method_not_allowed"


def test_head_has_the_fields_of_get_and_no_content(server):
    with server.connect() as client:
        got = client.ask("GET", "/v1/models")
        head = client.ask("HEAD", "/v1/models")
        assert head.status == 200
        assert head.headers["content-length"] == got.headers["content-length"]
        assert client.ask("GET", "/health").status == 200


def test_a_bug_in_the_engine_is_500_and_tells_nothing_of_the_inside(start_server):
    def script(_request):
        raise EngineDown("secret detail")
        yield

    server = start_server(FakeEngine(script))
    answer = ask(server, "POST", "/v1/chat/completions", chat_body())
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert b"secret" not in answer.body
    assert ask(server, "GET", "/health").status == 200


def test_metrics_count_requests_and_tokens(server):
    before = server.metrics()
    ask(server, "POST", "/v1/completions", completion_body())
    ask(server, "POST", "/v1/chat/completions", chat_body(max_tokens=3))
    ask(server, "POST", "/v1/chat/completions", chat_body(temperature=9))
    server.wait_until_idle()
    after = server.metrics()
    assert set(after) == {
        "requests_total",
        "requests_active",
        "tokens_generated_total",
        "avg_tokens_per_second",
        "memory_usage_mb",
        "gpu_memory_usage_mb",
    }
    assert (before["requests_total"], after["requests_total"]) == (0, 3)
    assert after["requests_active"] == 0
    assert after["tokens_generated_total"] == 15
    assert after["avg_tokens_per_second"] > 0
    assert 5 < after["memory_usage_mb"] < 2000


def test_a_request_id_is_echoed_when_sane_and_made_up_otherwise(server):
    def request_id(value):
        answer = ask(server, "GET", "/health", None, [f"X-Request-ID: {value}"])
        return answer.headers["x-request-id"]

    assert request_id("abc-1.2:3_4") == "abc-1.2:3_4"
    assert request_id("a b").startswith("req-")
    assert request_id("x" * 129).startswith("req-")


def test_no_header_names_the_implementation(server):
    for path in ("/health", "/nowhere"):
        assert "python" not in str(ask(server, "GET", path).headers).lower()


def test_a_panic_of_the_tokenizers_library_is_an_internal_error_with_an_answer(start_server):
    class Panicking(ByteTokenizer):
        def encode(self, text, *, add_special_tokens=True):
            backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
            backend.pre_tokenizer = pre_tokenizers.FixedLength(0)
            return backend.encode(text).ids

    server = start_server(tokenizer=Panicking())
    answer = ask(server, "POST", "/v1/chat/completions", chat_body())
    assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
    server.wait_until_idle()
    assert ask(server, "GET", "/health").status == 200
