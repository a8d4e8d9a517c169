"""openai-agents: its default model (Responses) and its chat model, run and streamed."""

import asyncio

import openai
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from tools import BASE_URL, MODEL, QUESTION, report, weather

set_tracing_disabled(True)


async def main():
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="unused", max_retries=0) as client:
        for name, kind in ("responses", OpenAIResponsesModel), ("chat", OpenAIChatCompletionsModel):
            model = kind(model=MODEL, openai_client=client)
            agent = Agent(
                name="a", instructions="Help.", model=model, tools=[function_tool(weather)]
            )
            report(name, (await Runner.run(agent, QUESTION)).final_output)
            streamed = Runner.run_streamed(agent, QUESTION)
            async for _event in streamed.stream_events():
                pass
            report(f"{name} streamed", streamed.final_output)


asyncio.run(main())
