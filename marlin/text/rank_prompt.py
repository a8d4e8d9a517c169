"""The prompt by which a reranker judges a document: Qwen3-Reranker's, to whose end it answers yes
or no.

Source: its model card. Knows no tokens and no scores.
"""

# What is asked of documents when a request does not say.
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def rank_prompt(query: str, document: str, instruction: str) -> str:
    """The text whose next token is the judgement; it has its own special tokens."""
    asked = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    return f"{_BEFORE}{asked}{_BEHIND}"
