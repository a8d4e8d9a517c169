"""The official Python SDK in tool loops: chat and Responses, whole and streamed."""

import json

import openai
from tools import BASE_URL, DESCRIPTION, MODEL, QUESTION, SCHEMA, report, weather

FUNCTION = {"name": "weather", "description": DESCRIPTION, "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
FLAT = [{"type": "function", **FUNCTION}]


def chat_loop(ask):
    messages = [{"role": "user", "content": QUESTION}]
    message = ask(messages)
    (call,) = message.tool_calls
    result = weather(**json.loads(call.function.arguments))
    answer = {"role": "tool", "tool_call_id": call.id, "content": result}
    return ask([*messages, message, answer])


def whole(messages):
    choice = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS).choices[0]
    assert choice.finish_reason == ("tool_calls" if choice.message.tool_calls else "stop")
    assert choice.message.reasoning_content == "Let me see."
    return choice.message


def streamed(messages):
    options = {"model": MODEL, "messages": messages, "tools": TOOLS}
    with client.chat.completions.stream(**options) as stream:
        return stream.get_final_completion().choices[0].message


def responses_loop(ask):
    items = [{"role": "user", "content": QUESTION}]
    output = ask(items).output
    call = output[-1]
    result = weather(**json.loads(call.arguments))
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": result}
    return ask([*items, *output, answer]).output_text


def response(items):
    return client.responses.create(model=MODEL, input=items, tools=FLAT)


def response_stream(items):
    with client.responses.stream(model=MODEL, input=items, tools=FLAT) as stream:
        return stream.get_final_response()


with openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0) as client:
    report("chat", chat_loop(whole).content)
    report("chat stream", chat_loop(streamed).content)
    report("responses", responses_loop(response))
    report("responses stream", responses_loop(response_stream))
