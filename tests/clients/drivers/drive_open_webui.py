"""The requests of Open WebUI for a connection of type OpenAI, in its shape but without itself.

It lists the models, streams a chat, asks for a title in one piece, and continues an answer. Its
chats carry tools unless an administrator sets "Function Calling" to "Legacy"; these are as with
that setting.
"""

import json
import urllib.request

from report import BASE_URL, CHAT_REQUEST, MAX_TOKENS, MESSAGES, MODEL, report

HEADERS = {
    "Content-Type": "application/json",
    "Authorization": "Bearer unused",
    "X-OpenWebUI-User-Name": "Ada%20L",
    "X-OpenWebUI-Chat-Id": "0b6f2e0a",
}
TITLE = {"messages": [{"role": "user", "content": "### Task:\nGenerate a concise title.\n"}]}


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(BASE_URL + path, data, HEADERS))


with ask("/models") as answer:
    assert [model["id"] for model in json.load(answer)["data"]] == [MODEL]


def stream(messages, **more):
    """The text of a chat as the browser shows it."""
    chat = {
        "stream": True,
        "model": MODEL,
        "messages": messages,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stream_options": {"include_usage": True},
        **more,
    }
    text = ""
    with ask("/chat/completions", chat) as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                    text += choice["delta"].get("content", "")
    return text


settings = {"reasoning_effort": "medium", "min_p": 0.0, "stop": [], "logit_bias": {}, "seed": 1}
report("chat", stream(MESSAGES, **settings), CHAT_REQUEST)
title = {"model": MODEL, **TITLE, "stream": False, "max_tokens": 1000, "temperature": 0}
with ask("/chat/completions", title) as answer:
    text = json.load(answer)["choices"][0]["message"]["content"]
report("title", text, {**TITLE, "max_tokens": 1000})
begun = [*MESSAGES, {"role": "assistant", "content": "It is"}]
text = stream(begun, continue_final_message=True, add_generation_prompt=False)
report("continue", text, {"messages": begun})
