"""LangChain's ChatOpenAI with a bound tool, invoked and streamed."""

from functools import reduce
from operator import add

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from tools import BASE_URL, MODEL, QUESTION, report, weather


def loop(ask):
    messages = [HumanMessage(QUESTION)]
    answer = ask(messages)
    (call,) = answer.tool_calls
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    return ask([*messages, answer, result]).content


def streamed(messages):
    return reduce(add, bound.stream(messages))


plain = ChatOpenAI(base_url=BASE_URL, api_key="unused", model=MODEL, max_retries=0)
bound = plain.bind_tools([weather])
report("invoke", loop(bound.invoke))
report("stream", loop(streamed))
