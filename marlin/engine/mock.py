"""A mock model: made-up answers behind the interfaces of the real engine and tokenizer.

For trying clients, proxies and supervisors without a model file. It opens no file and no device,
and is only ever served when it was asked for by name; nothing falls back to it.
"""

import logging
import math
import os
import random
import re
import threading
import time
import zlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import numpy as np

from marlin.engine.interface import EngineStats
from marlin.engine.pooler import Pooler
from marlin.engine.request import (
    FinishEvent,
    TokenEvent,
    TokenLogprobs,
    VectorEvent,
    new_pooled_request,
    new_request,
)
from marlin.engine.served_model import ServedModel
from marlin.errors import RequestError, StoppingError
from marlin.models.pooling import RANK, Pooling
from marlin.text.gaps import FillTokens

_log = logging.getLogger(__name__)

# As long as the contexts of the small models that people try first.
CONTEXT_TOKENS = 8192
# Time of a token: fast for a model, and slow enough that a stream is several writes.
STEP_S = 0.001
# Values of a made-up hidden state.
STATE_DIM = 64

_EOS_TOKEN = "<|im_end|>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", _EOS_TOKEN)
_WORDS = (
    "a and any answer brown can dog each every few fish fox from hello here how is jumps lazy long "
    "marlin metal mock more of on one only over quick reads says short some swims system the then "
    "this user assistant token two under up water while with word you"
).split()
# Spelled in bytes, so that an answer holds characters that arrive in parts.
_SPELLED_WORDS = ("café", "naïve", "深い")
_PIECES = re.compile(r"<\|[a-z_]+\|>| ?[A-Za-z]+|.", re.DOTALL)
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class MockTokenizer:
    """Token ids 0 to 255 are bytes; then special tokens, then a few words.

    Has what server and engine use of text.tokenizer.Tokenizer.
    """

    named_tokens: Mapping[str, str] = MappingProxyType({"eos_token": _EOS_TOKEN})
    byte_exact = True
    strips_leading_space = False
    add_bos_token = False
    bos_token_id: int | None = None
    fill_tokens: FillTokens | None = None
    control_tokens: Mapping[str, int] = MappingProxyType({})
    chat_template: str | None = _CHAT_TEMPLATE
    tool_template: str | None = None

    def __init__(self):
        words = [form for word in _WORDS for form in (word, " " + word, word.capitalize())]
        self._texts = [*_SPECIAL, *dict.fromkeys(words)]
        self._ids = {text: 256 + index for index, text in enumerate(self._texts)}
        self.vocab_size = 256 + len(self._texts)
        self.eos_token_ids = frozenset({self._ids[_EOS_TOKEN]})
        self.control_tokens = {text: self._ids[text] for text in _SPECIAL}

    def encode(self, text, *, add_special_tokens=True, parse_special=True):
        """Token ids of a text: its known words, and the bytes of everything else."""
        token_ids = []
        for piece in _PIECES.findall(text):
            token_id = self._ids.get(piece)
            if token_id is None or (self.is_special(token_id) and not parse_special):
                token_ids.extend(piece.encode("utf-8", "replace"))
            else:
                token_ids.append(token_id)
        return token_ids

    def encode_parts(self, text, num_characters, **kinds):
        """As Tokenizer.encode_parts(), of one part."""
        yield self.encode(text, **kinds)

    def trimmed(self, text, before, after):
        """As Tokenizer.trimmed(); no token takes blanks."""
        return text

    def min_tokens(self, text):
        """As Tokenizer.min_tokens(), for which 0 is always true."""
        return 0

    def decode(self, ids, skip_special_tokens=True):
        """The text of a run of tokens."""
        kept = [id for id in ids if not (skip_special_tokens and self.is_special(id))]
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def token_bytes(self, id):
        """The bytes a token adds to a text."""
        return bytes([id]) if id < 256 else self._texts[id - 256].encode("utf-8")

    def is_special(self, id):
        """Whether this token stays out of an answer's text."""
        return 256 <= id < 256 + len(_SPECIAL)


