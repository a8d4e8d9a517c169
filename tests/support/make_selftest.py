"""Writes marlin/commands/selftest.safetensors, the vectors of `metal-marlin selftest`:

    python3 tests/support/make_selftest.py

Inputs are random with fixed seeds; answers are tests/support/reference.py's. A test makes them
again and compares. Activations are whole multiples of a power of two, at most 127 of them, so that
a device that quantizes them to int8 loses nothing and owes the same answer as one that does not.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "device")]

import reference
import reference_experts
from kv_case import make_case
from matrices import bias_of
from selftest_fused import fused_cases
from selftest_state import delta_cases, latent_cases, state_cases
from selftest_writer import (
    EXACT,
    FLOAT16,
    CaseWriter,
    Tensor,
    activations,
    matrices,
    normal,
    room,
    weight_of,
)

from marlin.device import abi, ops, ops_experts
from marlin.weights import ggml_types
from marlin.weights.block_types import REPACKED

VECTORS = ROOT / "marlin" / "commands" / "selftest.safetensors"


def embed_cases():
    token_ids = np.array([0, 32, 15, 16, 16, 1], np.int32)
    for kind, weight, values, sizes in matrices(33, 128):
        case = CaseWriter(f"embed {kind}", tokens=len(token_ids))
        ops.embed(case, Tensor("ids", token_ids), weight_of(weight), room("y", 6, 128))
        yield case.answer("y", reference.Expected(values[token_ids], sizes[token_ids]))
        if kind not in ("bf16", "int4-32"):
            continue
        case, ids = CaseWriter(f"embed {kind}, scaled", tokens=2), token_ids[1:3]
        y = room("y", 2, 128)
        ops.embed(case, Tensor("ids", ids), weight_of(weight), y, scale=11.3125)
        yield case.answer("y", reference.Expected(values[ids] * 11.3125, sizes[ids] * 11.3125))


def linear_cases():
    for kind, weight, values, sizes in matrices(33, 128):
        for rows, many_rows in ((1, False), (3, False), (17, False), (37, True), (5, True)):
            newer = kind.startswith(("int5", "int6", "iq4", "fp8", "nf4"))
            again = rows > (5 if kind in ("int8-64", "fp4-64") else 17) and kind.endswith("-64")
            if again or (rows > 5 and newer):
                continue  # what cuts rows into blocks is the same as of the other packed kinds
            bias = bias_of(33) if rows == 3 else None
            op = "matmul" if many_rows else "matvec"
            case = CaseWriter(f"{op} {kind}, {rows} rows", tokens=rows)
            x = activations(rows, 128, seed=rows)
            ops.linear(
                case,
                Tensor("x", x),
                weight_of(weight),
                room("y", rows, 33),
                bias=None if bias is None else Tensor("bias", bias),
                many_rows=many_rows,
            )
            yield case.answer("y", reference.linear(x, values, bias, sizes))


def row_cases():
    x, delta, weight = normal(5, 200), normal(5, 200, seed=2), normal(200, seed=1)
    case = CaseWriter("rms_norm of a sum", tokens=5)
    tensors = Tensor("x", x), Tensor("w", weight), room("y", 5, 200)
    ops.rms_norm(case, *tensors, 200, 1e-5, delta=Tensor("delta", delta))
    expected, summed = reference.rms_norm(x, weight, 1e-5, delta)
    yield case.answer("y", expected).answer("x", summed)

    case = CaseWriter("rms_norm of a scaled sum, added", tokens=5)
    before = normal(5, 200, seed=3)
    tensors = Tensor("x", x), Tensor("w", weight), Tensor("y", before)
    options = {"delta": Tensor("delta", delta), "delta_scale": 0.22, "adds": True}
    ops.rms_norm(case, *tensors, 200, 1e-5, **options)
    expected, summed = reference.rms_norm(x, weight, 1e-5, delta, 0.22, before)
    yield case.answer("y", expected).answer("x", summed)

    heads, weight = normal(15, 80) * 40, normal(80, seed=1)
    case, tensor = CaseWriter("rms_norm of heads, in place", tokens=5), Tensor("x", heads)
    ops.rms_norm(case, tensor, Tensor("w", weight), tensor, 80, 1e-6, rows_per_var=3)
    yield case.answer("x", reference.rms_norm(heads, weight, 1e-6)[0])

    rows = np.array([16, 0, 3, 3, 15], np.int32)
    case, x = CaseWriter("gather_rows", logits=5), normal(17, 33)
    ops.gather_rows(case, Tensor("rows", rows), Tensor("x", x), room("y", 5, 33), 33)
    yield case.answer("y", x[rows], EXACT)


def gate_cases():
    gate, up = normal(2, 1100) * 5, normal(2, 1100, seed=1)
    case = CaseWriter("silu_mul", tokens=2)
    ops.silu_mul(case, Tensor("gate", gate), Tensor("up", up), room("y", 2, 1100), 1100)
    yield case.answer("y", reference.silu_mul(gate, up))

    case = CaseWriter("gelu_mul", tokens=2)
    ops.gelu_mul(case, Tensor("gate", gate), Tensor("up", up), room("y", 2, 1100), 1100)
    yield case.answer("y", reference.gelu_mul(gate, up))

    gate, up = gate[:, :70].copy(), up[:, :70].copy()
    case = CaseWriter("sigmoid_mul", tokens=2)
    ops.sigmoid_mul(case, Tensor("gate", gate), Tensor("up", up), room("y", 2, 70), 70)
    yield case.answer("y", reference.sigmoid_mul(gate, up))

    for cap in (0.0, 5.0):
        case = CaseWriter(f"scale_rows, cap {cap:g}", logits=2)
        ops.scale_rows(case, Tensor("gate", gate), room("y", 2, 70), 70, 0.5, cap)
        yield case.answer("y", reference.scale_rows(gate, 0.5, cap))

    x, delta, weight, bias = normal(2, 40), normal(2, 40, seed=2), normal(40), normal(40, seed=3)
    case = CaseWriter("layer_norm of a sum", tokens=2)
    tensors = Tensor("x", x), Tensor("w", weight), Tensor("b", bias), room("y", 2, 40)
    ops.layer_norm(case, *tensors, 40, 1e-5, delta=Tensor("delta", delta))
    expected, summed = reference.layer_norm(x, weight, bias, 1e-5, delta)
    yield case.answer("y", expected).answer("x", summed)

    case = CaseWriter("gelu", tokens=2)
    ops.gelu(case, Tensor("x", x), room("y", 2, 40), 40)
    yield case.answer("y", reference.gelu(x))


def expert_cases():
    """A mixture from logits to the sum of what experts made; the clamped gate."""
    logits = normal(5, 4, seed=3)
    router = ops_experts.Router(4, 2, "softmax", True)
    ids, shares = reference_experts.route(logits, "softmax", 2, True)
    names = ("ids", "weights", "order")
    x = activations(5, 64, seed=7)
    for kind, weight, values, sizes in matrices(4 * 16, 64):
        for op in ("matvec", "matmul"):
            case = CaseWriter(f"{op} experts {kind}", tokens=5)
            views = [room(name, 5, 2) for name in names]
            choices = ops_experts.Choices(*views, room("groups", 4, 3))
            ops_experts.route(case, Tensor("logits", logits), None, router, choices)
            w = weight_of(weight)._replace(n=16, num_experts=4)
            y, out, many = room("made", 5, 2, 16), room("y", 5, 16), op == "matmul"
            ops_experts.experts(case, Tensor("x", x), w, y, 1, choices, 2, many_rows=many)
            ops_experts.combine_experts(case, y, choices.weights, out, 16, 2)
            made = reference.linear(x, values, None, sizes)
            parts = [part.reshape(5, 4, 16) for part in made]
            value, size = (
                (np.take_along_axis(part, ids[:, :, None], 1) * shares[:, :, None]).sum(axis=1)
                for part in parts
            )
            yield case.answer("y", reference.Expected(value, 4 * size))

    gate, up = normal(2, 70) * 6, normal(2, 70, seed=1) * 6
    case = CaseWriter("swiglu_mul", tokens=2)
    ops.swiglu_mul(case, Tensor("gate", gate), Tensor("up", up), room("y", 2, 70), 70)
    yield case.answer("y", reference_experts.swiglu_mul(gate, up))


def rope_table_cases():
    positions = np.array([0, 1, 17, 255, 8191, 131071], np.int32)
    inv_freq = (10000.0 ** -(np.arange(24) / 24)).astype(np.float32)
    case = CaseWriter("rope_table", tokens=6)
    tensors = Tensor("positions", positions), Tensor("inv_freq", inv_freq), room("table", 6, 2, 24)
    ops.rope_table(case, *tensors, 24, 1.19)
    yield case.answer("table", reference.rope_table(positions, inv_freq, 1.19))


def rope_cases():
    yield from rope_table_cases()
    num_heads, num_kv_heads, head_dim, block_size, num_blocks = 3, 1, 48, 32, 2
    layout = ops.KvLayout(num_blocks, block_size, num_blocks, num_kv_heads, head_dim)
    q, k, v = (normal(17, n, head_dim, seed=n) for n in (num_heads, num_kv_heads, num_kv_heads))
    table = reference.rope_table(np.arange(17) * 7, normal(24) ** 2, 1.0).value.astype(np.float32)
    slots = np.random.default_rng(17).permutation(num_blocks * block_size)[:17].astype(np.int32)
    k_cache = np.full((num_blocks, num_kv_heads, block_size // 16, head_dim, 16), 7, np.float16)
    v_cache = np.full((num_blocks, num_kv_heads, block_size, head_dim), 9, np.float16)
    v[0, 0, :4] = 1e6, -1e6, 2.0**-24, 0
    arrays = {"q": q, "k": k, "v": v, "table": table, "slots": slots}
    arrays["beyond"] = np.zeros(17, np.int32)
    arrays |= {"k_cache": k_cache.copy(), "v_cache": v_cache.copy()}
    tensors = [Tensor(name, array) for name, array in arrays.items()]
    case = CaseWriter("rope_kv_write", tokens=17)
    ops.rope_kv_write(case, tensors[:3], tensors[3:6], tensors[6:], layout, num_heads)
    for name in "qk":
        turned = reference.rotate(arrays[name], table)
        case.answer(name, reference.Expected(turned, np.abs(turned) + 1))
    reference.write_kv(k_cache, v_cache, turned, v, slots)
    case.answer("beyond", np.array([1] + [0] * 16, np.int32))
    yield case.answer("k_cache", k_cache, FLOAT16).answer("v_cache", v_cache, FLOAT16)

    arrays = {name: array[:2].copy() for name, array in arrays.items() if "cache" not in name}
    arrays["table"] = arrays["table"][:, :, :9].copy()
    k_cache, v_cache = np.full_like(k_cache, 7), np.full_like(v_cache, 9)
    arrays |= {"k_cache": k_cache.copy(), "v_cache": v_cache.copy()}
    tensors = [Tensor(name, array) for name, array in arrays.items()]
    case = CaseWriter("rope_kv_write, normed, neighbours of a part", tokens=2)
    weights = {f"{name}_norm": normal(head_dim, seed=i) for i, name in enumerate("qk")}
    rest = (18, True), (*(Tensor(name, weight) for name, weight in weights.items()), 1e-3)
    ops.rope_kv_write(case, tensors[:3], tensors[3:6], tensors[6:], layout, num_heads, *rest)
    normed = [reference.rms_norm(arrays[name], weights[f"{name}_norm"], 1e-3)[0] for name in "qk"]
    q, k = (reference.rotate(x.value, arrays["table"], True) for x in normed)
    reference.write_kv(k_cache, v_cache, k, arrays["v"], arrays["slots"])
    case.answer("q", reference.Expected(q, np.abs(q) + 1))
    yield case.answer("k_cache", k_cache, FLOAT16)


def attention_cases():
    """Chunks and single tokens over one split of 256 and two; windows; a contiguous cache."""
    for name, case in {
        "paged": make_case([(37, 20), (16, 1)], num_heads=4, num_kv_heads=2, head_dim=16),
        "long": make_case([(270, 1)], num_heads=4, num_kv_heads=2, head_dim=16),
        "contiguous, window": make_case(
            [(260, 3)], num_heads=3, num_kv_heads=1, block_size=None, window=100
        ),
        "capped and grown": make_case(
            [(20, 5)], loudness=8.0, softcap=5.0, position_scale=0.4, scale_tokens=8
        ),
        "sinks": make_case([(20, 5)], window=9, sinks=np.array([3, -1], np.float32)),
    }.items():
        expected = case.expected()
        tensors = {name: Tensor(name, getattr(case, name)) for name in ("q", "tables", "tiles")}
        caches = Tensor("k_cache", case.k_cache), Tensor("v_cache", case.v_cache)
        layout, num_heads = case.layout, case.q.shape[1]
        inputs = ops.AttentionInputs(
            *(tensors[name] for name in ("tables", "tiles")),
            *(layout, num_heads, case.window, case.scale),
            **{
                name: Tensor(name, value) if name == "sinks" else value
                for name, value in case.scores.items()
            },
        )
        out = room("out", *case.q.shape)
        writer = CaseWriter(f"attention, {name}", tiles=len(case.tiles))
        ops.attention(writer, tensors["q"], caches, inputs, out)
        yield writer.answer("out", expected)
        partials = room("partials", *case.q.shape[:2], layout.max_splits, layout.head_dim + 2)
        if case.num_splits == 1:  # they are left as they are
            partials = Tensor("partials", np.zeros(1, np.float32), partials.num_bytes)
        writer = CaseWriter(f"split attention, {name}", 0, len(case.tiles), 0, case.num_splits)
        ops.split_attention(writer, tensors["q"], caches, inputs, partials, out)
        yield writer.answer("out", expected)


def sample_rows(settings):
    """SampleRow [rows] of (mapping, seed, position)."""
    rows = np.zeros(len(settings), abi.PARAMS["SampleRow"])
    neutral = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
    for row, (values, seed, position) in zip(rows, settings, strict=True):
        for name, value in (neutral | values).items():
            row[name] = value
        row["seed_low"], row["seed_high"], row["position"] = seed & 0xFFFFFFFF, seed >> 32, position
    return rows


def sample_cases():
    """Draws whose result does not hang on a sum's last bit: among equals, or of one survivor."""
    vocab_size, seed = 500, (7 << 32) + 3
    logits = (normal(9, vocab_size) * 2).astype(np.float32)
    greedy, one_left = {"temperature": 0.0}, {"temperature": 0.8}
    settings = [(greedy, 0, 0), (greedy, 0, 1), ({"top_k": 1, "temperature": 5.0}, seed, 2)]
    settings += [(one_left | {"top_p": 0.5}, seed, 3), (one_left | {"min_p": 0.5}, seed, 4)]
    settings += [({}, seed, position) for position in (5, 6, 7, 100_000)]
    expected = logits.argmax(axis=1)
    logits[1, [40, 400]] = 50
    logits[3, 333], logits[4, 77] = 60, 60
    expected[1], expected[3], expected[4] = 40, 333, 77
    logits[5:] = 0
    for row in range(5, 9):
        expected[row] = int(reference.uniform(seed, settings[row][2]) * vocab_size)
    case = CaseWriter("sample", logits=9)
    tensors = Tensor("logits", logits), Tensor("rows", sample_rows(settings).view(np.uint8))
    ops.sample(case, *tensors, room("ids", 9), vocab_size)
    yield case.answer("ids", expected.astype(np.int32), EXACT)

    logits = (normal(3, 100, seed=5) * 2).astype(np.float32)
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    entries = [[(3, 2, 0.0), (50, 0, 0.0), (99, -1, -100.0)], [], [(0, 1, 2.5), (64, -1, 1.0)]]
    rows = sample_rows([(penalties, 0, 0), ({}, 0, 0), (penalties, 0, 0)])
    starts = np.cumsum([0, *map(len, entries)]).astype(np.int32)
    flat = np.array([entry for row in entries for entry in row], abi.PARAMS["PenaltyEntry"])
    arrays = {"logits": logits, "entries": flat.view(np.uint8), "starts": starts}
    arrays["rows"] = rows.view(np.uint8)
    case = CaseWriter("penalize", logits=3)
    ops.penalize(case, *(Tensor(name, array) for name, array in arrays.items()), 100)
    value = np.stack(list(map(reference.penalize, logits, entries, rows)))
    yield case.answer("logits", reference.Expected(value, np.abs(value) + np.abs(logits)))


