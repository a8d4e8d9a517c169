"""Haystack's Agent over its chat generator, whole and streamed."""

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from tools import BASE_URL, MODEL, QUESTION, report, weather

generator = OpenAIChatGenerator(
    api_key=Secret.from_token("unused"), model=MODEL, api_base_url=BASE_URL, max_retries=0
)
for name, callback in ("agent", None), ("agent stream", lambda _chunk: None):
    agent = Agent(
        chat_generator=generator,
        tools=[create_tool_from_function(weather)],
        streaming_callback=callback,
    )
    report(name, agent.run(messages=[ChatMessage.from_user(QUESTION)])["messages"][-1].text)
