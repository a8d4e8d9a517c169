"""Requests whose answers are known, a client that asks them, and what becomes of each: right,
refused, lost or wrong.

A request is a function of its number, and its answer one of the request, in any company: text,
finish reasons, log-probabilities and usage of a server without faults are what every other answer
is compared with. Knows no fault.
"""

import http.client
import json
import random
from collections import defaultdict
from dataclasses import dataclass

MODEL = "SmolLM2-135M-Instruct.Q4_1"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# A client that waits this long has found a hang; servers get less for an answer.
ANSWER_S, TIMEOUT_S = 60, 40
# What every client sends, whether or not its server asks for one.
KEY = "chaos-0123456789abcdef0123456789abcdef"
_FIELDS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
RIGHT, REFUSED, LOST, WRONG = "right", "refused", "lost", "wrong"
_NO_ANSWER = f"neither an answer nor an end within {ANSWER_S} s"
_WORDS = "why does the quick brown fox jump over a lazy dog near seven rivers of France".split()


def request(number):
    """(path, body) of a request; of any four in a row one has penalties and one is drawn."""
    chosen = random.Random(number)
    words = " ".join(chosen.choices(_WORDS, k=chosen.randint(3, 24)))
    body = {"model": MODEL, "max_tokens": chosen.randint(8, 16), "temperature": 0}
    body.update(
        (
            {},
            {"temperature": 0.9, "top_p": 0.9, "seed": number},
            {"frequency_penalty": 0.7, "repetition_penalty": 1.1},
            {"stop": [" the"], "n": 2, "temperature": 0.8, "seed": number},
        )[number % 4]
    )
    if number % 3 == 0:
        return COMPLETIONS, {**body, "prompt": words, "logprobs": 2}
    return CHAT, {**body, "messages": [{"role": "user", "content": words}]}


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        kind: RIGHT, REFUSED, LOST or WRONG.
        note: the status that refused it, how it was lost, or what was wrong.
        retry_after: seconds, of a refusal that says so.
    """

    kind: str
    note: str = ""
    retry_after: int | None = None


class Reference:
    """The right answers, by a server without faults, each asked for when it is first needed.

    Args:
        port: of that server.
    """

    def __init__(self, port):
        self._port = port
        self._answers = {}

    def prepare(self, numbers):
        """Have the answers of these requests, so that nobody waits for them later."""
        for number in numbers:
            self.answer(number)

    def answer(self, number):
        if number not in self._answers:
            status, _, content = _send(self._port, *request(number))
            assert status == 200, content
            self._answers[number] = _whole(json.loads(content))
        return self._answers[number]


def ask(port, number, reference, began=lambda: None):
    """Ask one request, every other one as a stream, and judge what comes back.

    Args:
        began: called once the first piece of a streamed answer is there.
    """
    path, body = request(number)
    try:
        if number % 2:
            return _judge_stream(port, path, body, reference.answer(number), began)
        status, headers, content = _send(port, path, body)
    except ConnectionRefusedError:
        return Outcome(REFUSED, "nobody listens")
    except TimeoutError:
        return Outcome(WRONG, _NO_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        return Outcome(LOST, type(error).__name__)
    if status != 200:
        return _refusal(status, headers, content)
    return _compared(_whole(json.loads(content)), reference.answer(number))


def _compared(answer, right):
    if answer == right:
        return Outcome(RIGHT)
    return Outcome(WRONG, f"{answer} is not {right}")


def _refusal(status, headers, content):
    """An error that says what it is; anything else is no answer at all."""
    retry_after = headers.get("Retry-After")
    if content or status != 503:  # a connection that no thread could serve has an empty one
        if not json.loads(content)["error"]["message"]:
            return Outcome(WRONG, f"{status} without a message")
    if status == 503 and retry_after is None and b"server_stopping" not in content:
        return Outcome(WRONG, "503 without Retry-After")
    return Outcome(REFUSED, str(status), None if retry_after is None else int(retry_after))


def _send(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        response = _response(connection, path, body)
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def _response(connection, path, body):
    """As widespread clients do, read what came before the server would read no more."""
    try:
        connection.request("POST", path, json.dumps(body), _FIELDS)
    except BrokenPipeError:
        pass
    return connection.getresponse()


def _whole(answer):
    """What is compared of an answer: no id and no time."""
    choices = [
        (
            choice["message"]["content"] if "message" in choice else choice["text"],
            choice["finish_reason"],
            choice.get("logprobs"),
        )
        for choice in answer["choices"]
    ]
    return choices, {key: answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")}


def _judge_stream(port, path, body, right, began):
    """A stream that breaks off, or ends with an error, has told a beginning of the right text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    texts, reasons, end = defaultdict(str), {}, None
    try:
        response = _response(connection, path, {**body, "stream": True})
        if response.status != 200:
            return _refusal(response.status, response.headers, response.read())
        for line in _lines(response):
            end = end or _read_event(
                line, texts, reasons, began
            )  # [DONE] comes after an error, too
    except ConnectionRefusedError:
        raise
    except TimeoutError:
        return Outcome(WRONG, _NO_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        end = Outcome(LOST, type(error).__name__)
    finally:
        connection.close()
    choices, _ = right
    for index, (text, reason, _) in enumerate(choices):
        told = texts[index]
        if not text.startswith(told) or reasons.get(index, reason) != reason:
            return Outcome(WRONG, f"{told!r}, {reasons} is no beginning of {choices}")
        if end == "[DONE]" and (told != text or index not in reasons):
            return Outcome(WRONG, f"{told!r} was to be {text!r}")
    if end == "[DONE]":
        return Outcome(RIGHT)
    # A stream cut off by its process's death ends within a chunk, never as if it were whole.
    return end or Outcome(WRONG, "a stream ended without a word")


def _lines(response):
    """Whole lines; http.client's own reader of lines takes a broken stream for an ended one."""
    rest = b""
    while piece := response.read1(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _read_event(line, texts, reasons, began):
    """Take in one line; returns "[DONE]" or an Outcome when it is the last."""
    if not line.startswith(b"data: "):
        return None
    data = line[6:].strip()
    if data == b"[DONE]":
        return "[DONE]"
    event = json.loads(data)
    if "error" in event:
        return Outcome(REFUSED, f"in mid-stream: {event['error']['message']}")
    for choice in event["choices"]:
        piece = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        texts[choice["index"]] += piece or ""
        if choice["finish_reason"] is not None:
            reasons[choice["index"]] = choice["finish_reason"]
        began()
    return None
