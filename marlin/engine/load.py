"""From a model's path to a ServedModel: device, weights, tokenizer, KV cache, engine."""

import logging
import os
from functools import partial
from typing import NamedTuple

from marlin.config import check_speculation
from marlin.device.device import Device
from marlin.device.slabs import PrivateSlabs, SharedSlabs
from marlin.engine.constraint import Grammars
from marlin.engine.draft import MAX_DRAFT_TOKENS, MAX_STEP_DRAFT_TOKENS
from marlin.engine.encoder import EncoderRunner, EncoderSizes
from marlin.engine.engine import Engine
from marlin.engine.interface import ModelTokenizer
from marlin.engine.kv_cache import CONTEXT_STEP, Paging
from marlin.engine.load_draft import DraftFiles
from marlin.engine.memory import (
    MAX_KV_MEMORY_SHARE,
    PREFILL_STEP_TOKENS,
    MemoryBudget,
    activation_bytes,
    check_memory,
)
from marlin.engine.pooler import Pooler
from marlin.engine.runner import Runner
from marlin.engine.served_model import ServedModel
from marlin.errors import ConfigError, DeviceError, ModelFileError, NoMemoryError
from marlin.files.snapshot import Snapshot
from marlin.files.split_name import prefix_of
from marlin.models.checkpoint import open_checkpoint
from marlin.models.layers import StepSizes
from marlin.models.model import Model
from marlin.models.pooling import RANK, Pooling
from marlin.models.spec import with_kv_dtype

logger = logging.getLogger(__name__)

# Texts that may take a tokenizer for ever at once: each takes a core until the process ends.
NUM_HELPERS = 4


class Batching(NamedTuple):
    """A paged KV cache that requests share.

    Attributes:
        num_blocks, block_size: blocks in all, and tokens a block (a multiple of 16).
        max_sequences: requests that may run at once.
    """

    num_blocks: int
    block_size: int
    max_sequences: int


def load_model(
    path,
    num_threads=None,
    max_context_tokens=None,
    isa=None,
    batching=None,
    share=None,
    device_kind=None,
    speculative=None,
    draft_model=None,
    allow_unknown_pretokenizer=False,
    pooling=None,
    kv_cache_dtype="float16",
):
    """Open a model and start its engine; returns the ServedModel.

    Args:
        path: a .gguf file, or a folder in Hugging Face or native form.
        num_threads: CPU workers; None is as many cores as the process may use.
        max_context_tokens: prompt and output together; None is the model's own context, or what a
            quarter of the device's memory (with batching: what all blocks) can hold.
        isa: CPU instruction set; None is the best here.
        batching: Batching; None runs one request at a time over one contiguous cache.
        share: engine.share.Share, when other processes serve the model, too.
        device_kind: "cpu" or "metal"; None is Device's choice, and the CPU where a GPU cannot make
            what the model needs.
        speculative: "ngram" drafts tokens that a sequence's own earlier ones suggest, "draft" those
            of the model at the path draft_model; None drafts none.
        allow_unknown_pretokenizer: see text/folder_tokenizer.py.
        pooling: one of models.pooling.POOLINGS, how a text's vector is made; None is what the
            model's files declare, which is then all that it is for.
        kv_cache_dtype: one of config.KV_CACHE_DTYPES.

    Raises:
        ModelFileError: the model cannot be read.
        ConfigError: a context or a KV cache that the model, blocks or device's memory cannot have.
        NoDeviceError: there is no device of that kind.
        DeviceError: the device cannot be opened or its memory does not suffice.
        SharedWeightsError: the weights in a filled share are not those that were put there.
    """
    check_speculation(speculative, draft_model)
    num_processes = share.num_processes if share else 1
    snapshot = Snapshot(path)
    device = Device(num_threads, isa, kind=device_kind, num_processes=num_processes)
    try:
        return _load_on(
            *(device, path, snapshot, max_context_tokens, batching, share, speculative),
            *(draft_model, allow_unknown_pretokenizer, pooling, kv_cache_dtype),
        )
    except DeviceError as error:
        device.close()
        if device_kind or device.kind == "cpu" or isinstance(error, NoMemoryError):
            raise
        logger.warning("the CPU computes, many times slower than the GPU: %s", error.message)
    except BaseException:
        device.close()  # its threads and memory, which nothing else would end
        raise
    return load_model(
        *(path, num_threads, max_context_tokens, isa, batching, share, "cpu", speculative),
        *(draft_model, allow_unknown_pretokenizer, pooling, kv_cache_dtype),
    )


