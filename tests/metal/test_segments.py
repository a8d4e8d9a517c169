"""No command buffer that macOS would end: how a replay is cut, on the simulated Metal's own clock.

With SIMMETAL_CLOCK kernels take a time instead of running, so that matrices of real models cost
nothing here; SIMMETAL_KILL_MS ends what keeps the GPU for longer. That every segment waits for the
one before it is checked by the simulation itself (test_misuse.py).
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from marlin.device import ops
from marlin.device.program import Recorder, View
from marlin.errors import DeviceError

ROWS, DIM, CHAIN = 256, 4096, 36
# A matrix of 4096 by 4096 and 256 rows: 8.6e9 operations, 8.6 ms as the shim estimates; it has 256
# threadgroups. Nine of them are one segment, so a chain of 36 is four.
M1 = "matmul:33000"
SEGMENTS = 4


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kv_case = _load(Path(__file__).resolve().parents[1] / "device" / "kv_case.py")


@pytest.fixture
def chain(fresh, monkeypatch):
    """A program of 36 matrices, each of what the one before it gave, on a GPU as fast as an M1."""
    monkeypatch.setenv("SIMMETAL_CLOCK", M1)
    device = fresh()
    rows = [View.of(device.create(4 * ROWS * DIM)) for _ in range(2)]
    weight = ops.Weight("f16", DIM, DIM, View.of(device.create(2 * DIM * DIM)))
    recorder = Recorder(device)
    for i in range(CHAIN):
        ops.linear(recorder, rows[i % 2], weight, rows[(i + 1) % 2], many_rows=True)
    return recorder.finish()


@pytest.fixture
def segments(sim):
    """Run a program: how many command buffers it took."""

    def run(program, *variables):
        before = sim["committed"]
        program.run(*variables)
        return sim["committed"] - before

    return run


def test_a_long_replay_is_cut_before_macos_ends_it(chain, segments, monkeypatch):
    """As one command buffer it takes 304 ms."""
    monkeypatch.setenv("SIMMETAL_KILL_MS", "100")
    assert segments(chain, ROWS) == SEGMENTS


def test_a_short_replay_is_one_command_buffer(chain, segments):
    assert segments(chain, 16) == 1


def test_a_faster_gpu_gets_fewer_and_a_slower_one_more(chain, segments, monkeypatch):
    monkeypatch.setenv("SIMMETAL_CLOCK", "matmul:3300")
    counts = [segments(chain, ROWS) for _ in range(4)]
    assert counts == [4, 1, 1, 1]  # while the first is measured, two more are cut
    monkeypatch.setenv("SIMMETAL_CLOCK", "matmul:66000")
    segments(chain, ROWS)
    monkeypatch.setenv("SIMMETAL_KILL_MS", "100")
    assert segments(chain, ROWS) == 9  # four matrices each


def test_after_a_command_buffer_was_ended_the_next_ones_are_shorter(chain, segments, monkeypatch):
    monkeypatch.setenv("SIMMETAL_CLOCK", "matmul:99000")
    monkeypatch.setenv("SIMMETAL_KILL_MS", "100")
    with pytest.raises(DeviceError, match=r"from matmul_f16 on: the GPU failed: Impacting Inter"):
        segments(chain, ROWS)
    assert CHAIN // 3 <= segments(chain, ROWS) <= CHAIN // 2  # three take 77 ms


def test_the_simulation_ends_what_is_not_cut(chain, segments, monkeypatch):
    """So that the tests above can fail: one matrix alone is too long, and after three such (two
    of them in one replay) nothing runs."""
    monkeypatch.setenv("SIMMETAL_KILL_MS", "5")
    for _ in range(2):
        with pytest.raises(DeviceError, match="Impacting Interactivity"):
            segments(chain, ROWS)
    monkeypatch.delenv("SIMMETAL_KILL_MS")
    with pytest.raises(DeviceError, match="Ignored"):
        segments(chain, ROWS)


def attention_program(device, case):
    """(program, the view of its output) of a KvCase's prefill."""
    views = [View.of(device.create_from(a)) for a in (case.q, case.k_cache, case.v_cache)]
    out, weight = View.of(device.create(case.q.nbytes)), View.of(device.create(case.q.nbytes))
    tables, tiles = (View.of(device.create_from(a)) for a in (case.tables, case.tiles))
    heads = case.q.shape[1]
    inputs = ops.AttentionInputs(tables, tiles, case.layout, heads, None, case.scale)
    recorder = Recorder(device)
    ops.attention(recorder, views[0], tuple(views[1:]), inputs, out)
    ops.silu_mul(recorder, out, out, weight, case.q[0].size)
    return recorder.finish(), out


def test_attention_beyond_a_segment_is_cut_between_its_tiles(fresh, segments, sim, monkeypatch):
    """16 tiles at 120,000 tokens, 32 heads of 128: a second on an M1, in one dispatch."""
    device, heads, dim, position = fresh(), 32, 128, 120_000
    layout = ops.KvLayout(1, position + 256, 1, 1, dim)
    q, out = (View.of(device.create(4 * 256 * heads * dim)) for _ in range(2))
    caches = tuple(View.of(device.create(layout.layer_bytes)) for _ in range(2))
    tiles = np.array([(16 * i, 16, 0, position + 16 * i) for i in range(16)], np.int32)
    views = View.of(device.create(4)), View.of(device.create_from(tiles))
    recorder = Recorder(device)
    ops.attention(recorder, q, caches, ops.AttentionInputs(*views, layout, heads, None, 1.0), out)
    ops.silu_mul(recorder, out, out, out, heads * dim)
    program = recorder.finish()
    monkeypatch.setenv("SIMMETAL_CLOCK", "attention:64000000,silu:100")  # a tile
    monkeypatch.setenv("SIMMETAL_KILL_MS", "100")
    assert segments(program, 256, 16) == 16
    monkeypatch.setenv("SIMMETAL_CLOCK", "attention:6400000,silu:100")
    counts = [segments(program, 256, 16) for _ in range(12)]
    assert counts[-1] == 2


def test_attention_in_parts_gives_the_bits_of_the_whole(fresh, segments, monkeypatch):
    case = kv_case.make_case([(150, 60), (40, 40)], 4, 2, 32)
    whole, parts = fresh(), fresh()
    program, out = attention_program(parts, case)
    slow, _ = attention_program(parts, case)
    monkeypatch.setenv("SIMMETAL_CLOCK", "attention:100000000,silu:1")
    slow.run(100, 7)
    monkeypatch.delenv("SIMMETAL_CLOCK")
    assert segments(program, 100, 7) == 3
    reference, expected = attention_program(whole, case)
    assert segments(reference, 100, 7) == 1
    bits = [view.buffer.array(np.uint32) for view in (out, expected)]
    assert (bits[0] == bits[1]).all() and bits[0].any()
