"""Native code's view of a vocabulary and of grammars over it. Knows no requests and no API.

Raises DeviceError where native code refuses; no device is involved.
"""

import ctypes
import threading
from collections.abc import Iterable, Sequence

import numpy as np

from marlin.device import abi
from marlin.errors import DeviceError
from marlin.text.grammar.automaton import Grammar

START, DEAD = 1, 0


def _check(library, code):
    if code < 0:
        raise DeviceError(library.marlin_last_error().decode(errors="replace"))
    return code


class Vocabulary:
    """A model's tokens by their bytes.

    Args:
        library: a loaded native library.
        tokens: bytes of each token; b"" where no grammar may take it.
        ends: tokens that end a sequence.
    """

    def __init__(self, library, tokens: Sequence[bytes], ends: Iterable[int]):
        self.library = library
        self.tokens = tokens
        self.num_words = (len(tokens) + 31) // 32
        starts = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum([len(token) for token in tokens], out=starts[1:])
        end_ids = np.array(sorted(ends), np.int32)
        self.ends = frozenset(end_ids.tolist())
        self._handle = ctypes.c_void_p()
        data = b"".join(tokens)
        _check(
            library,
            library.marlin_vocabulary_create(
                *(data, starts.ctypes.data, len(tokens)),
                *(end_ids.ctypes.data_as(abi.INT32S), len(end_ids), ctypes.byref(self._handle)),
            ),
        )

    @property
    def handle(self):
        return self._handle

    def __del__(self):
        if getattr(self, "_handle", None):
            self.library.marlin_vocabulary_destroy(self._handle)


class Automaton:
    """A Grammar over a Vocabulary, with all that has been found out about it.

    One thread at a time; positions are numbers that hold until `generation` grows.

    Raises:
        DeviceError: no text at all satisfies the grammar, or it is too large.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar):
        self.vocabulary = vocabulary
        self.generation = 0
        self.lock = threading.Lock()
        self._library = vocabulary.library
        self._handle = ctypes.c_void_p()
        edges = np.frombuffer(grammar.edges, np.int32)
        _check(
            self._library,
            self._library.marlin_grammar_create(
                *(vocabulary.handle, edges.ctypes.data, len(edges) // 6, grammar.num_states),
                ctypes.byref(self._handle),
            ),
        )

    def advance(self, position: int, data: bytes) -> int:
        """The position after more bytes; DEAD where no text goes on so. MemoryError: reset."""
        return self._checked(
            self._library.marlin_grammar_advance(self._handle, position, data, len(data))
        )

    def accepts(self, position: int) -> bool:
        """Whether the text may end here."""
        return bool(self._checked(self._library.marlin_grammar_accepts(self._handle, position)))

    def mask(self, position: int, out: np.ndarray, known: bool = False) -> bool:
        """Write the tokens that may come next to out, uint32 [num_words]; MemoryError: reset.

        Args:
            known: only if that was asked before; the answer is whether it was.
        """
        address = out.ctypes.data
        return bool(
            self._checked(
                self._library.marlin_grammar_mask(self._handle, position, int(known), address)
            )
        )

    def reset(self) -> None:
        """Forget all positions but START."""
        self.generation += 1
        self._library.marlin_grammar_reset(self._handle)

    def _checked(self, code):
        if code == abi.ENOMEM:
            raise MemoryError(self._library.marlin_last_error().decode(errors="replace"))
        return _check(self._library, code)

    def __del__(self):
        if getattr(self, "_handle", None):
            self._library.marlin_grammar_destroy(self._handle)
