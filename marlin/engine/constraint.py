"""Where requests are in their grammars, and which tokens may come next.

Owns the automata over the model's vocabulary, shared by requests of one grammar, and a Guide for
each request. Knows no steps: the runner asks for masks, the engine says which tokens were taken.
"""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from marlin.device.grammar import DEAD, START, Automaton, Vocabulary
from marlin.errors import DeviceError, OverloadedError, RequestError
from marlin.text.grammar.automaton import Grammar
from marlin.text.grammar.constraint import SPECIAL

# Automata kept when no request has them; each may remember 16 MiB.
MAX_IDLE = 8
# Edges of the grammars of all requests in hand, 24 bytes each in Python and in native code.
MAX_EDGES = 4_000_000
# Tokens that are looked at before other threads have their turn, and how long that is: a step that
# waits for the interpreter's lock would wait 5 ms for it.
TOKENS_AT_ONCE, TURN_S = 512, 0.0002


class Grammars:
    """Grammars over one model's vocabulary. Any thread may call it.

    Args:
        library: a loaded native library.
        tokenizer: ModelTokenizer; asked for its tokens by prepare(), or by the first grammar.
        vocab_size: tokens that have a logit.
    """

    def __init__(self, library, tokenizer, vocab_size: int):
        self._library = library
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._idle: OrderedDict[Grammar, Automaton] = OrderedDict()
        self._in_hand: weakref.WeakKeyDictionary[Grammar, Automaton] = weakref.WeakKeyDictionary()

    def prepare(self) -> None:
        """Make the vocabulary, a tenth of a second to half of one; whoever needs it waits."""
        if self._tokenizer.byte_exact:
            assert self.vocabulary

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens, special ones by SPECIAL and their text; ends of a sequence are none.

        Raises:
            RequestError: what a token adds to a text is not known.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._library, self._tokens(), self._ends())
            return self._vocabulary

    def _ends(self):
        return [end for end in self._tokenizer.eos_token_ids if end < self._vocab_size]

    def _tokens(self):
        tokenizer = self._tokenizer
        if not tokenizer.byte_exact:
            raise RequestError("this model's tokenizer has a decoder that grammars cannot follow")
        tokens = [b""] * self._vocab_size
        for token_id in range(min(tokenizer.vocab_size, self._vocab_size)):
            if token_id % TOKENS_AT_ONCE == 0:
                time.sleep(TURN_S)
            if token_id not in tokenizer.eos_token_ids:
                data = tokenizer.token_bytes(token_id)
                if tokenizer.is_special(token_id):
                    tokens[token_id] = SPECIAL + data
                elif SPECIAL not in data:  # a byte that no text has must not begin a special one
                    tokens[token_id] = data
        return tuple(tokens)  # the collector does not look into it

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def guide(self, grammar: Grammar, place: str | None = None) -> "Guide":
        """A Guide at the beginning of an answer.

        Args:
            place: what errors call the grammar.

        Raises:
            RequestError: nothing satisfies the grammar, or it has too many places at once.
            OverloadedError: grammars in hand are as many as may be.
        """
        vocabulary = self.vocabulary
        with self._lock:
            automaton = self._idle.get(grammar) or self._in_hand.get(grammar)
            num_edges = sum(one.num_edges for one in self._in_hand)
            if automaton is None and num_edges + grammar.num_edges > MAX_EDGES:
                raise OverloadedError("the grammars of the requests in hand are too large together")
        if automaton is None:
            try:
                automaton = Automaton(vocabulary, grammar)
            except DeviceError as error:
                raise RequestError(f"{place or 'grammar'}: {error.message}", param=place) from None
        with self._lock:
            automaton = self._in_hand.setdefault(grammar, automaton)
            self._idle[grammar] = automaton
            self._idle.move_to_end(grammar)
            while len(self._idle) > MAX_IDLE:
                self._idle.popitem(last=False)
        return Guide(automaton)


class Guide:
    """Where one request's answer is in its grammar. Of one thread, which is also that of all others
    with the same automaton.

    Attributes:
        error: what ends the request, since a mask could not be made; None.
    """

    def __init__(self, automaton: Automaton):
        self.error: Exception | None = None
        self._automaton = automaton
        self._tokens = automaton.vocabulary.tokens
        self._text = bytearray()
        self._position = START
        self._generation = automaton.generation

    def advance(self, token_ids: Sequence[int]) -> None:
        """These tokens have been taken."""
        data = b"".join(self._tokens[token_id] for token_id in token_ids)
        try:
            position = self._try(lambda: self._automaton.advance(self._here(), data))
        except DeviceError as error:
            self.error = error
            return
        self._text += data
        self._position = position

    def allowed(self, draft: Sequence[int]) -> list[int]:
        """A draft up to its first token that may not come."""
        try:
            return self._try(lambda: self._allowed(draft))
        except DeviceError as error:
            self.error = error
            return []

    def _allowed(self, draft):
        position, kept = self._here(), []
        for token_id in draft:
            data = self._tokens[token_id]
            position = self._automaton.advance(position, data) if data else DEAD
            if position == DEAD:
                break
            kept.append(token_id)
        return kept

    def mask(self, draft: Sequence[int], out: np.ndarray, known: bool = False) -> bool:
        """Write which tokens may come after a draft to out, uint32 [words].

        Args:
            known: only what was found out before; the answer is whether it was. A mask that cannot
                be made is all 0, and `error` says why.
        """
        data = b"".join(self._tokens[token_id] for token_id in draft)
        try:
            return self._try(lambda: self._mask(data, out, known))
        except DeviceError as error:
            self.error = error
            out[:] = 0
            return True

    def _mask(self, data, out, known):
        position = self._automaton.advance(self._here(), data) if data else self._here()
        is_known = self._automaton.mask(position, out, known)
        if is_known and not out.any():
            raise DeviceError("the grammar goes on in no token of this model")
        return is_known

    def _here(self):
        """The position, found anew after a reset."""
        if self._generation != self._automaton.generation:
            self._position = self._automaton.advance(START, bytes(self._text))
            self._generation = self._automaton.generation
        return self._position

    def _try(self, call):
        """Once more after a reset, when the automaton's memory is full."""
        try:
            return call()
        except MemoryError:
            self._automaton.reset()
        try:
            return call()
        except MemoryError as error:
            raise DeviceError(str(error)) from None
