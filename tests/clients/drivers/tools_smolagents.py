"""smolagents' ToolCallingAgent, which insists on a call in every answer."""

from smolagents import OpenAIServerModel, ToolCallingAgent, tool
from tools import BASE_URL, MODEL, QUESTION, report, weather

model = OpenAIServerModel(model_id=MODEL, api_base=BASE_URL, api_key="unused")
agent = ToolCallingAgent(tools=[tool(weather)], model=model, max_steps=4, verbosity_level=0)
report("agent", agent.run(QUESTION))