def mask_cases():
    """Two masks of three rows, and the likeliest tokens that they leave."""
    logits, masks = normal(3, 100, seed=9), np.zeros((2, 4), np.uint32)
    masks[0, 3], masks[1, 0] = 2, 1 << 31 | 1  # token 97 alone; tokens 0 and 31
    greedy_rows = Tensor("settings", sample_rows([({"temperature": 0.0}, 0, 0)] * 3).view(np.uint8))
    shown, ids = Tensor("logits", logits), room("ids", 3)
    case = CaseWriter("mask_logits", logits=3, masks=2)
    rows = Tensor("rows", np.array([2, 0], np.int32))
    ops.mask_logits(case, shown, Tensor("masks", masks.view(np.int32)), rows, 100)
    ops.sample(case, shown, greedy_rows, ids, 100)
    expected = [31 if logits[0, 31] > logits[0, 0] else 0, logits[1].argmax(), 97]
    yield case.answer("ids", np.array(expected, np.int32), EXACT)


def repack_cases():
    """Blocks are repacked, and the rows read back by the embedding kernel."""
    for ggml_type, row in REPACKED.items():
        n, k = (4, 256) if row.values == 256 else (17, max(64, row.values))
        rng = np.random.default_rng(len(ggml_type) + ord(ggml_type[1]))
        layout, _ = ggml_types.DECODERS[ggml_type]
        num_blocks = n * k // row.values
        raw = rng.integers(0, 256, num_blocks * layout.itemsize).astype(np.uint8)
        for field in sorted({"d", "m", "dmin"} & set(layout.names)):
            raw.view(layout)[field] = rng.standard_normal(num_blocks)
        if "e" in layout.names:
            raw.view(layout)["e"] = rng.integers(120, 134, num_blocks)
        flags = ops.weight_flags(row.scale_bytes, row.has_bias)
        names = ("codes", "scales", "biases")
        sizes = zip(names, row.part_bytes(n, k), strict=True)
        parts = [room(name, size, itemsize=1) if size else None for name, size in sizes]
        weight = ops.Weight(row.kind, n, k, parts[0], row.group_size, flags, *parts[1:])
        num_heads = 2 if ggml_type == "Q4_K" else 0
        case = CaseWriter(f"repack {ggml_type}", tokens=n)
        ops.repack(case, Tensor("blocks", raw), weight, row.number, num_heads)
        ids = Tensor("ids", np.arange(n, dtype=np.int32))
        ops.embed(case, ids, weight, room("y", n, k))
        values = ggml_types.dequantize(ggml_type, raw.reshape(n, -1), (n, k))
        if num_heads:
            values = values[reference.rope_row_order(n, num_heads)]
        # d * q and its bias cancel; one size for all is enough, since the largest bounds both.
        yield case.answer("y", reference.Expected(values, 2 * np.abs(values).max(keepdims=True)))


