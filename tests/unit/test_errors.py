"""What clients branch on: the status, type and code of each error, and what its answer has more."""

import re

import pytest

from marlin import errors

INVALID, SERVER = "invalid_request_error", "server_error"
ANSWERS = {
    "MarlinError": (500, SERVER, None),
    "InternalError": (500, SERVER, "internal_error"),
    "ConfigError": (500, SERVER, None),
    "TokenizerPoolError": (500, SERVER, None),
    "DeviceError": (500, SERVER, None),
    "NoMemoryError": (500, SERVER, None),
    "KvRangeError": (500, SERVER, "kv_cache_range"),
    "NoDeviceError": (500, SERVER, None),
    "SharedWeightsError": (500, SERVER, None),
    "ModelFileError": (500, SERVER, None),
    "ManifestError": (500, SERVER, None),
    "AuditFileError": (500, SERVER, None),
    "AuditError": (503, SERVER, "audit_unavailable"),
    "TemplateError": (400, INVALID, "template_error"),
    "NoChatTemplateError": (400, INVALID, "no_chat_template"),
    "RequestError": (422, INVALID, None),
    "NotServedError": (400, INVALID, "not_supported_by_model"),
    "MissingFieldError": (422, INVALID, "missing_required_parameter"),
    "MalformedRequestError": (400, INVALID, "invalid_json"),
    "FramingError": (422, INVALID, None),
    "AuthenticationError": (401, "authentication_error", "invalid_api_key"),
    "ForbiddenError": (403, "permission_error", "forbidden"),
    "MediaTypeError": (415, INVALID, "unsupported_media_type"),
    "RateLimitError": (429, "rate_limit_error", "rate_limit_exceeded"),
    "UnknownPathError": (404, INVALID, "not_found"),
    "MethodError": (405, INVALID, "method_not_allowed"),
    "ContextLengthError": (400, INVALID, "context_length_exceeded"),
    "ModelNotFoundError": (404, "model_not_found", "model_not_found"),
    "OverloadedError": (503, "server_overloaded", "server_overloaded"),
    "NoModelError": (503, "model_not_loaded", "model_not_loaded"),
    "TimedOutError": (504, "timeout_error", "timeout"),
    "StoppingError": (503, SERVER, "server_stopping"),
}


def classes():
    found = [errors.MarlinError]
    for cls in found:
        found += cls.__subclasses__()
    return {cls.__name__: cls for cls in found if cls.__module__ == errors.__name__}


def test_every_error_has_its_status_type_and_code():
    assert {name: (cls.status, cls.type, cls.code) for name, cls in classes().items()} == ANSWERS


@pytest.mark.parametrize("status", sorted({answer[0] for answer in ANSWERS.values()}))
def test_the_documentation_says_when_a_status_comes(status, checkout):
    text = (checkout / "docs" / "serving.md").read_text()
    table = text.partition("\n## Errors\n")[2].partition("\n## ")[0]
    assert re.search(rf"^\| (\d+, )*{status}\b", table, re.MULTILINE)


def test_an_error_says_what_it_was_told_and_keeps_the_connection():
    for error in (errors.RequestError("no", param="n"), errors.ForbiddenError("no", param="n")):
        assert (str(error), error.message, error.param) == ("no", "no", "n")
        assert (error.headers, error.close) == ((), False)
    assert errors.MarlinError("no").param is None


@pytest.mark.parametrize(
    ("error", "says", "headers"),
    [
        (errors.AuthenticationError("who?"), "who?", [("WWW-Authenticate", "Bearer")]),
        (errors.RateLimitError("spent", 7), "spent; try again in 7 s", [("Retry-After", "7")]),
        (errors.OverloadedError("full"), "full", [("Retry-After", "1")]),
        (errors.OverloadedError("full", 3), "full", [("Retry-After", "3")]),
        (errors.MethodError("not so", "GET, HEAD"), "not so", [("Allow", "GET, HEAD")]),
    ],
)
def test_an_answer_says_when_or_how_to_ask_again(error, says, headers):
    assert (error.message, list(error.headers)) == (says, headers)
    assert not error.close


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "there is not enough memory"),
        (
            ImportError("libx.so: failed to map segment from shared object"),
            "there is not enough memory to load a library",
        ),
        (
            RuntimeError("can't start new thread"),
            "no thread can be started: a limit (ulimit -u, ulimit -v, pids.max) is reached",
        ),
        (FileNotFoundError(2, "No such file", "a/b"), "a/b: No such file"),
        (PermissionError(13, "Denied", b"\xff"), "\udcff: Denied"),
        (OSError(28, "No space left"), "No space left"),
        (OSError("no number"), None),
        (ImportError("no module"), None),
        (RuntimeError("a bug"), None),
        (ValueError("map segment, start new thread"), None),
    ],
)
def test_what_the_system_refused_is_a_sentence_and_a_bug_is_none(error, says):
    assert errors.said_by_system(error) == says
