"""What SDK users expect beyond the serving document's own tables, from outside.

As test_openai_server.py: the mock model, or the demo model with METAL_MARLIN_MOCK_MODEL=0.
"""

import math

import pytest
from contract import CHAT, COMPLETIONS, MOCK, MODEL, chat, completion, content_of


def test_n_gives_as_many_choices_that_count_together(served):
    answer = served.post(CHAT, chat(n=3, temperature=1.5, seed=1, max_tokens=8, ignore_eos=True))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1
    assert answer["usage"]["completion_tokens"] == 24


def test_a_list_of_prompts_gets_a_choice_for_each(served):
    prompts = ["The quick brown fox", "The lazy dog"]
    answer = served.post(COMPLETIONS, completion(prompt=prompts, temperature=0))
    alone = [served.post(COMPLETIONS, completion(prompt=p, temperature=0)) for p in prompts]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [one["choices"][0]["text"] for one in alone]


def test_echo_puts_the_prompt_before_the_text(served):
    answer = served.post(COMPLETIONS, completion(echo=True))
    assert answer["choices"][0]["text"].startswith("The quick brown fox")


def test_chat_logprobs_name_every_token_and_its_likeliest_rivals(sdk):
    answer = sdk.chat.completions.create(**chat(temperature=0, logprobs=True, top_logprobs=2))
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
    spelled = b"".join(bytes(entry.bytes) for entry in entries)
    assert spelled.decode("utf-8", "replace") == answer.choices[0].message.content


def test_completion_logprobs_are_four_lists_of_one_length(sdk):
    answer = sdk.completions.create(**completion(temperature=0, logprobs=3))
    shown = answer.choices[0].logprobs
    lengths = {len(shown.tokens), len(shown.token_logprobs), len(shown.text_offset)}
    assert lengths == {len(shown.top_logprobs)} == {answer.usage.completion_tokens}
    assert all(math.isfinite(value) and value <= 0 for value in shown.token_logprobs)


def test_max_completion_tokens_is_max_tokens(served):
    body = chat(max_completion_tokens=3, ignore_eos=True)
    del body["max_tokens"]
    assert served.post(CHAT, body)["usage"]["completion_tokens"] == 3


def test_a_seeded_answer_has_a_fingerprint_that_stays(served):
    first, second = (served.post(CHAT, chat(seed=5)) for _ in range(2))
    assert first["system_fingerprint"] and content_of(first) == content_of(second)
    assert first["system_fingerprint"] == second["system_fingerprint"]


def test_fields_without_effect_change_no_answer(served):
    plain = served.post(CHAT, chat(temperature=0))
    harmless = chat(temperature=0, user="me", metadata={"a": "b"}, logit_bias={})
    assert content_of(served.post(CHAT, harmless)) == content_of(plain) != ""


def test_a_model_shows_what_it_can_and_how_large_it_is(served):
    card = served.ask("GET", f"/v1/models/{MODEL}")[1]
    for capability in ("chat_completions", "completions", "streaming"):
        assert card["capabilities"][capability] is True
    assert card["config"]["max_context_length"] > 0 and card["config"]["vocab_size"] > 0
    assert card["config"]["format"] == ("mock" if MOCK else "gguf")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 0}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(served, changes, param):
    status, answer = served.ask("POST", CHAT, chat(**changes))
    assert (status, answer["error"]["param"]) == (422, param)
