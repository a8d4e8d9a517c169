"""instructor's MD_JSON mode, which asks for a fenced JSON block in words alone.

Neither the mock nor so small a model need answer with such a block. What is checked is the
exchange: the messages that instructor made, and the text that it was then given to read.
"""

import instructor
import openai
from instructor.core import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel
from report import BASE_URL, MAX_TOKENS, MESSAGES, MODEL, report


class Capital(BaseModel):
    city: str


sent, received = [], []
with openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0) as plain:
    client = instructor.from_openai(plain, mode=instructor.Mode.MD_JSON)
    client.on("completion:kwargs", lambda *_, **request: sent.append(request))
    client.on("completion:response", received.append)
    try:
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            response_model=Capital,
            temperature=0,
            max_tokens=MAX_TOKENS,
            max_retries=0,
        )
    except (IncompleteOutputException, InstructorRetryException):
        assert received  # the answer was read, and held no JSON
report("md_json", received[0].choices[0].message.content, {"messages": sent[0]["messages"]})
