"""What a supervisor answers while it has no worker."""

import json
from types import SimpleNamespace

import pytest

from marlin.config import serve_config
from marlin.errors import FramingError
from marlin.server.api.app import NoWorker

NO_WORKER = NoWorker(serve_config({}, {}))


class Asked(SimpleNamespace):
    """A Handler with a request in hand, and the answer."""

    close_connection = False

    def reply(self, status, content, _content_type, headers=()):
        self.status, self.body, self.sent = status, json.loads(content), dict(headers)


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nowhere"])
def test_whatever_is_asked_is_503_to_be_tried_again_on_another_connection(path):
    asked = Asked(path=path)
    NO_WORKER.handle(asked)
    assert (asked.status, asked.sent, asked.close_connection) == (503, {"Retry-After": "1"}, True)
    assert asked.body["error"]["code"] == "server_overloaded"
    assert "no worker" in asked.body["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/health/"])
def test_health_says_so_in_its_own_words(path):
    asked = Asked(path=path)
    NO_WORKER.handle(asked)
    assert (asked.status, asked.close_connection) == (503, True)
    assert asked.body == {"status": "error", "model_loaded": False}


def test_what_is_no_request_is_told_what_is_wrong_with_it():
    asked = Asked(path=None)
    NO_WORKER.refuse(asked, FramingError("malformed request line"))
    assert (asked.status, asked.close_connection) == (400, True)
    assert asked.body["error"]["message"] == "malformed request line"
