"""Prompts of conversations that templates leave to their caller, against `transformers`."""

from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from marlin.errors import TemplateError
from marlin.text.chat_template import ChatTemplate
from marlin.text.conversation import RESERVED_VARIABLES, Conversation, Prompter

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Mistral's: a system message may only be the first.
STRICT = (
    "{% if messages[0].role == 'system' %}[S]{{ messages[0].content }}{% endif %}"
    "{% for m in messages %}{% if not loop.first and m.role == 'system' %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "{% if m.role != 'system' %}[{{ m.role }}]{{ m.content | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# As DeepSeek's: of several system messages the last one wins.
LOSSY = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content %}{% endif %}{% endfor %}[S]{{ ns.system }}"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# As Qwen's: a new answer begins with thoughts, one of the past has none.
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)


def say(role, content):
    return {"role": role, "content": content}


def prompt(template, *messages, **changes):
    return Prompter(ChatTemplate(template), {}).prompt(Conversation(messages, **changes))


SYSTEMS = say("system", "A"), say("system", "B"), say("user", "Hi")


def test_a_template_that_shows_two_system_messages_gets_two():
    expected = "<|im_start|>system\nA<|im_end|>\n<|im_start|>system\nB<|im_end|>\n"
    assert prompt(CHATML, *SYSTEMS).startswith(expected)


@pytest.mark.parametrize("template", [STRICT, LOSSY])
def test_a_template_that_refuses_or_drops_one_of_two_gets_them_as_one(template):
    assert prompt(template, *SYSTEMS) == "[S]A\n\nB[user]Hi[assistant]"
    assert prompt(template, *SYSTEMS[1:]) == "[S]B[user]Hi[assistant]"


def test_a_later_system_message_that_the_template_refuses_is_the_users_reminder():
    text = prompt(STRICT, say("user", "Hi"), say("system", "A"), say("user", "Go"))
    reminder = "<system-reminder>\nA\n</system-reminder>"
    assert text == f"[user]Hi\n\n{reminder}\n\nGo[assistant]"
    assert prompt(CHATML, say("user", "Hi"), say("system", "A")).count("<|im_start|>system") == 1


def test_what_the_template_refuses_in_every_shape_is_refused_in_its_words():
    with pytest.raises(TemplateError, match="never"):
        prompt("{{ raise_exception('never') }}", say("user", "Hi"), say("user", "Ho"))


ENDINGS = ["The answer", "The answer is ", " led and trailed \n", "<|im_end|>", "a\uf8ffb", "end"]


@pytest.mark.parametrize("text", ENDINGS)
@pytest.mark.parametrize("template", [CHATML, THINKING])
def test_an_answer_goes_on_where_transformers_would_let_it(template, text):
    messages = say("user", f"Say {text}"), say("assistant", text)
    (theirs,), _ = render_jinja_template(
        [list(messages)], chat_template=template, continue_final_message=True
    )
    ours = prompt(template, *messages, continues=True)
    assert ours.endswith(text)
    # Where a text is also a part of what closes its turn, theirs finds that instead.
    if text not in ("<|im_end|>", "end"):
        assert ours.rstrip() == theirs.rstrip()


def test_an_answer_of_a_template_that_trims_keeps_its_own_last_blank():
    messages = say("user", "Hi"), say("assistant", " It is ")
    assert prompt(STRICT, *messages, continues=True) == "[user]Hi[assistant]It is "


def test_an_empty_answer_is_continued_from_its_beginning():
    messages = say("user", "Hi"), say("assistant", "")
    assert prompt(THINKING, *messages, continues=True).endswith("<assistant><think></think>")


@pytest.mark.parametrize(
    "end", ["{{ m.content | length }}", "{{ raise_exception('an answer at the end') }}"]
)
def test_a_template_without_such_an_end_gets_the_answer_after_its_own_opening(end):
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + end + "{% else %}"
        "[{{ m.content }}]{% endif %}{% endfor %}{% if add_generation_prompt %}->{% endif %}"
    )
    messages = say("user", "Hi"), say("assistant", "It is")
    assert prompt(template, *messages, continues=True) == "[Hi]->It is"


def test_a_template_is_given_the_names_that_it_expects():
    template = ChatTemplate(
        "{{ bos_token }}{{ messages[0].role }}|{{ tools }}|{{ documents }}|"
        "{{ add_generation_prompt }}|{{ enable_thinking }}|{{ eos_token }}"
    )
    asked = Conversation([say("user", "Hi")], variables={"enable_thinking": False, "now": 1})
    assert Prompter(template, TOKENS).prompt(asked) == "<s>user|None|None|True|False|</s>"


def test_what_a_template_calls_and_is_given_is_reserved():
    assert {"messages", "tools", "raise_exception", "range", "bos_token"} <= RESERVED_VARIABLES


PUBLISHED = sorted((Path(__file__).parents[1] / "data" / "chat_templates").glob("*.jinja"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# They read variables that their model's own code sets.
INCOMPLETE = ("CohereForAI", "NousResearch", "fireworks-ai")


def published(refused_systems=()):
    names = (*INCOMPLETE, *refused_systems)
    return [
        pytest.param(path.read_text(), id=path.stem)
        for path in PUBLISHED
        if not path.name.startswith(names)
    ]


@pytest.mark.parametrize("template", published())
def test_published_templates_continue_an_answer_as_with_transformers(template):
    messages = [say("user", "Name a colour."), say("assistant", "The best colour is")]
    (theirs,), _ = render_jinja_template(
        [messages], chat_template=template, continue_final_message=True, **TOKENS
    )
    ours = Prompter(ChatTemplate(template), TOKENS).prompt(Conversation(messages, continues=True))
    assert ours == theirs


@pytest.mark.parametrize("template", published(refused_systems=("google-gemma-2",)))
def test_published_templates_show_each_of_two_system_messages(template):
    messages = [say("system", "Be brief."), say("system", "Be kind."), say("user", "Hi")]
    text = Prompter(ChatTemplate(template), TOKENS).prompt(Conversation(messages))
    assert text.index("Be brief.") < text.index("Be kind.") < text.index("Hi")
