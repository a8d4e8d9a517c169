"""What other writers of GGUF files lay out or call otherwise gives the bits of the usual file:
gates and ups of all experts in one tensor, a tensor for each expert, and gpt-oss as Ollama writes
it."""

from pathlib import Path

import numpy as np
import pytest
from gguf_builder import build
from tiny_models import logits_of_positions, running

from marlin.errors import ModelFileError
from marlin.models.plan_gguf import plan_gguf
from marlin.models.source import open_source
from marlin.weights.gguf import GGUFFile
from marlin.weights.gguf_parts import read_gguf
from marlin.weights.tensor_file import read_bytes

CONVERTED = Path(__file__).parents[1] / "data" / "families"


def parts_of(path):
    """(metadata as the builder takes it, {name: (dtype, shape, bytes)}) of a file."""
    file, metadata = GGUFFile(path), []
    for key, value in file.metadata.items():
        kind = {str: "str", int: "u32", float: "f32", bool: "bool"}.get(type(value))
        if kind is None:
            kind = "arr:str" if isinstance(value, list) else "arr:i32"
        metadata.append((key, kind, value))
    return metadata, {
        name: (info.dtype, info.shape, read_bytes(info)) for name, info in file.tensors.items()
    }


def write(path, metadata, tensors):
    entries = [(name, dtype, shape, bytes(raw)) for name, (dtype, shape, raw) in tensors.items()]
    path.write_bytes(build(metadata, entries))
    return path


def joined(gate, up, in_turns):
    """A tensor of all experts that holds both."""
    dtype, (count, rows, *columns), _ = gate
    pair = [part[2].reshape(count, rows, -1) for part in (gate, up)]
    raw = np.stack(pair, axis=2) if in_turns else np.concatenate(pair, axis=1)
    return dtype, (count, 2 * rows, *columns), np.ascontiguousarray(raw).reshape(-1)


def join_experts(tensors, in_turns):
    for name in [name for name in tensors if "ffn_gate_exps" in name]:
        up = tensors.pop(name.replace("gate", "up"))
        tensors[name.replace("gate_exps", "gate_up_exps")] = joined(tensors.pop(name), up, in_turns)


def in_pairs(tensor):
    """MXFP4 as Ollama first wrote it: a byte has two neighbours."""
    _, shape, raw = tensor
    blocks = raw.reshape(-1, 17)
    codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    pairs = codes[:, 0::2] | codes[:, 1::2] << 4
    return "MXFP4_PAIRS", shape, np.concatenate([blocks[:, :1], pairs], axis=1).reshape(-1)


UNSAID = ("rope.scaling.type", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
          "expert_feed_forward_length")  # fmt: skip
OLLAMA = {
    "attn_output.": "attn_out.",
    "attn_sinks.weight": "attn_sinks",
    "post_attention_norm.": "ffn_norm.",
}


def as_ollama(metadata, tensors, pairs):
    """The same model in Ollama's words, with q, k and v in one tensor."""
    found = [(key.replace("gpt-oss.", "gptoss."), kind, value) for key, kind, value in metadata
             if not key.endswith(UNSAID) and key != "general.architecture"]  # fmt: skip
    found.append(("general.architecture", "str", "gptoss"))
    found.append(("tokenizer.ggml.eos_token_ids", "arr:i32", [2, 5, 7]))
    join_experts(tensors, in_turns=True)
    for name in [name for name in tensors if "attn_q." in name]:
        three = [tensors.pop(name.replace("attn_q", f"attn_{word}")) for word in "qkv"]
        rows = sum(part[1][0] for part in three)
        shape = rows, *three[0][1][1:]
        raw = np.concatenate([part[2] for part in three])
        tensors[name.replace("attn_q", "attn_qkv")] = three[0][0], shape, raw
    renamed = {}
    for name, tensor in tensors.items():
        for usual, own in OLLAMA.items():
            name = name.replace(usual, own)
        renamed[name] = in_pairs(tensor) if pairs and tensor[0] == "MXFP4" else tensor
    return found, renamed


def logits_from(path, token_ids):
    with running(path, sequences=16) as runner:
        return logits_of_positions(runner, token_ids)


@pytest.fixture(scope="module", params=["gpt_oss_mxfp4", "qwen3_moe"])
def usual(request):
    """(metadata, tensors, token ids, logits) of a file of llama.cpp's converter."""
    path = CONVERTED / f"{request.param}.gguf"
    token_ids = np.load(CONVERTED / f"{request.param}.ids.npy").reshape(-1).tolist()[:40]
    return path, token_ids, logits_from(path, token_ids)


def test_gates_and_ups_in_one_tensor_give_the_same_bits(usual, tmp_path):
    path, token_ids, expected = usual
    metadata, tensors = parts_of(path)
    join_experts(tensors, in_turns=False)
    fused = write(tmp_path / "fused.gguf", metadata, tensors)
    np.testing.assert_array_equal(logits_from(fused, token_ids), expected)
    of_path, of_fused = (
        {at.name: at.rows(3, 17) for at in open_source(one).tensors if "_proj.weight" in at.name}
        for one in (path, fused)
    )
    for name, values in of_path.items():
        np.testing.assert_array_equal(of_fused[name], values)


