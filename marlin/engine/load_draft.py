"""A draft model beside the model that it guesses for: found, compared, counted and loaded.

Owns what the two must have in common. How guesses are made is draft_model.py's.
"""

from collections.abc import Callable

from marlin.device.device import Device
from marlin.engine.draft_model import STATES_A_SEQUENCE, DraftModel
from marlin.engine.interface import ModelTokenizer
from marlin.engine.kv_cache import Paging, kv_bytes, state_bytes
from marlin.engine.memory import activation_bytes
from marlin.engine.runner import Runner, held_bytes
from marlin.errors import ConfigError
from marlin.files.snapshot import Snapshot
from marlin.models.checkpoint import open_checkpoint
from marlin.models.layers import StepSizes
from marlin.models.model import Model
from marlin.models.spec import with_kv_dtype


class DraftFiles:
    """A draft model that has been found.

    Args:
        slabs: as open_checkpoint's.
        kv_dtype: of its cache.

    Attributes:
        weight_bytes: device memory of its weights.
        snapshot: Snapshot of its files.

    Raises:
        ModelFileError: it cannot be read.
        ConfigError: it is an encoder.
    """

    def __init__(self, path: str, device: Device, slabs, kv_dtype: str):
        self.snapshot = Snapshot(path)
        self._path, self._device = path, device
        self._checkpoint = open_checkpoint(path, device, slabs)
        self._checkpoint.spec = with_kv_dtype(self._checkpoint.spec, kv_dtype)
        if self._checkpoint.spec.is_encoder:
            raise ConfigError(f"--draft-model {path} is an encoder, which guesses nothing")
        self.weight_bytes: int = self._checkpoint.weight_bytes
        self._model: Model | None = None

    def bytes_beside(self, step_tokens: int, max_sequences: int) -> Callable[[Paging], int]:
        """What it takes of each process beside another model's cache: its own cache, cut alike, and
        a step's activations."""
        spec = self._checkpoint.spec

        def count(paging):
            sizes = StepSizes(step_tokens, max_sequences, paging.max_splits)
            own = self._paging(paging, max_sequences)
            return kv_bytes(spec, own) + activation_bytes(spec, sizes)

        return count

    def _paging(self, paging, max_sequences):
        has_states = state_bytes(self._checkpoint.spec) > 0
        num_states = STATES_A_SEQUENCE * max_sequences if has_states else 0
        return paging._replace(windows=(), num_states=num_states)

    def load_weights(self, context_tokens: int) -> None:
        """Load it, for contexts up to so many tokens; raises as Model."""
        own = self._checkpoint.spec.config.max_context_tokens
        self._model = Model(self._checkpoint, min(own, context_tokens))

    def start(self, runner: Runner, tokenizer: ModelTokenizer) -> DraftModel:
        """Begin guessing for the model of a runner.

        Raises:
            ConfigError: its tokens are not those of that model's tokenizer.
        """
        assert self._model is not None
        self._check_same_vocabulary(tokenizer)
        paging = self._paging(runner.paging, runner.max_sequences)
        sizes = runner.max_step_tokens, runner.max_sequences
        own = Runner(self._device, self._model, paging, *sizes)
        runner.gpu_memory_bytes = held_bytes(self._device)
        return DraftModel(own, runner.model.config.vocab_size)

    def _check_same_vocabulary(self, tokenizer):
        # It encodes no text: what its expressions are does not matter.
        own = self._checkpoint.load_tokenizer(allow_unknown_pretokenizer=True)
        which = f"--draft-model {self._path} has another vocabulary than the model"
        if own.vocab_size != tokenizer.vocab_size:
            raise ConfigError(f"{which}: {own.vocab_size} tokens, not {tokenizer.vocab_size}")
        differ = [
            token_id
            for token_id in range(own.vocab_size)
            if own.token_bytes(token_id) != tokenizer.token_bytes(token_id)
        ]
        if differ:
            first = differ[0]
            texts = " and not ".join(repr(t.token_bytes(first)) for t in (own, tokenizer))
            raise ConfigError(
                f"{which}: {len(differ)} tokens differ, the first is {first}, {texts}"
            )

    def check_in_place(self) -> None:
        """As Snapshot.check_in_place(), of the files that are mapped."""
        self.snapshot.check_in_place(self._checkpoint.mapped_paths)
