"""A conversation as the prompt that a model's chat template makes of it, and how its answer reads.

Owns what templates leave to their caller: system messages that follow one another, tools, and a
last answer that the model is to continue. Knows neither the API nor tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from marlin.errors import RequestError, TemplateError
from marlin.text import message_shapes
from marlin.text.answer import AnswerForm, AnswerReader, thought_of
from marlin.text.chat_template import ChatTemplate
from marlin.text.message_shapes import Message
from marlin.text.origin import Control, Origins, plain
from marlin.text.template.globals import make_globals
from marlin.text.tool_calls.families import family_of
from marlin.text.tool_calls.family import ShowCalls
from marlin.text.tool_calls.shape import ToolGrammar

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
        tools: that the answer may call, as the OpenAI API has them.
        max_calls: the answer is over after so many calls; None is no limit.
        must_call: names of tools, of which one must be called; () leaves that to the model.
        is_strict: arguments must be as the tools' schemas say.
    """

    messages: Sequence[Message]
    continues: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()
    max_calls: int | None = None
    must_call: Sequence[str] = ()
    is_strict: bool = False

    @property
    def schemas(self) -> dict[str, Any]:
        """{name: JSON schema of its arguments} of the tools."""
        functions = [tool["function"] for tool in self.tools]
        return {function["name"]: function.get("parameters") for function in functions}


class Prompter:
    """Makes prompts by one template; any number of threads may use it at once.

    Args:
        template: ChatTemplate.
        tokens: bos_token and eos_token, where the model has them.
        tool_template: of conversations with tools, where that is another.
        origins: marks of the vocabulary; None tells no texts apart.

    Attributes:
        form: how the model's answers read; its family is None where the template has no tools, or
            writes calls in no known way.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokens: Mapping[str, str],
        tool_template: ChatTemplate | None = None,
        origins: Origins | None = None,
    ):
        self._template = template
        self._origins = origins or Origins(())
        self._tool_template = tool_template or template
        self._tokens = tokens
        self._keeps_systems = self._shows_both_of_two_systems()
        self._short_ids = False
        self._show_calls: ShowCalls | None = None
        family = self._probed_family()
        self.form = AnswerForm(thought_of(self._tool_template.source), family)

    def prompt(self, conversation: Conversation) -> str:
        """The text of a prompt.

        Raises:
            TemplateError: the template refuses the conversation, or broke a limit.
            RequestError: the conversation has tools, and the template none.
        """
        if conversation.tools and self.form.family is None:
            raise RequestError(
                "tools cannot be used: this model's chat template has none, or writes calls in a "
                "way that is not known here",
                param="tools",
            )
        messages = conversation.messages
        if not self._keeps_systems:
            messages = message_shapes.with_systems_joined(messages)
        messages = message_shapes.with_results_in_order(messages)
        if self._short_ids:
            messages = message_shapes.with_short_ids(messages)
        if self._show_calls is not None:
            messages = message_shapes.with_calls_shown(messages, self._show_calls)
        try:
            return self._prompt(messages, conversation)
        except TemplateError:
            plainer = message_shapes.plainer(messages)
            if plainer == messages:
                raise
            return self._prompt(plainer, conversation)

    def controls(self, conversation: Conversation, prompt: str) -> list[Control] | None:
        """The control tokens of prompt(conversation) that the template wrote; None where no text of
        the conversation can have any part in one.

        Raises:
            TemplateError: a text of it spells one, and what the template makes of it cannot be
                told apart.
        """
        given = [*conversation.messages], [*conversation.tools], {**conversation.variables}
        marked = [self._origins.marked(part) for part in given]
        if all(new is old for new, old in zip(marked, given, strict=True)):
            return None
        messages, tools, variables = marked
        told = replace(conversation, messages=messages, tools=tools, variables=variables)
        try:
            text = self.prompt(told)
        except TemplateError:
            text = ""
        if plain(text) == prompt:
            return self._origins.controls(text)
        if self._origins.spells_any(given):
            raise TemplateError(
                "the conversation spells a special token of this model, and its template does not "
                "let it be told from the template's own"
            )
        return None

    def new_reader(
        self, conversation: Conversation, prompt: str
    ) -> Callable[[], AnswerReader] | None:
        """Makes what reads an answer to prompt(conversation); None where it is all content."""
        form = self.form
        if not (conversation.tools or form.thought or (form.family and form.family.reads_all)):
            return None
        thinks = False
        if form.thought is not None:
            last = conversation.messages[-1].get("content", "") if conversation.continues else ""
            thinks = form.thought.is_open_at_end(prompt) or form.thought.is_open_in(last)
        return partial(AnswerReader, form, conversation.schemas, thinks, conversation.max_calls)

    def tool_grammar(self, conversation: Conversation) -> ToolGrammar | None:
        """What a conversation with tools asks of its answer."""
        family, tools = self.form.family, conversation.schemas
        if family is None or not tools:
            return None
        forced = conversation.must_call
        return ToolGrammar(
            family.shape,
            family.markers,
            {name: tools[name] for name in forced} if forced else tools,
            conversation.max_calls,
            bool(forced),
            conversation.is_strict,
        )

    def _prompt(self, messages, conversation):
        variables = dict(conversation.variables)
        if conversation.continues:
            return self._continued(messages, variables, conversation.tools)
        return self._render(messages, variables, conversation.tools)

    def _render(self, messages, variables, tools=(), *, add_generation_prompt=True):
        own = {"messages": messages, "tools": list(tools) or None, "documents": None}
        own["add_generation_prompt"] = add_generation_prompt
        template = self._tool_template if tools or _has_calls(messages) else self._template
        # A token that the model lacks is undefined.
        return template.render({**variables, **self._tokens, **own})

    def _continued(self, messages, variables, tools):
        """As `transformers` cuts a prompt off where its last message ends."""
        *before, last = messages
        marked = [*before, {**last, "content": last["content"] + _HERE}]
        try:
            rendered = self._render(marked, variables, tools, add_generation_prompt=False)
            text, mark, _ = rendered.rpartition(_HERE)
        except TemplateError:
            mark = ""
        if mark:
            return text
        # The template takes no such end, or writes contents in other characters.
        return self._render(before, variables, tools) + last["content"]

    def _shows_both_of_two_systems(self):
        """Several published templates refuse a second system message, or leave one of two out."""
        texts = "first system text", "second system text"
        messages = [{"role": "system", "content": text} for text in texts]
        try:
            prompt = self._render([*messages, {"role": "user", "content": "Hi"}], {})
        except TemplateError:
            return False
        return all(text in prompt for text in texts)

    def _probed_family(self):
        """The family of calls that the template writes; sets what its messages need."""
        question, *_ = probe = message_shapes.PROBE
        asked = self._tried([question], message_shapes.PROBE_TOOLS)
        if asked is None or asked == self._tried([question], ()):
            return None
        answered = self._tried(probe, message_shapes.PROBE_TOOLS)
        if answered is None:
            shortened = message_shapes.with_short_ids(probe)
            answered = self._tried(shortened, message_shapes.PROBE_TOOLS)
            self._short_ids = answered is not None
        # What the template writes of a call, or else what it tells the model to write.
        call = (answered or "").rpartition(question["content"])[2]
        family = family_of(call)
        if family is None and (family := family_of(asked)) is not None:
            self._show_calls = family.show
            if family.show is None:  # a conversation's calls would be lost
                return None
        return family

    def _tried(self, messages, tools):
        try:
            return self._render(messages, {}, tools)
        except TemplateError:
            return None


def _has_calls(messages):
    return any("tool_calls" in message for message in messages)
