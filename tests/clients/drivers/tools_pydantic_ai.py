"""pydantic-ai with a tool: chat, Responses and Anthropic models; and with data for an answer."""

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from tools import BASE_URL, MODEL, QUESTION, ROOT_URL, report, weather


class Answer(BaseModel):
    city: str
    degrees: int


OPENAI = OpenAIProvider(base_url=BASE_URL, api_key="unused")
MODELS = {
    "chat": OpenAIChatModel(MODEL, provider=OPENAI),
    "responses": OpenAIResponsesModel(MODEL, provider=OPENAI),
    "anthropic": AnthropicModel(
        MODEL, provider=AnthropicProvider(base_url=ROOT_URL, api_key="unused")
    ),
}


async def main():
    for name, model in MODELS.items():
        agent = Agent(model, instructions="Help.", tools=[weather])
        report(name, (await agent.run(QUESTION)).output)
        async with agent.run_stream(QUESTION) as result:
            report(f"{name} stream", await result.get_output())
        data = (await Agent(model, output_type=Answer, tools=[weather]).run(QUESTION)).output
        report(f"{name} data", f"It is {data.degrees} C in {data.city}.")


asyncio.run(main())
