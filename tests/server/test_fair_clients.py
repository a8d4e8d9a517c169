"""Two clients of one real server, told apart by their addresses."""

import json
import socket
import sys
import time

import pytest
from clients import CLIENT_TIMEOUT_S, RawClient, request_bytes
from test_demo_model import Served

ADDRESS, OTHER = "127.0.0.1", "127.0.0.2"
PATH = "/v1/completions"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="this system answers on 127.0.0.1 alone"
)


@pytest.fixture(scope="module")
def served(demo_model_path):
    served = Served(demo_model_path)
    yield served
    served.sdk.close()
    served.process.terminate()
    assert served.process.wait(timeout=CLIENT_TIMEOUT_S) == 0


def connect(served, source):
    address = ("127.0.0.1", served.port)
    sock = socket.create_connection(address, CLIENT_TIMEOUT_S, source_address=(source, 0))
    return RawClient(sock)


def ask(served, source, **body):
    """(seconds, text) of a request that another address makes."""
    began = time.monotonic()
    with connect(served, source) as client:
        content = json.dumps({"model": "SmolLM2-135M-Instruct.Q4_1", "temperature": 0, **body})
        client.send(request_bytes("POST", PATH, content.encode()))
        answer = client.read()
    assert answer.status == 200, answer
    return time.monotonic() - began, answer.json()["choices"][0]["text"]


def test_64_choices_of_8000_tokens_delay_another_client_by_its_own_time_and_a_step(served):
    short = {"prompt": "The capital of France is", "max_tokens": 10}
    alone_s, text = ask(served, OTHER, **short)
    prompts = [f"Count to {number}: one, two," for number in range(4)]
    many = {"prompt": prompts, "n": 16, "max_tokens": 8000, "ignore_eos": True}
    with connect(served, ADDRESS) as hog:
        body = {"model": "SmolLM2-135M-Instruct.Q4_1", "stream": True, **many}
        hog.send(request_bytes("POST", PATH, json.dumps(body).encode()))
        time.sleep(2)  # what it asks for takes hours
        taken = [ask(served, OTHER, **short) for _ in range(3)]
    assert [other for _, other in taken] == [text] * 3
    # Seconds more for a machine with other work; the third may wait for its turn, too.
    assert max(seconds for seconds, _ in taken) < 5 * alone_s + 20, (taken, alone_s)