def _load_on(device, path, snapshot, max_context_tokens, batching, share, speculative, *reading):
    draft_path, allow_unknown, asked, kv_dtype = reading
    slabs = _slabs(device, share)
    checkpoint = open_checkpoint(path, device, slabs)
    checkpoint.spec = spec = with_kv_dtype(checkpoint.spec, kv_dtype)
    pooling = _pooling(checkpoint, asked)
    draft = _find_draft(draft_path, spec, device, slabs, kv_dtype)
    budget = _budget(device, checkpoint, draft, share, batching)
    options = max_context_tokens, batching, speculative
    sizes = (_encoder_sizes if spec.is_encoder else _sizes)(spec, budget, *options)
    check_memory(budget, spec, sizes.paging, sizes.step_tokens, sizes.max_logits)
    snapshots = [snapshot, *([draft.snapshot] if draft else [])]
    model = Model(checkpoint, sizes.context)
    if draft is not None:
        draft.load_weights(sizes.context)
    slabs.settle(b"".join(one.encode() for one in snapshots))
    steps = sizes.paging, sizes.step_tokens, sizes.max_sequences, sizes.draft_tokens
    runner = (EncoderRunner if spec.is_encoder else Runner)(device, model, *steps)
    tokenizer = checkpoint.load_tokenizer(allow_unknown)
    check_case(checkpoint.path, pooling, tokenizer)
    guesses = draft and draft.start(runner, tokenizer)
    _check_same(snapshots)
    watch = partial(_look, partial(snapshot.check_in_place, checkpoint.mapped_paths), draft)
    limit = pooling.max_tokens if pooling is not None else None
    context = min(sizes.context, limit or sizes.context)
    name = prefix_of(os.path.basename(os.path.abspath(path)))
    more = tokenizer.vocab_size, watch, Grammars(device.library, tokenizer, spec.config.vocab_size)
    engine = Engine(runner, tokenizer.eos_token_ids, context, *more, guesses)
    device.keep_resident()  # now and not in the first step
    _log_memory(name, device, engine.stats().kv_bytes)
    kind = "cpu" if device.kind == "cpu" else device.info()["isa"]
    facts = checkpoint.format, kind, spec.config.num_layers
    return ServedModel(
        *(name, engine, tokenizer, *facts),
        new_pooler=_new_pooler(pooling, tokenizer, spec.is_encoder),
        vector_dim=spec.config.hidden_dim,
        ranks=pooling is not None and pooling.kind == RANK,
        generates=not spec.is_encoder and (pooling is None or not pooling.is_declared),
        num_helpers=NUM_HELPERS if allow_unknown else 0,
    )


def _check_same(snapshots):
    for snapshot in snapshots:
        snapshot.check_same()


def _budget(device, checkpoint, draft, share, batching):
    num_processes = share.num_processes if share else 1
    memory_bytes, weight_bytes = device.info()["memory_bytes"], checkpoint.weight_bytes
    if draft is None:
        return MemoryBudget(memory_bytes, weight_bytes, num_processes)
    beside = draft.bytes_beside(*_step_sizes(batching))
    return MemoryBudget(memory_bytes, weight_bytes + draft.weight_bytes, num_processes, beside)


def _find_draft(path, spec, *reading):
    if path is not None and spec.is_encoder:
        raise ConfigError("--draft-model guesses for an encoder, which generates no text")
    return None if path is None else DraftFiles(path, *reading)


def _look(check, draft):
    check()
    if draft is not None:
        draft.check_in_place()


def _pooling(checkpoint, asked):
    """How vectors are made: as was asked, or as the files say."""
    pooling = checkpoint.pooling() if asked is None else Pooling(asked)
    if checkpoint.spec.is_encoder and (pooling is None or pooling.kind == RANK):
        raise ConfigError(
            f"{checkpoint.path} is an encoder, which makes embeddings alone, and its files do not "
            "say how: --pooling mean or cls does"
        )
    return pooling


def check_case(path: str, pooling: Pooling | None, tokenizer: ModelTokenizer) -> None:
    """Refuse, by ModelFileError, a model of texts in lower case whose tokenizer keeps capitals."""
    if pooling is None or not pooling.lowers_case:
        return
    if tokenizer.encode("GR\u00d6SSE Two") != tokenizer.encode("gr\u00f6sse two"):
        message = "do_lower_case is true, but the tokenizer keeps capitals; nobody else lowers them"
        raise ModelFileError(os.path.join(path, "sentence_bert_config.json"), message)


class _Sizes(NamedTuple):
    """What a model's steps hold."""

    context: int
    paging: Paging
    step_tokens: int
    max_sequences: int
    draft_tokens: int

    @property
    def max_logits(self) -> int:
        return self.max_sequences + self.draft_tokens


def _step_sizes(batching):
    """(tokens, requests) of a step."""
    max_sequences = min(batching.max_sequences, batching.num_blocks) if batching else 1
    return max(PREFILL_STEP_TOKENS, max_sequences), max_sequences


