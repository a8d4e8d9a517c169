"""The clients that are run against the server: one row each, and a driver file beside it.

Owns names, versions and what each driver has to show; knows neither pip, npm nor the server.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """A client as its makers publish it.

    Attributes:
        name: of the row and of its environment.
        driver: file in drivers/; run by Node if it ends in .mjs, else by Python.
        checks: what the driver has to report, each once.
        packages: exact versions, from npm for Node and from the Python index else; none for a
            driver that needs no more than the standard library.
        below_python: first version that the packages do not install on, None for no bound.
    """

    name: str
    driver: str
    checks: tuple[str, ...]
    packages: tuple[str, ...] = ()
    below_python: tuple[int, int] | None = None


_LOOP = ("chat", "chat stream")
_AI_SDK = ("responses", "chat", "compatible", "anthropic")
_PYDANTIC = ("chat", "responses", "anthropic")
TOOL_CLIENTS = (
    Client(
        *("openai-python", "tools_openai.py"),
        (*_LOOP, "responses", "responses stream"),
        ("openai==2.54.0",),
    ),
    Client(
        *("anthropic-python", "tools_anthropic.py"),
        ("messages", "messages stream"),
        ("anthropic==2.14.0",),
    ),
    Client(
        *("openai-and-anthropic-node", "tools_openai.mjs"),
        ("runTools", "runTools stream", "responses", "anthropic"),
        ("openai@6.49.0", "@anthropic-ai/sdk@1.14.0"),
    ),
    Client("langchain", "tools_langchain.py", ("invoke", "stream"), ("langchain-openai==1.7.4",)),
    Client("haystack", "tools_haystack.py", ("agent", "agent stream"), ("haystack-ai==3.4.1",)),
    Client(
        *("openai-agents", "tools_agents.py"),
        ("responses", "responses streamed", "chat", "chat streamed"),
        ("openai-agents==0.24.0",),
    ),
    Client(
        *("pydantic-ai", "tools_pydantic_ai.py"),
        tuple(f"{name}{how}" for name in _PYDANTIC for how in ("", " stream", " data")),
        ("pydantic-ai-slim[openai,anthropic]==2.68.0",),
    ),
    Client("smolagents", "tools_smolagents.py", ("agent",), ("smolagents[openai]==1.26.0",)),
    Client(
        *("llama-index", "tools_llama_index.py"),
        ("agent", "agent stream", "data"),
        ("llama-index-llms-openai-like==0.8.1",),
    ),
    Client("dspy", "tools_dspy.py", ("tool", "data", "data stream"), ("dspy==3.4.1",)),
    Client("instructor", "tools_instructor.py", ("tools", "json"), ("instructor==1.17.0",)),
    Client(
        *("ai-sdk", "tools_ai_sdk.mjs"),
        tuple(f"{name}{how}" for name in _AI_SDK for how in ("", " stream")),
        (
            *("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/anthropic@3.0.140", "zod@4.6.7"),
            "@ai-sdk/openai-compatible@2.0.92",
        ),
    ),
)

VECTOR_CLIENTS = (
    Client(
        *("openai-python", "vectors_openai.py"),
        ("base64", "float", "token ids", "dimensions"),
        ("openai==2.54.0",),
    ),
    Client(
        *("langchain", "vectors_langchain.py"), ("documents", "query"), ("langchain-openai==1.7.4",)
    ),
)
# Context and continuation, of which the second's likelihood is asked for.
SCORED_PAIRS = (("The quick brown fox", " jumps over"), ("One two three", " four"), ("A", " b c d"))
SCORING_CLIENT = Client(
    *("lm-eval", "score_lm_eval.py"),
    tuple(after for _, after in SCORED_PAIRS),
    ("lm_eval[api]==0.4.13",),
)

CLIENTS = (
    Client(
        "openai-python",
        "drive_openai.py",
        (
            *("chat", "chat stream", "async stream", "defaults of others", "history", "continued"),
            *("completion", "completion stream", "echo"),
        ),
        ("openai==2.54.0",),
    ),
    Client(
        "openai-node",
        "drive_openai.mjs",
        ("chat", "chat stream", "stream helper", "history", "completion"),
        ("openai@6.49.0",),
    ),
    Client(
        "langchain",
        "drive_langchain.py",
        ("invoke", "stream", "batch", "reasoning", "completion"),
        ("langchain-openai==1.7.4",),
    ),
    Client(
        "litellm",
        "drive_litellm.py",
        ("chat", "chat stream", "hosted_vllm", "reasoning", "completion"),
        ("litellm==1.106.12",),
    ),
    Client("instructor", "drive_instructor.py", ("md_json",), ("instructor==1.17.0",)),
    Client("llm", "drive_llm.py", ("chat", "chat stream"), ("llm==0.32.1",)),
    Client("aider", "drive_aider.py", ("answer",), ("aider-chat==0.86.2",), (3, 13)),
    Client(
        "ai-sdk",
        "drive_ai_sdk.mjs",
        ("generateText", "streamText", "reasoningEffort"),
        ("ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92"),
    ),
    Client("open-webui", "drive_open_webui.py", ("chat", "title", "continue")),
)
