"""instructor's default mode: the data of an answer as the arguments of a named tool."""

import instructor
import openai
from pydantic import BaseModel
from tools import BASE_URL, MODEL, QUESTION, report


class Answer(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


plain = openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0)
for name, mode in ("tools", instructor.Mode.TOOLS), ("json", instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(plain, mode=mode)
    asked = [{"role": "user", "content": f"{QUESTION} Answer in JSON."}]
    data = client.create(model=MODEL, messages=asked, response_model=Answer, max_retries=0)
    report(name, f"It is {data.degrees} C in {data.city}.")
