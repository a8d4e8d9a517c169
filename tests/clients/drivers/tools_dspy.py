"""DSPy: a call of a tool, typed fields as JSON, and a program that streams."""

import asyncio

import dspy
from tools import BASE_URL, MODEL, QUESTION, report, weather


class Model(dspy.LM):
    """DSPy looks in a list of hosted models what a model can; of others a program says it."""

    supports_function_calling = True


class Ask(dspy.Signature):
    """Tell how warm it is."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    outputs: dspy.ToolCalls = dspy.OutputField()


class Degrees(dspy.Signature):
    """Tell how warm it is."""

    question: str = dspy.InputField()
    city: str = dspy.OutputField()
    degrees: int = dspy.OutputField()


def told(found):
    return f"It is {found.degrees} C in {found.city}."


async def streamed():
    """What a streaming program ends with."""
    found = None
    async for part in dspy.streamify(dspy.Predict(Degrees))(question=QUESTION):
        if isinstance(part, dspy.Prediction):
            found = part
    return told(found)


dspy.configure(
    lm=Model(f"openai/{MODEL}", api_base=BASE_URL, api_key="unused", cache=False, num_retries=0),
    adapter=dspy.JSONAdapter(use_native_function_calling=True),
)
tool = dspy.Tool(weather)
call = dspy.Predict(Ask)(question=QUESTION, tools=[tool]).outputs.tool_calls[0]
report("tool", f"It is {tool(**call.args)} in {call.args['city']}.")
report("data", told(dspy.Predict(Degrees)(question=QUESTION)))
report("data stream", asyncio.run(streamed()))
