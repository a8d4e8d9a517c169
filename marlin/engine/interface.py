"""What an engine and a tokenizer are to those who use them: the real ones and the mock's are both.

Declarations alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from marlin.engine.bounds import Bounds
from marlin.engine.request import Request
from marlin.engine.sampling import SamplingParams
from marlin.errors import MarlinError

if TYPE_CHECKING:  # As in request.py.
    from marlin.engine.constraint import Guide
    from marlin.engine.pooler import Pooler
    from marlin.engine.thought_budget import ThoughtGuide
    from marlin.text.gaps import FillTokens


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Attributes:
    num_running, num_waiting: requests in steps, and before their first one.
    kv_bytes: of the KV cache.
    gpu_memory_bytes: that weights, cache and activations hold on a GPU.
    num_kv_blocks, num_free_kv_blocks: of the KV cache; free ones may hold what can be found again.
    num_window_blocks, num_free_window_blocks: the same of windows that give blocks back.
    seconds_since_step: how long the work in hand has waited for a step to be completed; 0 without
        work.
    """

    num_running: int
    num_waiting: int
    kv_bytes: int = 0
    gpu_memory_bytes: int = 0
    num_kv_blocks: int = 0
    num_free_kv_blocks: int = 0
    num_window_blocks: int = 0
    num_free_window_blocks: int = 0
    seconds_since_step: float = 0.0


class ModelEngine(Bounds, Protocol):
    """What runs the requests: engine.engine.Engine or a mock. Any thread may call it."""

    prefix_cache: str

    @property
    def alive(self) -> bool: ...

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        client: str = "",
    ) -> Request: ...

    def pool(
        self, token_ids: Sequence[int], pooler: "Pooler", request_id: str, client: str = ""
    ) -> Request: ...

    def prepare(self) -> None: ...

    def guide_of(self, params: SamplingParams) -> "Guide | ThoughtGuide | None": ...

    def wait_for_end(self) -> BaseException | None: ...

    def stats(self) -> EngineStats: ...

    def abandon(self, error: MarlinError) -> None: ...

    def close(self) -> None: ...


class ModelTokenizer(Protocol):
    """text.tokenizer.Tokenizer or a mock; its methods are described there."""

    vocab_size: int
    eos_token_ids: frozenset[int]
    byte_exact: bool
    strips_leading_space: bool
    add_bos_token: bool
    bos_token_id: int | None
    fill_tokens: "FillTokens | None"
    chat_template: str | None
    tool_template: str | None

    @property
    def control_tokens(self) -> Mapping[str, int]: ...

    @property
    def named_tokens(self) -> Mapping[str, str]: ...

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]: ...

    def encode_parts(
        self,
        text: str,
        num_characters: int,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = True,
    ) -> Iterator[list[int]]: ...

    def trimmed(self, text: str, before: int | None, after: int | None) -> str: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def min_tokens(self, text: str) -> int: ...

    def token_bytes(self, id: int) -> bytes: ...

    def is_special(self, id: int) -> bool: ...
