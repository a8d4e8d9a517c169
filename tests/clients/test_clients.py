"""Unmodified clients against a real server process; run with `-m clients`. Those that call tools
have a scripted model to talk to.

The server is the contract suite's: the mock, or with METAL_MARLIN_MOCK_MODEL=0 the demo model. A
client that cannot be installed is skipped with the reason; what it would send anywhere but to the
server goes to a closed port.
"""

import json
import os
import subprocess

import client_environments
import numpy as np
import pytest
from client_table import CLIENTS, SCORED_PAIRS, SCORING_CLIENT, TOOL_CLIENTS, VECTOR_CLIENTS
from contract import CHAT, COMPLETIONS, MODEL, QUESTION, content_of
from scripted_model import MODEL as SCRIPTED
from scripted_model import WEATHER, scripted_server
from served import serve_mock

pytestmark = [pytest.mark.clients, pytest.mark.slow]

MAX_TOKENS = 16  # enough to tell two answers apart, and quick on the demo model
PATIENCE_S = 300  # aider takes a minute to start on a busy machine
_CLOSED_PORT = "http://127.0.0.1:9"


def _environ(home, **more):
    """A driver's variables: none of the user's keys and settings, and no way out."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HTTP_PROXY": _CLOSED_PORT,
        "HTTPS_PROXY": _CLOSED_PORT,
        "NO_PROXY": "127.0.0.1",
        **more,
    }


def _reports(client, load_script, home, **settings):
    """What a client's driver reports, installed first where it is not yet."""
    cache = load_script("bin/fetch_model.py").cache_folder(os.environ) / "clients"
    try:
        command = client_environments.driver_command(client, cache)
    except client_environments.Unavailable as reason:
        pytest.skip(f"{client.name}: {reason}")
    ended = subprocess.run(
        command,
        cwd=home,
        env=_environ(home, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # Some clients write to standard output, too.
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"check"')]
    reports = [json.loads(line) for line in lines]
    assert [report["check"] for report in reports] == list(client.checks)
    return reports


def _plain_answer(served, request):
    """The text of a report's request, asked for without any client."""
    body = {"model": MODEL, "temperature": 0, "max_tokens": MAX_TOKENS, **request}
    if "prompt" in request:
        return served.post(COMPLETIONS, body)["choices"][0]["text"]
    return content_of(served.post(CHAT, body))


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_gets_the_same_answer_as_a_plain_request(client, served, load_script, tmp_path):
    reports = _reports(
        *(client, load_script, tmp_path),
        MARLIN_BASE_URL=served.base_url,
        MARLIN_MODEL=MODEL,
        MARLIN_QUESTION=QUESTION[0]["content"],
        MARLIN_MAX_TOKENS=str(MAX_TOKENS),
    )
    for report in reports:
        assert report["text"] == _plain_answer(served, report["request"]), report["check"]


@pytest.mark.parametrize("client", TOOL_CLIENTS, ids=lambda client: client.name)
def test_a_client_calls_a_tool_and_gets_an_answer_of_its_result(client, load_script, tmp_path):
    with scripted_server() as url:
        reports = _reports(
            *(client, load_script, tmp_path), MARLIN_ROOT_URL=url, MARLIN_MODEL=SCRIPTED
        )
    for report in reports:
        assert report["text"] == WEATHER, report["check"]


@pytest.mark.parametrize("client", VECTOR_CLIENTS, ids=lambda client: client.name)
def test_a_client_gets_the_same_vectors_as_a_plain_request(client, load_script, tmp_path):
    """Of a mock's made-up states."""
    with serve_mock("--pooling", "mean") as server:
        reports = _reports(
            *(client, load_script, tmp_path),
            MARLIN_BASE_URL=server.base_url,
            MARLIN_MODEL="mock",
            MARLIN_QUESTION="",
            MARLIN_MAX_TOKENS="1",
        )
        for report in reports:
            answer = server.post("/v1/embeddings", {"model": "mock", **report["request"]})
            plain = [item["embedding"] for item in answer["data"]]
            np.testing.assert_allclose(json.loads(report["text"]), plain, rtol=1e-6, atol=1e-8)


def test_a_measuring_tool_gets_the_likelihoods_that_plain_requests_add_up_to(
    served, load_script, tmp_path
):
    root = served.base_url.removesuffix("/v1")
    reports = _reports(
        *(SCORING_CLIENT, load_script, tmp_path),
        MARLIN_ROOT_URL=root,
        MARLIN_MODEL=MODEL,
        MARLIN_PAIRS=json.dumps(SCORED_PAIRS),
    )
    for report, (before, after) in zip(reports, SCORED_PAIRS, strict=True):
        asked = {"model": MODEL, "echo": True, "logprobs": 1, "max_tokens": 0}
        choice = served.post(COMPLETIONS, {**asked, "prompt": before + after})["choices"][0]
        offsets, scores = choice["logprobs"]["text_offset"], choice["logprobs"]["token_logprobs"]
        own = [score for at, score in zip(offsets, scores, strict=True) if at >= len(before)]
        assert own and report["logprob"] == pytest.approx(sum(own), abs=1e-6), report
