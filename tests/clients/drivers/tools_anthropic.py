"""The official Anthropic SDK for Python: a tool loop, whole and streamed, and counting."""

import anthropic
from tools import DESCRIPTION, MODEL, QUESTION, ROOT_URL, SCHEMA, report, weather

TOOLS = [{"name": "weather", "description": DESCRIPTION, "input_schema": SCHEMA}]
OPTIONS = {"model": MODEL, "max_tokens": 1000, "tools": TOOLS, "system": "Help."}


def loop(ask):
    messages = [{"role": "user", "content": QUESTION}]
    answer = ask(messages)
    assert answer.stop_reason == "tool_use"
    assert [block.type for block in answer.content] == ["thinking", "tool_use"]
    call = answer.content[-1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": weather(**call.input)}
    messages += [{"role": "assistant", "content": answer.content}]
    final = ask([*messages, {"role": "user", "content": [result]}])
    assert final.stop_reason == "end_turn"
    return final.content[-1].text


def whole(messages):
    return client.messages.create(messages=messages, **OPTIONS)


def streamed(messages):
    with client.messages.stream(messages=messages, **OPTIONS) as stream:
        return stream.get_final_message()


with anthropic.Anthropic(base_url=ROOT_URL, api_key="unused", max_retries=0) as client:
    report("messages", loop(whole))
    report("messages stream", loop(streamed))
    asked = [{"role": "user", "content": QUESTION}]
    counted = client.messages.count_tokens(model=MODEL, messages=asked, system="Help.", tools=TOOLS)
    assert counted.input_tokens == whole(asked).usage.input_tokens > 100
    try:
        client.messages.create(model="other", max_tokens=5, messages=asked)
    except anthropic.NotFoundError as error:
        assert "other" in error.body["error"]["message"]
