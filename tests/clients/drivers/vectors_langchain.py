"""LangChain's OpenAIEmbeddings, with texts as they are: token ids would be another model's."""

import json

from langchain_openai import OpenAIEmbeddings
from report import BASE_URL, MODEL, report

TEXTS = ["One text.", "naïve 深い"]
embeddings = OpenAIEmbeddings(
    base_url=BASE_URL, api_key="unused", model=MODEL, check_embedding_ctx_length=False
)
report("documents", json.dumps(embeddings.embed_documents(TEXTS)), {"input": TEXTS})
report("query", json.dumps([embeddings.embed_query(TEXTS[0])]), {"input": TEXTS[0]})
