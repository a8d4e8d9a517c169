"""The same tokens give the same bits, however cut into steps and whoever else is in a step."""

import functools
from dataclasses import replace

import gguf_builder
import numpy as np
import pytest
from tiny_models import (
    INSTRUCTION_SETS,
    greedy_chunk,
    logits_by_chunks,
    logits_of_positions,
    prefill,
    random_tensors,
    random_tokens,
    running,
    tiny_config,
    tiny_gemma3_config,
    write_folder,
)

from marlin.commands.quantize import quantize
from marlin.models.registry import spec_of

# Past 256 tokens a context has two splits; 300 is no multiple of any tile.
LENGTH = 300
SIZES = {"hidden_dim": 256, "intermediate_dim": 256, "num_heads": 4, "head_dim": 64}
# Of Gemma 3, layers with a window lie between those without; the others are Llamas.
FORMATS = ("f32", "f16", "fp4", "int4", "int8", "Q4_K", "Q6_K", "gemma3 f32", "gemma3 int4")
# Every format on every set; of the scalar set, whose bits are the others' (tests/native) and which
# takes longest, a float and an integer one, and the others with -m long.
SCALAR_FORMATS = ("f32", "gemma3 int4")
PAIRS = [
    pytest.param(
        *(form, isa),
        marks=[pytest.mark.long] if isa == "scalar" and form not in SCALAR_FORMATS else [],
    )
    for form in FORMATS
    for isa in INSTRUCTION_SETS
]
on_every_set = pytest.mark.parametrize(("model_path", "isa"), PAIRS, indirect=["model_path"])


def write_model(folder, form):
    """A model whose matrices are all of one form; returns its path."""
    *family, form = form.split()
    config = tiny_gemma3_config(**SIZES) if family else tiny_config(**SIZES)
    tensors = random_tensors(config, seed=1)
    if form in ("Q4_K", "Q6_K"):
        return write_random_gguf(folder / "m.gguf", config, form)
    if form == "f16":
        tensors = {name: values.astype(np.float16) for name, values in tensors.items()}
    path = write_folder(folder / "source", config, tensors)
    if form in ("f32", "f16"):
        return path
    quantize(path, folder / "native", form, 32, progress=lambda done, total: None)
    return folder / "native"


