"""The served model as the request handlers see it: its name, and text to token ids and back.

Holds no request and no socket; the engine behind it owns the model's state.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from marlin.errors import RequestError, TemplateError
from marlin.text.chat_template import ChatTemplate, render_chat

_log = logging.getLogger("marlin.server")


@dataclass(frozen=True, slots=True)
class Service:
    """One loaded model.

    Attributes:
        model_id: the name that requests must give.
        created: when it was loaded, seconds since the epoch.
        tokenizer: encode(text, add_special_tokens) -> list of ids; vocab_size.
        engine: submit(prompt_token_ids, params, request_id) -> Request; max_context_tokens,
            stats(), alive.
        render_chat: messages to prompt text; None for a model without a (usable) chat template.
    """

    model_id: str
    created: int
    tokenizer: Any
    engine: Any
    render_chat: Callable[[list[dict]], str] | None

    def chat_token_ids(self, messages):
        """Prompt token ids of a conversation.

        Raises:
            TemplateError: the model has no chat template, or it refuses these messages.
        """
        if self.render_chat is None:
            raise TemplateError(
                f"model {self.model_id!r} has no chat template; use /v1/completions",
                code="no_chat_template",
            )
        # A template writes the special tokens itself, beginning-of-sequence included.
        return self.tokenizer.encode(self.render_chat(messages), add_special_tokens=False)

    def completion_token_ids(self, prompt):
        """Prompt token ids of a text, or of ids after a look at the vocabulary.

        Raises:
            RequestError: an id outside the vocabulary, or a text of no tokens at all.
        """
        if isinstance(prompt, str):
            token_ids = self.tokenizer.encode(prompt)
            if not token_ids:
                raise RequestError("prompt has no tokens", param="prompt")
            return token_ids
        num_tokens = self.tokenizer.vocab_size
        for index, token_id in enumerate(prompt):
            if token_id >= num_tokens:
                raise RequestError(
                    f"prompt[{index}] is {token_id}, but the vocabulary has {num_tokens} tokens",
                    param=f"prompt[{index}]",
                )
        return prompt


def service_for(loaded, wall_clock=time.time):
    """The Service of a loaded model (engine.load.LoadedModel)."""
    return Service(
        model_id=loaded.model_id,
        created=int(wall_clock()),
        tokenizer=loaded.tokenizer,
        engine=loaded.engine,
        render_chat=chat_renderer(loaded.tokenizer),
    )


def chat_renderer(tokenizer):
    """A function from messages to prompt text by the model's own template, or None without one."""
    source = tokenizer.chat_template
    if source is None:
        return None
    try:
        template = ChatTemplate(source)
    except TemplateError as error:
        _log.warning("chat is not available: %s", error.message)
        return None

    def render(messages):
        return render_chat(
            template,
            messages,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
        )

    return render