def probe_cases():
    """Low halves of 64-bit words alone, so that a sum of words of either size is the same."""
    words = np.random.default_rng(0).integers(0, 1 << 16, 64).astype(np.uint64)
    case = CaseWriter("probe_read")
    source = Tensor("x", words, num_bytes=2 * abi.PROBE_BYTES)
    ops.probe(case, "probe_read", 2, source, room("sums", 2))
    total = int(words.sum()) * (abi.PROBE_BYTES // words.nbytes)
    wrapped = np.array([total & 0xFFFFFFFF] * 2, np.uint32).view(np.int32)
    yield case.answer("sums", wrapped, EXACT)
    # What it computes is a device's own affair.
    case = CaseWriter("probe_dot")
    ops.probe(case, "probe_dot", 3, None, room("sums", 3))
    yield case


def make_vectors():
    """({name: array}, [fields of each case])."""
    makers = (
        embed_cases,
        linear_cases,
        fused_cases,
        row_cases,
        gate_cases,
        rope_cases,
        attention_cases,
    )
    makers += (
        state_cases,
        delta_cases,
        latent_cases,
        expert_cases,
        sample_cases,
        mask_cases,
        repack_cases,
        probe_cases,
    )
    cases = [case for maker in makers for case in maker()]
    tensors = {}
    for case in cases:
        tensors |= case.tensors()
    return tensors, [case.fields for case in cases]


def write(path):
    """Make the vectors and write them to a file; returns how many cases they are."""
    tensors, fields = make_vectors()
    metadata = {"cases": json.dumps(fields, separators=(",", ":"))}
    path.write_bytes(save(tensors, metadata))
    return len(fields)


if __name__ == "__main__":
    print(f"{VECTORS}: {write(VECTORS)} cases, {VECTORS.stat().st_size >> 10} KiB")
