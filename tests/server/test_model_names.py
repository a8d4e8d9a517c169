"""--served-model-name: which names requests may give, and which one answers have."""

import pytest
from clients import MODEL, chat_body


def serve_as(start_server, names):
    return start_server(options={"served_names": names})


def answered_as(server, name):
    """Status of a chat request for a name, and the name that its answer has."""
    with server.connect() as client:
        answer = client.ask("POST", "/v1/chat/completions", chat_body(model=name))
    return answer.status, answer.json().get("model")


def listed(server):
    with server.connect() as client:
        return [card["id"] for card in client.ask("GET", "/v1/models").json()["data"]]


def test_aliases_take_the_place_of_the_models_own_name(start_server):
    server = serve_as(start_server, "gpt-4o,local/a b")
    assert listed(server) == ["gpt-4o", "local/a b"]
    assert answered_as(server, "gpt-4o") == (200, "gpt-4o")
    assert answered_as(server, "local/a b") == (200, "gpt-4o")
    assert answered_as(server, MODEL) == (404, None)
    assert answered_as(server, "GPT-4o") == (404, None)


@pytest.mark.parametrize(("names", "first"), [("*", MODEL), ("big,*", "big"), ("*,big", "big")])
def test_a_star_takes_any_name_and_answers_with_the_first(start_server, names, first):
    server = serve_as(start_server, names)
    assert listed(server) == [first]
    for name in (first, "claude-sonnet", "", "nul\0", "x" * 10_000):
        assert answered_as(server, name) == (200, first)


def test_an_alias_has_a_card_and_other_names_have_none(start_server):
    server = serve_as(start_server, "gpt-4o,*")
    with server.connect() as client:
        assert client.ask("GET", "/v1/models/gpt-4o").json()["max_model_len"] == 64 * 1024
        assert client.ask("GET", "/v1/models/other").status == 404


def test_an_alias_leaves_the_fingerprint_as_it_was(start_server, sdk):
    def fingerprint(server, name):
        answer = sdk(server).completions.create(model=name, prompt="Hi")
        return answer.system_fingerprint

    renamed = serve_as(start_server, "gpt-4o")
    assert fingerprint(renamed, "gpt-4o") == fingerprint(start_server(), MODEL)
