"""The official Python SDK: sync, async, both endpoints, whole and streamed."""

import asyncio

import openai
from report import (
    BASE_URL,
    CHAT_REQUEST,
    COMPLETION_REQUEST,
    MAX_TOKENS,
    MESSAGES,
    MODEL,
    QUESTION,
    report,
)

OPTIONS = {"model": MODEL, "temperature": 0, "max_tokens": MAX_TOKENS}


async def async_stream():
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="unused", max_retries=0) as client:
        request = {**OPTIONS, **CHAT_REQUEST, "stream_options": {"include_usage": True}}
        chunks = [
            chunk async for chunk in await client.chat.completions.create(stream=True, **request)
        ]
    assert chunks[-1].usage.completion_tokens > 0 and chunks[-1].choices == []
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])


with openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0) as client:
    (model,) = client.models.list()
    assert model.id == MODEL and model.max_model_len > MAX_TOKENS
    chat, completions = client.chat.completions, client.completions
    answer = chat.create(**OPTIONS, **CHAT_REQUEST)
    report("chat", answer.choices[0].message.content, CHAT_REQUEST)
    chunks = chat.create(stream=True, **OPTIONS, **CHAT_REQUEST)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    report("chat stream", text, CHAT_REQUEST)
    report("async stream", asyncio.run(async_stream()), CHAT_REQUEST)
    settled = {"store": True, "verbosity": "low", "reasoning_effort": "low", "stop": []}
    others = chat.create(**OPTIONS, **CHAT_REQUEST, **settled)
    report("defaults of others", others.choices[0].message.content, CHAT_REQUEST)
    # The answer's own object goes back, with whatever the client put into it.
    history = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": "Why?"}]
    text = chat.create(**OPTIONS, messages=history).choices[0].message.content
    plain = {"role": "assistant", "content": answer.choices[0].message.content}
    report("history", text, {"messages": [*MESSAGES, plain, history[-1]]})
    begun = {"messages": [*MESSAGES, {"role": "assistant", "content": "It is"}]}
    report("continued", chat.create(**OPTIONS, **begun).choices[0].message.content, begun)
    answer = completions.create(**OPTIONS, **COMPLETION_REQUEST)
    report("completion", answer.choices[0].text, COMPLETION_REQUEST)
    chunks = completions.create(stream=True, **OPTIONS, **COMPLETION_REQUEST)
    text = "".join(chunk.choices[0].text for chunk in chunks)
    report("completion stream", text, COMPLETION_REQUEST)
    echoed = completions.create(**OPTIONS, **COMPLETION_REQUEST, echo=True).choices[0].text
    assert echoed.startswith(QUESTION)
    report("echo", echoed.removeprefix(QUESTION), COMPLETION_REQUEST)
