"""LiteLLM as a library: its openai and hosted_vllm providers, chat and completions."""

import os

# Read when the package is imported; without it that fetches a table of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from report import (
    BASE_URL,
    CHAT_REQUEST,
    COMPLETION_REQUEST,
    MAX_TOKENS,
    MODEL,
    QUESTION,
    report,
)

OPTIONS = {
    "api_base": BASE_URL,
    "api_key": "unused",
    "temperature": 0,
    "max_tokens": MAX_TOKENS,
    "num_retries": 0,
}

answer = litellm.completion(model=f"openai/{MODEL}", **CHAT_REQUEST, **OPTIONS)
report("chat", answer.choices[0].message.content, CHAT_REQUEST)
chunks = litellm.completion(model=f"openai/{MODEL}", stream=True, **CHAT_REQUEST, **OPTIONS)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
report("chat stream", text, CHAT_REQUEST)
answer = litellm.completion(model=f"hosted_vllm/{MODEL}", **CHAT_REQUEST, **OPTIONS)
report("hosted_vllm", answer.choices[0].message.content, CHAT_REQUEST)
answer = litellm.completion(
    model=f"hosted_vllm/{MODEL}",
    reasoning_effort="low",
    extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    **CHAT_REQUEST,
    **OPTIONS,
)
report("reasoning", answer.choices[0].message.content, CHAT_REQUEST)
answer = litellm.text_completion(
    model=f"text-completion-openai/{MODEL}", prompt=QUESTION, **OPTIONS
)
report("completion", answer.choices[0].text, COMPLETION_REQUEST)