@pytest.mark.parametrize("usual", ["qwen2_moe"], indirect=True)
def test_a_matrix_of_one_row_may_be_a_vector(usual, tmp_path):
    path, token_ids, expected = usual
    metadata, tensors = parts_of(path)
    for name in [name for name in tensors if "ffn_gate_inp_shexp" in name]:
        dtype, shape, raw = tensors[name]
        tensors[name] = dtype, shape[1:], raw
    vectors = write(tmp_path / "vectors.gguf", metadata, tensors)
    np.testing.assert_array_equal(logits_from(vectors, token_ids), expected)


@pytest.mark.parametrize("pairs", [False, True], ids=["ggml's blocks", "its own blocks"])
@pytest.mark.parametrize("usual", ["gpt_oss_mxfp4"], indirect=True)
def test_gpt_oss_as_ollama_writes_it_gives_the_same_bits(usual, pairs, tmp_path):
    path, token_ids, expected = usual
    ollama = write(tmp_path / "ollama.gguf", *as_ollama(*parts_of(path), pairs))
    np.testing.assert_array_equal(logits_from(ollama, token_ids), expected)
    assert plan_gguf(read_gguf(ollama))[0].config.eos_token_ids == (2, 5, 7)


def broken(what, tensors):
    name = "blk.1.ffn_gate_up_exps.weight"
    dtype, _, raw = tensors[name]
    if what == "is there, too":
        tensors["blk.1.ffn_up_exps.weight"] = dtype, (8, 64, 64), raw[: len(raw) // 2]
    elif what == "is not a tensor":
        tensors["blk.9.ffn_gate_up_exps.weight"] = dtype, (8, 3, 64), raw[: 8 * 3 * 34]
    else:
        tensors[name] = dtype, (8, 64, 64), raw[: len(raw) // 2]


@pytest.mark.parametrize("what", ["is there, too", "is not a tensor", "has shape"])
def test_a_wrong_tensor_of_gates_and_ups_is_refused_by_name(what, tmp_path):
    metadata, tensors = parts_of(CONVERTED / "gpt_oss_mxfp4.gguf")
    join_experts(tensors, in_turns=False)
    broken(what, tensors)
    path = write(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(ModelFileError, match=what) as caught:
        plan_gguf(read_gguf(path))
    assert "gate" in str(caught.value)


def apart(tensors):
    """As the converter once wrote Mixtral: matrices of one expert each, in no order."""
    for name in [name for name in tensors if name.endswith("_exps.weight")]:
        dtype, (count, *shape), raw = tensors.pop(name)
        for expert in reversed(range(count)):
            single = name.replace("_exps.weight", f".{expert}.weight")
            tensors[single] = dtype, shape, raw.reshape(count, -1)[expert]
    return tensors


def test_a_tensor_for_each_expert_gives_the_same_bits(tmp_path):
    path = CONVERTED / "mixtral.gguf"
    token_ids = np.load(CONVERTED / "mixtral.ids.npy").reshape(-1).tolist()
    metadata, tensors = parts_of(path)
    old = write(tmp_path / "old.gguf", metadata, apart(tensors))
    np.testing.assert_array_equal(logits_from(old, token_ids), logits_from(path, token_ids))
    mine, other = (
        {at.name: at.rows(3, 29) for at in open_source(one).tensors if ".experts." in at.name}
        for one in (old, path)
    )
    assert len(mine) == 6 and mine.keys() == other.keys()
    for name, rows in mine.items():
        np.testing.assert_array_equal(rows, other[name])


OLD = "blk.1.ffn_up"


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda tensors: tensors.pop(f"{OLD}.2.weight"), rf"{OLD}\.2\.weight.*is missing beside"),
        (lambda tensors: tensors.pop(f"{OLD}.3.weight"), r"ffn_up.*\[3, 32, 32\]"),
        (
            lambda tensors: tensors.update({f"{OLD}.1.weight": ("F16", (32, 32), bytes(2048))}),
            rf"{OLD}\.1\.weight.*F16 \[32, 32\], and expert 0's F32 \[32, 32\]",
        ),
        (
            lambda tensors: tensors.update({f"{OLD}_exps.weight": ("F32", (32, 32), bytes(4096))}),
            f"{OLD}_exps.weight, which is there, too",
        ),
    ],
)
def test_experts_that_make_no_whole_are_refused_by_name(change, says, tmp_path):
    metadata, tensors = parts_of(CONVERTED / "mixtral.gguf")
    change(apart(tensors))
    with pytest.raises(ModelFileError, match=says):
        plan_gguf(read_gguf(write(tmp_path / "old.gguf", metadata, tensors)))
