"""The route table, and which row a request's method and path lead to."""

from types import SimpleNamespace

import pytest

from marlin.config import serve_config
from marlin.errors import MethodError
from marlin.server.api.routes import HEALTH, ROUTES, Router, capabilities

ROUTER = Router(serve_config({}, {}))


def label(path):
    found = ROUTER.find(path)
    return found and ROUTER.labels[found.endpoint]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/a", "/v1/models/{id}"),
        ("/v1/models/a/b", "/v1/models/{id}"),
        ("/v1/models/{id}", "/v1/models/{id}"),
        ("/health", "/health"),
        ("/health/", None),
        ("/HEALTH", None),
        ("/v1/modelsa", None),
        ("/wp-login.php", None),
        ("/", "/"),
        ("*", None),
    ],
)
def test_a_path_has_the_label_of_its_row_or_none(path, expected):
    assert label(path) == expected


def test_a_thousand_made_up_paths_have_one_label_a_row():
    assert {label(f"/v1/models/{index}") for index in range(1000)} == {"/v1/models/{id}"}
    assert {label(f"/{index}") for index in range(1000)} == {None}


@pytest.mark.parametrize(
    ("method", "path", "row"),
    [
        ("GET", "/health", ("GET", "/health")),
        ("HEAD", "/health", ("GET", "/health")),
        ("GET", "/v1/models/a", ("GET", "/v1/models/{id}")),
        ("POST", "/v1/completions", ("POST", "/v1/completions")),
    ],
)
def test_a_method_leads_to_its_row_and_head_to_that_of_get(method, path, row):
    found = ROUTER.find(path).route(method, path)
    assert (found.method, found.path) == row


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/v1/models/a", "GET, HEAD"), ("HEAD", "/v1/completions", "POST")],
)
def test_another_method_is_refused_with_those_there_are(method, path, allowed):
    with pytest.raises(MethodError) as caught:
        ROUTER.find(path).route(method, path)
    assert caught.value.message == f"{path} takes {allowed}"
    assert caught.value.headers == (("Allow", allowed),)


def test_only_what_tells_nothing_needs_no_key_and_only_probes_and_scrapes_are_quiet():
    assert [route.path for route in ROUTES if not route.needs_key] == ["/", HEALTH.path]
    assert [route.path for route in ROUTES if route.quiet] == [
        *("/health", "/health?deep=1", "/metrics")
    ]
    assert not ROUTER.find("/health").needs_key and ROUTER.find("/metrics").needs_key


def test_without_its_setting_a_path_is_not_there():
    without = Router(serve_config({"enable_metrics": "false"}, {}))
    assert without.find("/metrics") is None and ROUTER.find("/metrics") is not None
    assert without.find("/v1/models") is not None


def test_a_models_capabilities_are_those_of_the_routes():
    no = dict.fromkeys(("has_chat", "generates", "embeds", "ranks", "fills_gaps"), False)
    chat = "chat_completions", "responses", "messages"

    def capable(**can):
        found = capabilities(SimpleNamespace(**no | dict.fromkeys(can, True)))
        assert found.keys() == {*chat, "completions", "embeddings", "rerank", "infill"}
        return {name for name, does in found.items() if does}

    assert capable(has_chat=1, generates=1) == {*chat, "completions"}
    assert capable(generates=1) == {"completions"}
    assert capable(generates=1, fills_gaps=1) == {"completions", "infill"}
    assert capable(embeds=1) == {"embeddings"}
    assert capable(ranks=1) == {"rerank"}


def test_two_methods_of_a_path_share_its_label():
    both = [
        SimpleNamespace(method=method, path="/x", answer=None, setting=None)
        for method in ("GET", "DELETE")
    ]
    router = Router(None, both)
    assert router.labels == ["/x"] and set(router.find("/x").routes) == {"GET", "DELETE"}
