"""Paths, bodies and readings of answers that the contract suite's files share.

METAL_MARLIN_MOCK_MODEL=0 means the demo model, anything else the mock.
"""

import os

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MOCK = os.environ.get("METAL_MARLIN_MOCK_MODEL", "1") != "0"
MODEL = "qwen3_4b_fp4" if MOCK else "SmolLM2-135M-Instruct.Q4_1"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def chat(**changes):
    return {"model": MODEL, "messages": QUESTION, "max_tokens": 24, **changes}


def completion(**changes):
    return {"model": MODEL, "prompt": "The quick brown fox", "max_tokens": 16, **changes}


def content_of(answer):
    return answer["choices"][0]["message"]["content"]


def streamed_text(events):
    chunks = [event for event in events if event != "[DONE]" and event["choices"]]
    if chunks[0]["object"] == "text_completion":
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
