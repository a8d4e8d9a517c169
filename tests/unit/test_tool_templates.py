"""Published templates with tools: which family each writes, and that its calls read back."""

import json
from pathlib import Path

import pytest

from marlin.errors import RequestError
from marlin.text.chat_template import ChatTemplate
from marlin.text.conversation import Conversation, Prompter

TEMPLATES = Path(__file__).parent.parent / "data" / "chat_templates"
FAMILIES = {
    "GLM-4.7-Flash": "glm",
    "Kimi-K2-Instruct": None,  # its calls append to a list, which templates may not
    "LFM2.5-Instruct": "lfm2 listed",
    "MiniMax-M2": "minimax",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "NVIDIA-Nemotron-Nano-v2": "nemotron",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen_coder",
    "Qwen3.5-4B": "qwen_coder",
    "google-gemma-4-31B-it": "gemma",
    "ibm-granite-granite-4.0": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama",
    "meta-llama-Llama-3.2-3B-Instruct": "llama",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral array",
    "openai-gpt-oss-120b": "harmony",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
    # The tools are not in their prompts.
    "HuggingFaceTB-SmolLM3-3B": None,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": None,
    "deepseek-ai-DeepSeek-V3.1": None,
    "google-gemma-2-2b-it": None,
    "microsoft-Phi-3.5-mini-instruct": None,
    # Formats that are not known here.
    "CohereForAI-c4ai-command-r-plus-tool_use": None,
    "fireworks-ai-llama-3-firefunction-v2": None,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where"},
                "days": {"type": "integer", "description": "how many"},
                "opt": {"type": "object", "description": "more"},
            },
            "required": ["city"],
        },
    },
}
ARGUMENTS = {"city": 'Rome "x"\né', "days": 3, "opt": {"a": [1, True, None]}}
USER = {"role": "user", "content": "THE QUESTION"}
with_tools = pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family])


def called(*ids):
    function = {"name": "weather", "arguments": ARGUMENTS}
    calls = [{"id": id, "type": "function", "function": function} for id in ids]
    results = [
        {"role": "tool", "name": "weather", "tool_call_id": id, "content": f"RESULT {id}"}
        for id in ids
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}, results


def prompter(name):
    source = (TEMPLATES / f"{name}.jinja").read_text()
    return Prompter(ChatTemplate(source), {"bos_token": "<s>", "eos_token": "</s>"})


def test_every_template_here_is_in_the_table():
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_of_a_template_is_what_it_writes(name):
    family = prompter(name).form.family
    assert (family and family.name) == FAMILIES[name]


@with_tools
def test_a_call_that_a_template_writes_reads_back(name):
    made = prompter(name)
    answer, results = called("call_1")
    asked = Conversation([USER], tools=[TOOL])
    begun = made.prompt(asked)
    whole = made.prompt(Conversation([USER, answer, *results], tools=[TOOL]))
    assert "weather" in begun
    written = whole[whole.index("THE QUESTION") : whole.rindex("RESULT call_1")]
    # An answer begins where the prompt of one differs, but not within a mark.
    before = begun[begun.index("THE QUESTION") :]
    pairs = enumerate(zip(before, written, strict=False))
    own = next((at for at, (ours, theirs) in pairs if ours != theirs), len(before))
    mark = written.rfind("<", own - 15, own)
    reader = made.new_reader(asked, "")()
    parts = reader.push(written[own if mark < 0 else mark :])
    assert [part.text for part in parts if part.kind == "call"] == ["weather"]
    arguments = "".join(part.text for part in parts if part.kind == "arguments")
    assert json.loads(arguments) == ARGUMENTS
    assert parts[-1].kind in ("called", "content") and reader.has_called


# Llama's template takes one call a message.
@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f not in (None, "llama")])
def test_results_stand_in_the_order_of_their_calls(name):
    answer, results = called("call_1", "call_2")
    conversation = Conversation([USER, answer, *reversed(results)], tools=[TOOL])
    text = prompter(name).prompt(conversation)
    assert text.index("RESULT call_1") < text.index("RESULT call_2")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family])
def test_tools_are_refused_by_a_template_that_has_none(name):
    made = prompter(name)
    with pytest.raises(RequestError) as caught:
        made.prompt(Conversation([USER], tools=[TOOL]))
    assert caught.value.param == "tools"


def test_a_template_for_tools_is_used_where_there_are_some():
    tool_template = ChatTemplate((TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text())
    made = Prompter(ChatTemplate("{{ messages[-1].content }}"), {}, tool_template)
    assert made.form.family.name == "hermes"
    assert made.prompt(Conversation([USER])) == "THE QUESTION"
    answer, results = called("call_1")
    assert "<tools>" in made.prompt(Conversation([USER], tools=[TOOL]))
    assert "<tool_response>" in made.prompt(Conversation([USER, answer, *results]))


@pytest.mark.parametrize(
    ("name", "thinks"), [("Qwen3.5-4B", True), ("Qwen-Qwen3-0.6B", False), ("MiniMax-M2", True)]
)
def test_whether_an_answer_begins_in_a_thought_is_told_by_the_prompt(name, thinks):
    made = prompter(name)
    asked = Conversation([USER], variables={"enable_thinking": True})
    reader = made.new_reader(asked, made.prompt(asked))()
    assert reader.thinking is thinks
    going_on = Conversation([USER, {"role": "assistant", "content": "<think>\nHm"}], True)
    assert made.new_reader(going_on, made.prompt(going_on))().thinking is True
