"""LangChain's OpenAI package: invoke, stream with usage, batch, and its completion client."""

from langchain_openai import ChatOpenAI, OpenAI
from report import BASE_URL, CHAT_REQUEST, COMPLETION_REQUEST, MAX_TOKENS, MODEL, QUESTION, report

OPTIONS = {
    "base_url": BASE_URL,
    "api_key": "unused",
    "model": MODEL,
    "temperature": 0,
    "max_tokens": MAX_TOKENS,
    "max_retries": 0,
}

model = ChatOpenAI(**OPTIONS, stream_usage=True)
report("invoke", model.invoke(QUESTION).content, CHAT_REQUEST)
chunks = list(model.stream(QUESTION))
assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0
report("stream", "".join(chunk.content for chunk in chunks), CHAT_REQUEST)
first, second = model.batch([QUESTION, QUESTION])
assert first.content == second.content
report("batch", first.content, CHAT_REQUEST)
effort = ChatOpenAI(**OPTIONS, reasoning_effort="low", verbosity="low", store=True)
report("reasoning", effort.invoke(QUESTION).content, CHAT_REQUEST)
report("completion", OpenAI(**OPTIONS).invoke(QUESTION), COMPLETION_REQUEST)