def _sizes(spec, budget, max_context_tokens, batching, speculative):
    step_tokens, max_sequences = _step_sizes(batching)
    guessing = max_sequences if speculative else 0
    draft_tokens = min(MAX_STEP_DRAFT_TOKENS, guessing * MAX_DRAFT_TOKENS)
    if batching is None:
        max_logits = max_sequences + draft_tokens
        context = _context_tokens(spec, budget, max_context_tokens, max_logits)
        paging = Paging.of_one(spec, context, step_tokens, draft_tokens)
    else:
        context, paging = _paged(spec.config, batching, max_context_tokens)
        paging = paging.with_windows(spec, max_sequences, step_tokens)
        paging = paging.with_states(spec, max_sequences, draft_tokens)
        if paging.num_states and paging.num_blocks == 1:
            raise ConfigError("this model has states at the ends of blocks: --num-kv-blocks 2")
    return _Sizes(context, paging, step_tokens, max_sequences, draft_tokens)


def _encoder_sizes(spec, _budget, max_context_tokens, batching, speculative):
    own = spec.config.max_context_tokens
    if max_context_tokens is not None:
        _check_wanted(max_context_tokens, own, own)
    if batching or speculative:
        logger.warning(
            "an encoder computes many texts in a step, and guesses nothing: --enable-batching and "
            "--speculative change nothing"
        )
    return EncoderSizes.of(max_context_tokens or own)


def _new_pooler(pooling, tokenizer, is_whole):
    """ServedModel.new_pooler; a model that ranks has a token for yes and one for no."""
    if pooling is None:
        return None
    if pooling.kind != RANK:
        return partial(Pooler, pooling, is_whole=is_whole)
    found = [tokenizer.encode(word, add_special_tokens=False) for word in ("yes", "no")]
    if [len(token_ids) for token_ids in found] != [1, 1]:
        raise ConfigError("--pooling rank is for models with one token for each of yes and no")
    return partial(Pooler, pooling, (found[0][0], found[1][0]))


def _slabs(device, share):
    if share is None:
        return PrivateSlabs(device)
    return SharedSlabs(device, share.weights_fd, filled=not share.writes_weights)


def _log_memory(name, device, kv_bytes):
    """Say what is held."""
    info = device.info()
    held = info["allocated_bytes"] + info["mapped_bytes"]
    kind = f"{info['num_threads']} threads" if info["kind"] == "cpu" else info["kind"]
    logger.info(
        "%s on %s (%s, %s): %d MiB of %d, %d of them KV cache",
        *(name, info["name"], info["isa"], kind),
        *(held >> 20, info["memory_bytes"] >> 20, kv_bytes >> 20),
    )


def _paged(config, batching, wanted):
    """(context, Paging) of a cache that requests share; one request may use up all blocks."""
    own, held = config.max_context_tokens, batching.num_blocks * batching.block_size
    blocks = f"{batching.num_blocks} KV blocks of {batching.block_size} tokens"
    context = min(own, held)
    if wanted is not None:
        _check_wanted(wanted, own, context, f", and {blocks} hold {held}")
        context = wanted
    elif held < own:
        logger.warning(
            "context limited to %d of the model's %d tokens by %s; --num-kv-blocks sets them",
            *(held, own, blocks),
        )
    table_stride = min(batching.num_blocks, -(-context // batching.block_size))
    return context, Paging(batching.num_blocks, batching.block_size, table_stride)


def _check_wanted(wanted, own, most, more=""):
    if not CONTEXT_STEP <= wanted <= most:
        takes = f"this model takes {CONTEXT_STEP} to {own}{more}"
        raise ConfigError(f"the context is {wanted} tokens; {takes}")


def _context_tokens(spec, budget, wanted, max_logits):
    """Length of the contiguous KV cache; what is too long for the memory is refused later."""
    own = spec.config.max_context_tokens
    if wanted is not None:
        _check_wanted(wanted, own, own)
        return wanted // CONTEXT_STEP * CONTEXT_STEP
    sizes = StepSizes(PREFILL_STEP_TOKENS, max_logits, Paging.contiguous(own).max_splits)
    more = PREFILL_STEP_TOKENS, max_logits - 1
    fits = budget.context_that_fits(spec, activation_bytes(spec, sizes), *more)
    if fits < own:
        logger.warning(
            "context limited to %d of the model's %d tokens by the device's memory (at most %g%% "
            "of it for KV caches); --max-context sets it",
            *(fits, own, MAX_KV_MEMORY_SHARE * 100),
        )
    return max(CONTEXT_STEP, min(own, fits) // CONTEXT_STEP * CONTEXT_STEP)
