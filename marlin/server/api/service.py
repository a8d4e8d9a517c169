"""The served model as the request handlers see it: its name, and text to token ids and back.

Holds no request and no socket; the engine behind it owns the model's state.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from marlin import __version__
from marlin.engine.request import check_prompt_fits
from marlin.errors import NoChatTemplateError, RequestError, TemplateError
from marlin.text.chat_template import ChatTemplate, render_chat

_log = logging.getLogger("marlin.server")


@dataclass(frozen=True, slots=True)
class Service:
    """One loaded model.

    Attributes:
        model_id: the name that requests must give.
        created: when it was loaded, seconds since the epoch.
        tokenizer: encode(text, add_special_tokens) -> list of ids; min_tokens(text); vocab_size.
        engine: submit(prompt_token_ids, params, request_id) -> Request; max_context_tokens,
            stats(), alive, wait_for_end().
        render_chat: messages to prompt text; None for a model without a (usable) chat template.
        format: of the weights: "gguf", "safetensors", "fp4", …; "mock" for no weights.
        isa: instruction set of the device, "" for none.
        num_layers: of the model.
    """

    model_id: str
    created: int
    tokenizer: Any
    engine: Any
    render_chat: Callable[[list[dict]], str] | None
    format: str = "mock"
    isa: str = ""
    num_layers: int = 0

    @property
    def fingerprint(self):
        """Names all that decides what a seed gives: package, model, weights and device."""
        facts = "\0".join((__version__, self.model_id, self.format, self.isa))
        return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:10]

    def details(self):
        """What /v1/models/{id} says beyond the list's entry; JSON."""
        return {
            "capabilities": {
                "chat_completions": self.render_chat is not None,
                "completions": True,
                "streaming": True,
                "logprobs": True,
                "logit_bias": True,
                "seed": True,
                "tools": False,
                "vision": False,
                "embeddings": False,
            },
            "config": {
                "format": self.format,
                "max_context_length": self.engine.max_context_tokens,
                "num_layers": self.num_layers,
                "vocab_size": self.tokenizer.vocab_size,
            },
        }

    def check_logit_bias(self, logit_bias):
        """Raise RequestError for a (token id, bias) pair outside the vocabulary."""
        num_tokens = self.tokenizer.vocab_size
        for token_id, _ in logit_bias:
            if token_id >= num_tokens:
                param = f"logit_bias.{token_id}"
                raise RequestError(
                    f"{param} is no token; the vocabulary has {num_tokens}", param=param
                )

    def chat_token_ids(self, messages, turn=nullcontext):
        """Prompt token ids of a conversation.

        Args:
            turn: callable(text) -> context manager, in which the text is encoded.

        Raises:
            TemplateError: the model has no chat template, or it refuses these messages.
            ContextLengthError: more tokens than the context holds.
        """
        if self.render_chat is None:
            raise NoChatTemplateError(
                f"model {self.model_id!r} has no chat template; use /v1/completions"
            )
        # A template writes the special tokens itself, beginning-of-sequence included.
        return self._encode(self.render_chat(messages), turn, add_special_tokens=False)

    def completion_token_ids(self, prompt, param="prompt", turn=nullcontext):
        """Prompt token ids of a text, or of ids after a look at the vocabulary.

        Args:
            param: what errors call it.
            turn: callable(text) -> context manager, in which the text is encoded.

        Raises:
            RequestError: an id outside the vocabulary, or a text of no tokens at all.
            ContextLengthError: a text of more tokens than the context holds.
        """
        if isinstance(prompt, str):
            token_ids = self._encode(prompt, turn)
            if not token_ids:
                raise RequestError(f"{param} has no tokens", param=param)
            return token_ids
        num_tokens = self.tokenizer.vocab_size
        for index, token_id in enumerate(prompt):
            if token_id >= num_tokens:
                raise RequestError(
                    f"{param}[{index}] is {token_id}, but the vocabulary has {num_tokens} tokens",
                    param=f"{param}[{index}]",
                )
        return prompt

    def _encode(self, text, turn, **options):
        context = self.engine.max_context_tokens
        check_prompt_fits(self.tokenizer.min_tokens(text), context, "at least ")
        with turn(text):
            token_ids = self.tokenizer.encode(text, **options)
        # The engine checks it, too, but after the other texts of a list have been encoded.
        check_prompt_fits(len(token_ids), context)
        return token_ids


def service_for(loaded, wall_clock=time.time):
    """The Service of a loaded model (engine.load.LoadedModel)."""
    return Service(
        model_id=loaded.model_id,
        created=int(wall_clock()),
        tokenizer=loaded.tokenizer,
        engine=loaded.engine,
        render_chat=chat_renderer(loaded.tokenizer),
        format=loaded.format,
        isa=loaded.isa,
        num_layers=loaded.config.num_layers,
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

    named = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    tokens = {name: text for name, text in named.items() if text is not None}
    return lambda messages: render_chat(template, messages, **tokens)