class MockEngine:
    """Answers every request on a thread of its own, a token every step_s.

    Has the methods of engine.engine.Engine. An answer is a function of the prompt and the seed, at
    temperature 0 of the prompt alone.

    Args:
        tokenizer: MockTokenizer.
        max_context_tokens: prompt and output together.
        step_s: seconds a token; 0 for as fast as can be.
        answer: callable(request) yielding token ids, None for made-up sentences. A thread of its
            own runs it; what it raises ends the request with that error.
    """

    prefix_cache = "off"  # there is none

    def __init__(self, tokenizer, max_context_tokens=CONTEXT_TOKENS, *, step_s=STEP_S, answer=None):
        self.max_context_tokens = max_context_tokens
        self.vocab_size = tokenizer.vocab_size
        self._tokenizer = tokenizer
        self._step_s = step_s
        self._answer = answer or self._sentences
        self._lock = threading.Lock()
        self._running = set()
        self._closed = False
        self._ended = threading.Event()

    def prepare(self):
        """As Engine.prepare(), of nothing."""

    def guide_of(self, params):
        """As Engine.guide_of(); made-up answers keep to no grammar."""
        if params.grammar is not None:
            raise RequestError(
                "answers of a mock model cannot be constrained",
                param=params.constraint and params.constraint.place,
            )

    def submit(self, prompt_token_ids, params, request_id, client=""):
        """Begin a request; arguments, result and errors are Engine.submit's."""
        request = new_request(prompt_token_ids, params, request_id, self, client)
        return self._begin(request, self._generate)

    def pool(self, token_ids, pooler, request_id, client=""):
        """As Engine.pool(), of made-up hidden states."""
        request = new_pooled_request(token_ids, pooler, request_id, self, client)
        return self._begin(request, self._pool)

    def _begin(self, request, work):
        with self._lock:
            if self._closed:
                raise StoppingError("the engine has stopped")
            self._running.add(request)
        threading.Thread(target=self._run, args=(request, work), name="mock", daemon=True).start()
        return request

    @property
    def alive(self):
        """False once close() was called."""
        return not self._closed

    def wait_for_end(self):
        """As Engine.wait_for_end(); this one only ends when it is closed."""
        self._ended.wait()

    def stats(self) -> EngineStats:
        """What is in hand now; there is no KV cache, and nothing waits."""
        with self._lock:
            return EngineStats(num_running=len(self._running), num_waiting=0)

    def abandon(self, error):
        """As Engine.abandon()."""
        with self._lock:
            self._closed = True
            for request in self._running:
                request.events.put(FinishEvent("error", error))

    def close(self):
        """Abort what is in hand; nothing more is taken."""
        with self._lock:
            self._closed = True
            for request in self._running:
                request.abort()
        self._ended.set()

    def _run(self, request, work):
        request.num_computed_tokens = len(request.prompt_token_ids)
        try:
            event = FinishEvent(work(request))
        except Exception as error:  # noqa: BLE001 (whoever waits for the answer must hear of it)
            event = FinishEvent("error", error)
        with self._lock:
            self._running.discard(request)
        request.events.put(event)

    def _pool(self, request):
        """States and logits are functions of the tokens alone."""
        states = [np.random.default_rng(id).standard_normal(STATE_DIM)
                  for id in request.prompt_token_ids]  # fmt: skip
        request.pooler.add(0, np.array(states, np.float32))
        seed = zlib.crc32(np.array(request.prompt_token_ids, np.int32).tobytes())
        if request.pooler.reads_logits:
            request.pooler.take_logits(np.random.default_rng(seed).standard_normal(self.vocab_size))
        request.events.put(VectorEvent(request.pooler.result()))
        return "stop"

    def _generate(self, request):
        """Publish a request's tokens; returns the finish reason."""
        params = request.params
        if params.score_prompt:
            for token_id in request.prompt_token_ids[1:]:
                request.prompt_logprobs += self._logprobs(request, token_id)
        if params.max_tokens == 0:
            return "length"
        eos_token_ids = () if params.ignore_eos else self._tokenizer.eos_token_ids
        for token_id in self._answer(request):
            if request.aborted:
                return "abort"
            if token_id in eos_token_ids:
                break
            self._publish(request, token_id)
            full = request.num_tokens >= self.max_context_tokens
            if full or len(request.output_token_ids) >= params.max_tokens:
                return "length"
            if self._step_s:
                time.sleep(self._step_s)
        return "abort" if request.aborted else "stop"

    def _publish(self, request, token_id):
        request.output_token_ids.append(token_id)
        request.events.put(TokenEvent((token_id,), self._logprobs(request, token_id)))

    def _logprobs(self, request, token_id):
        """As if the token had probability 1/2, the id after it 1/4, the next 1/8, and so on."""
        num_top = request.params.num_logprobs
        if num_top is None:
            return ()
        num_tokens = self._tokenizer.vocab_size
        top = [((token_id + i) % num_tokens, -(i + 1) * math.log(2)) for i in range(num_top)]
        return (TokenLogprobs(-math.log(2), tuple(top)),)

    def _sentences(self, request):
        """Made-up sentences and an end-of-sequence token, again and again."""
        prompt = ",".join(map(str, request.prompt_token_ids)).encode()
        seed = 0 if request.params.temperature == 0 else request.seed
        chooser = random.Random(zlib.crc32(prompt) << 64 | seed)
        last = self._tokenizer.token_bytes(request.prompt_token_ids[-1])
        first = last.isspace()  # a text of its own begins with a capital and no space
        while True:
            for _ in range(chooser.randint(1, 3)):
                yield from self._sentence(chooser, first)
                first = False
            yield from self._tokenizer.eos_token_ids

    def _sentence(self, chooser, first):
        words = chooser.choices(_WORDS, k=chooser.randint(4, 9))
        words.insert(chooser.randint(1, len(words)), chooser.choice(_SPELLED_WORDS))
        text = " ".join([words[0].capitalize() if first else words[0], *words[1:]]) + "."
        return self._tokenizer.encode(text if first else " " + text)


def mock_vectors(pooling):
    """The arguments of a ServedModel that makes vectors by a Pooling, or None for none."""
    return {
        "new_pooler": pooling and partial(Pooler, pooling, (ord("y"), ord("n"))),
        "vector_dim": STATE_DIM,
        "ranks": pooling is not None and pooling.kind == RANK,
    }


def load_mock(path, max_context_tokens=None, pooling=None):
    """A running mock under a path's last component; the path need not exist.

    Args:
        pooling: as engine.load.load_model()'s.
    """
    name = os.path.basename(os.path.abspath(path)).removesuffix(".gguf")
    _log.warning("METAL_MARLIN_MOCK_MODEL=1: %s is a mock; its answers are made up", name)
    tokenizer = MockTokenizer()
    return ServedModel(
        *(name, MockEngine(tokenizer, max_context_tokens or CONTEXT_TOKENS), tokenizer),
        **mock_vectors(pooling and Pooling(pooling)),
    )
