"""What an operator lets one client have: output, choices, and its turn when there is too much."""

import threading
import time

import openai
import pytest
from clients import MODEL, request_bytes
from fakes import FakeEngine

CAPPED = {"max_output_tokens": "4", "max_choices": "3"}


def endless(_request):
    while True:
        yield b"a"


@pytest.fixture
def capped(start_server, sdk):
    return sdk(start_server(FakeEngine(endless), options=CAPPED))


def test_more_output_than_the_cap_is_refused_by_name_and_the_default_is_no_more(capped):
    answer = capped.completions.create(model=MODEL, prompt="a")
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (4, "length")
    assert capped.completions.create(model=MODEL, prompt="a", max_tokens=4).usage.total_tokens == 5
    with pytest.raises(openai.UnprocessableEntityError, match="max_tokens.*from 1 to 4"):
        capped.completions.create(model=MODEL, prompt="a", max_tokens=5)
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(openai.UnprocessableEntityError, match="max_completion_tokens.*1 to 4"):
        capped.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=5)


def test_more_choices_than_the_cap_are_refused_by_name(capped):
    assert len(capped.completions.create(model=MODEL, prompt="a", n=3).choices) == 3
    with pytest.raises(openai.UnprocessableEntityError, match="n must be an integer from 1 to 3"):
        capped.completions.create(model=MODEL, prompt="a", n=4)
    with pytest.raises(openai.UnprocessableEntityError, match="4 choices; a call may have 3"):
        capped.completions.create(model=MODEL, prompt=["a", "b"], n=2)


@pytest.mark.long
def test_30_clients_behind_one_address_all_get_an_answer_from_3_slots(start_server):
    """Those that have had one ask again at once, as those do that never read Retry-After."""

    def slow(_request):
        time.sleep(0.3)
        yield b"a"

    options = {"max_concurrent_requests": "3"}
    server = start_server(FakeEngine(slow), options=options, poll_s=0.02)
    body = b'{"model": "%s", "prompt": "a", "max_tokens": 1}' % MODEL.encode()
    request = request_bytes("POST", "/v1/completions", body)
    served, over = [0] * 30, threading.Event()

    def ask_for_ever(number):
        with server.connect() as client:
            while not over.is_set():
                client.send(request)
                answer = client.read()
                served[number] += answer.status == 200
                if answer.status == 503:
                    over.wait(int(answer.headers["retry-after"]))

    threads = [threading.Thread(target=ask_for_ever, args=(n,), daemon=True) for n in range(30)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while not all(served) and time.monotonic() < end:
        time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join(20)
    assert all(served), f"{served.count(0)} of 30 were starved"
