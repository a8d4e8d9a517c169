"""LlamaIndex: its function-calling agent, and a structured answer, by its client for servers like
OpenAI's."""

import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from tools import BASE_URL, MODEL, QUESTION, report, weather


class Degrees(BaseModel):
    """How warm it is in a city."""

    city: str
    degrees: int


llm = OpenAILike(
    model=MODEL,
    api_base=BASE_URL,
    api_key="unused",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=32_000,
    max_retries=0,
)


async def loops():
    """In one event loop, which the client's connections belong to."""
    tool = FunctionTool.from_defaults(weather)
    for name, streaming in (("agent", False), ("agent stream", True)):
        agent = FunctionAgent(tools=[tool], llm=llm, streaming=streaming)
        report(name, str(await agent.run(QUESTION)))


asyncio.run(loops())
found = llm.as_structured_llm(Degrees).complete(QUESTION).raw
report("data", f"It is {found.degrees} C in {found.city}.")
