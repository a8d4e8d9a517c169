"""The official Python SDK's embeddings: its own base64, floats, and token ids."""

import json

import openai
from report import BASE_URL, MODEL, report

TEXTS = ["One text.", "naïve 深い", ""]
IDS = [[72, 105], [33]]

with openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0) as client:

    def vectors(**request):
        answer = client.embeddings.create(model=MODEL, **request)
        assert answer.usage.prompt_tokens > 0
        return json.dumps([item.embedding for item in answer.data])

    report("base64", vectors(input=TEXTS[:2]), {"input": TEXTS[:2]})
    report("float", vectors(input=TEXTS[0], encoding_format="float"), {"input": TEXTS[0]})
    report("token ids", vectors(input=IDS), {"input": IDS})
    cut = {"input": TEXTS[1], "dimensions": 7, "user": "me"}
    report("dimensions", vectors(**cut), cut)
