"""Ollama's read-only endpoints: what editors ask before they talk to /v1."""

import re

import pytest
from clients import MODEL
from fakes import FakeEngine
from scripted import Qwen

from marlin.server.api.ollama import VERSION


def ask(server, method, path, body=None, headers=()):
    with server.connect() as client:
        return client.ask(method, path, body, headers)


def test_the_version_is_one_that_editors_take(server):
    told = ask(server, "GET", "/api/version").json()
    assert told == {"version": VERSION}
    assert tuple(map(int, VERSION.split("."))) >= (0, 6, 4)


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps"])
def test_the_served_names_are_the_models(start_server, path):
    server = start_server(options={"served_names": "one,two"})
    models = ask(server, "GET", path).json()["models"]
    assert [model["name"] for model in models] == ["one", "two"]
    assert models[0]["modified_at"] == "2023-11-14T22:13:20Z"
    assert ask(start_server(model=False), "GET", path).json() == {"models": []}


def test_a_card_has_every_member_that_its_api_has(start_server):
    server = start_server(FakeEngine(max_context_tokens=100), Qwen())
    (card,) = ask(server, "GET", "/api/tags").json()["models"]
    digest, details, modified_at = card.pop("digest"), card.pop("details"), card.pop("modified_at")
    assert card == {"name": MODEL, "model": MODEL, "size": 0}
    assert re.fullmatch("[0-9a-f]{64}", digest)
    family = details["family"]
    assert details == {
        **{"parent_model": "", "format": details["format"], "parameter_size": ""},
        **{"family": family, "families": [family], "quantization_level": ""},
    }
    (running,) = ask(server, "GET", "/api/ps").json()["models"]
    assert running == card | {
        **{"digest": digest, "details": details, "modified_at": modified_at},
        **{"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": 100},
    }
    shown = ask(server, "POST", "/api/show", {"model": MODEL}).json()
    assert (shown["details"], shown["modified_at"]) == (details, modified_at)
    assert {shown[name] for name in ("modelfile", "parameters")} == {""} and "template" in shown
    names = ("context_length", "block_count", "vocab_size")
    facts = {"general.architecture", *(f"{family}.{name}" for name in names)}
    assert shown["model_info"].keys() == facts


@pytest.mark.parametrize("name", [MODEL, f"{MODEL}:latest"])
def test_a_model_shows_its_context_and_what_it_can_do(start_server, name):
    server = start_server(FakeEngine(max_context_tokens=100), Qwen())
    told = ask(server, "POST", "/api/show", {"model": name}).json()
    assert told["capabilities"] == ["completion", "tools"]
    architecture = told["model_info"]["general.architecture"]
    assert told["model_info"][f"{architecture}.context_length"] == 100
    plain = ask(start_server(), "POST", "/api/show", {"name": name}).json()
    assert plain["capabilities"] == ["completion"]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"model": "other"}, 404, "other"),
        ({}, 422, "model is required"),
        ({"model": 1}, 422, "model must be a string"),
        ({"model": MODEL, "modle": 1}, 422, "modle"),
    ],
)
def test_errors_are_a_text_as_that_api_has_them(server, body, status, word):
    answer = ask(server, "POST", "/api/show", body)
    assert answer.status == status
    assert list(answer.json()) == ["error"] and word in answer.json()["error"]


def test_they_are_behind_the_key(start_server):
    server = start_server(environ={"METAL_MARLIN_API_KEY": "secret"})
    for path in ("/api/version", "/api/tags", "/api/ps"):
        answer = ask(server, "GET", path)
        assert answer.status == 401 and list(answer.json()) == ["error"]
        assert ask(server, "GET", path, headers=["x-api-key: secret"]).status == 200
    assert ask(server, "POST", "/api/show", {"model": MODEL}).status == 401


def test_what_would_change_something_is_not_there(server):
    for path in ("/api/pull", "/api/delete", "/api/generate", "/api/chat"):
        assert ask(server, "POST", path, {"model": MODEL}).status == 404
