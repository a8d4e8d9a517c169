"""A conversation as the prompt that a model's chat template makes of it.

Owns what templates leave to their caller: system messages that follow one another, and a last
answer that the model is to continue. Knows neither the API nor tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marlin.errors import TemplateError
from marlin.text.chat_template import ChatTemplate
from marlin.text.template.globals import make_globals

Message = Mapping[str, str]

# Names that only the server gives to a template, and the functions that a template can call.
RESERVED_VARIABLES = frozenset(
    (
        *("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"),
        *make_globals(now=None),
    )
)
# Stands where an answer goes on while its conversation is rendered. What a client writes before it
# does not matter, for the last one is ours; of private use, so no template gives it a meaning.
_HERE = "\uf8ff"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a prompt is made of.

    Attributes:
        messages: each with role, content and what else the template may read.
        continues: the last message is the beginning of the answer; else an answer of its own is
            asked for.
        variables: further variables of the template, none of RESERVED_VARIABLES.
    """

    messages: Sequence[Message]
    continues: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


class Prompter:
    """Makes prompts by one template; any number of threads may use it at once.

    Args:
        template: ChatTemplate.
        tokens: bos_token and eos_token, where the model has them.
    """

    def __init__(self, template: ChatTemplate, tokens: Mapping[str, str]):
        self._template = template
        self._tokens = tokens
        self._keeps_systems = self._shows_both_of_two_systems()

    def prompt(self, conversation: Conversation) -> str:
        """The text of a prompt.

        Raises:
            TemplateError: the template refuses the conversation, or broke a limit.
        """
        messages, variables = conversation.messages, conversation.variables
        if not self._keeps_systems:
            messages = _with_systems_joined(messages)
        if conversation.continues:
            return self._continued(messages, variables)
        return self._render(messages, variables)

    def _render(self, messages, variables, *, add_generation_prompt=True):
        own = {"messages": messages, "tools": None, "documents": None}
        own["add_generation_prompt"] = add_generation_prompt
        # A token that the model lacks is undefined.
        return self._template.render({**variables, **self._tokens, **own})

    def _continued(self, messages, variables):
        """As `transformers` cuts a prompt off where its last message ends."""
        *before, last = messages
        marked = [*before, {**last, "content": last["content"] + _HERE}]
        try:
            rendered = self._render(marked, variables, add_generation_prompt=False)
            text, mark, _ = rendered.rpartition(_HERE)
        except TemplateError:
            mark = ""
        if mark:
            return text
        # The template takes no such end, or writes contents in other characters.
        return self._render(before, variables) + last["content"]

    def _shows_both_of_two_systems(self):
        """Several published templates refuse a second system message, or leave one of two out."""
        texts = "first system text", "second system text"
        messages = [{"role": "system", "content": text} for text in texts]
        try:
            prompt = self._render([*messages, {"role": "user", "content": "Hi"}], {})
        except TemplateError:
            return False
        return all(text in prompt for text in texts)


def _with_systems_joined(messages):
    """Each run of system messages as one, its texts with a blank line between them."""
    joined: list[Message] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "system":
            content = joined[-1]["content"] + "\n\n" + message["content"]
            joined[-1] = {**joined[-1], "content": content}
        else:
            joined.append(message)
    return joined