def write_random_gguf(path, config, kind):
    """A llama GGUF whose matrices are random blocks of a K type: bits to compare, not to read."""
    rng = np.random.default_rng(1)
    metadata = [
        ("general.architecture", "str", "llama"),
        ("llama.context_length", "u32", 512),
        ("llama.embedding_length", "u32", config.hidden_dim),
        ("llama.block_count", "u32", config.num_layers),
        ("llama.feed_forward_length", "u32", config.intermediate_dim),
        ("llama.attention.head_count", "u32", config.num_heads),
        ("llama.attention.head_count_kv", "u32", config.num_kv_heads),
        ("llama.attention.key_length", "u32", config.head_dim),
        ("llama.attention.layer_norm_rms_epsilon", "f32", config.rms_norm_eps),
    ]
    tensors = []
    for tensor in spec_of(config).tensors:
        shape = tensor.shape
        if not tensor.is_matrix:
            tensors.append((tensor.gguf, "F32", shape, gguf_builder.f32(np.ones(shape))))
            continue
        block_bytes, factor = {"Q4_K": (144, slice(0, 4)), "Q6_K": (210, slice(208, 210))}[kind]
        blocks = rng.integers(0, 256, (shape[0] * shape[1] // 256, block_bytes), np.uint8)
        # Random bits of a float16 factor could be NaN: 0.0002 makes weights of a few hundredths.
        half = np.full((len(blocks), (factor.stop - factor.start) // 2), 2e-4, np.float16)
        blocks[:, factor] = half.view(np.uint8)
        tensors.append((tensor.gguf, kind, shape, blocks.tobytes()))
    path.write_bytes(gguf_builder.build(metadata, tensors))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each form's model, written once."""
    return functools.cache(lambda form: write_model(tmp_path_factory.mktemp("model"), form))


@pytest.fixture(params=FORMATS)
def model_path(request, models):
    return models(request.param)


@on_every_set
def test_one_prefill_chunks_and_decode_steps_give_the_same_bits(model_path, isa):
    token_ids = random_tokens(LENGTH, 97)
    with running(model_path, isa=isa, max_step_tokens=LENGTH, sequences=16) as runner:
        decoded = logits_of_positions(runner, token_ids)
        assert np.isfinite(decoded).all() and decoded.std() > 0.1
        for sizes in ([LENGTH], [16], [7], [1, 130, 33]):
            found = logits_by_chunks(runner, token_ids, sizes)
            assert LENGTH - 1 in found
            for position, logits in found.items():
                np.testing.assert_array_equal(logits, decoded[position], f"{sizes} {position}")


@on_every_set
def test_decode_one_token_a_step_gives_the_bits_of_a_prefill(model_path, isa):
    token_ids = random_tokens(40, 97)
    with running(model_path, isa=isa) as runner:
        one_by_one = logits_by_chunks(runner, token_ids, [1])
        for position, logits in logits_by_chunks(runner, token_ids, [7]).items():
            np.testing.assert_array_equal(logits, one_by_one[position])


@on_every_set
def test_a_sequence_gives_the_same_bits_alone_and_between_others_in_scattered_blocks(
    model_path, isa
):
    ours, other = random_tokens(90, 97, seed=1), random_tokens(61, 97, seed=2)
    with running(model_path, isa=isa) as runner:
        alone = logits_by_chunks(runner, ours, [60, 20, 1])
    table, other_table = (5, 0, 7), (2, 6)
    with running(model_path, isa=isa, sequences=3, blocks=(8, 32)) as runner:
        chunks = [
            greedy_chunk(other[:4], 0, other_table),
            greedy_chunk(ours[:60], 0, table),
        ]
        runner.step(chunks)
        np.testing.assert_array_equal(runner.logits[1], alone[59])
        chunks = [greedy_chunk(ours[60:80], 60, table), greedy_chunk(other[4:41], 4, other_table)]
        runner.step(chunks)
        np.testing.assert_array_equal(runner.logits[0], alone[79])
        for at in range(80, 90):
            other_at = at - 80 + 41
            chunks = [
                greedy_chunk(other[other_at : other_at + 1], other_at, other_table),
                greedy_chunk(ours[at : at + 1], at, table),
            ]
            runner.step(chunks)
            np.testing.assert_array_equal(runner.logits[1], alone[at])


@on_every_set
def test_guesses_checked_in_one_step_give_the_bits_of_decode_steps(model_path, isa):
    """Runs of 1 to 9 rows, up to and over the end of the first split of 256 tokens, among decodes
    alone and beside a prompt, over what wrong guesses left in the cache."""
    token_ids, wrong = random_tokens(265, 97), random_tokens(25, 97, seed=2)
    table, prompt = (3, 0, 1, 4, 7, 2, 6, 5, 8), greedy_chunk(wrong[:11], 0, (9,))
    with running(model_path, isa=isa, sequences=2, blocks=(10, 32), drafts=16) as runner:
        prefill(runner, token_ids[:240], table)
        decoded = {}
        for position in range(240, 265):
            runner.step([greedy_chunk([token_ids[position]], position, table)])
            decoded[position] = runner.logits[0].copy()
        for before in ([], [prompt]):
            runner.step([greedy_chunk(wrong, 240, table)])
            for start, end in ((240, 242), (242, 245), (245, 253), (252, 257), (256, 265)):
                chunk = greedy_chunk([token_ids[start]], start, table)
                draft = tuple(token_ids[start + 1 : end])
                runner.step([*before, replace(chunk, draft_token_ids=draft)])
                for row, position in enumerate(range(start, end), start=len(before)):
                    np.testing.assert_array_equal(runner.logits[row], decoded[position])


def test_the_number_of_threads_changes_no_bit(model_path):
    token_ids = random_tokens(LENGTH, 97)
    found = []
    for num_threads in (1, 2, 3):
        with running(model_path, num_threads=num_threads, max_step_tokens=128) as runner:
            prefill(runner, token_ids[:-1])
            found.append(logits_by_chunks(runner, token_ids, [1], start=LENGTH - 1)[LENGTH - 1])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
