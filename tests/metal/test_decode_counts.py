"""How many dispatches and barriers a step takes, as the shim encodes it on the simulated Metal: a
large GPU waits longer for those than it computes.

Of a model with the layers of Qwen3-4B, 36 of them, and small matrices: shapes do not matter.
"""

import importlib.util
from pathlib import Path

import pytest

from marlin.commands.quantize import quantize
from marlin.engine.kv_cache import Paging
from marlin.engine.runner import Runner
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model

NUM_LAYERS = 36
# Dispatches and barriers of a step; before any were fused, 547 and 401, 511 and 365.
COUNTS = {"decode": (296, 222), "prefill": (439, 329)}


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_models = _load(Path(__file__).resolve().parents[1] / "model" / "tiny_models.py")


@pytest.fixture(scope="module")
def runner(tmp_path_factory, simulated_metal):
    """A Runner of the model in 4 bits, with its output matrix tied to the embedding."""
    folder = tmp_path_factory.mktemp("counts")
    config = tiny_models.tiny_config(
        architecture="qwen3", num_layers=NUM_LAYERS, qk_norm=True, tie_embeddings=True
    )
    tensors = tiny_models.random_tensors(config, 0)
    source = tiny_models.write_folder(folder / "source", config, tensors)
    quantize(source, str(folder / "fp4"), "fp4", 32, progress=lambda done, total: None)
    device = simulated_metal.open()
    model = Model(open_checkpoint(str(folder / "fp4"), device), 512)
    runner = Runner(device, model, Paging(1, 512, 1), 16, 1)
    yield runner
    runner.close()
    device.close()


def counted(runner, sim, token_ids, start):
    before = sim["dispatched"], sim["barrier"]
    runner.step([tiny_models.greedy_chunk(token_ids, start)])
    return sim["dispatched"] - before[0], sim["barrier"] - before[1]


def test_a_step_takes_few_dispatches_and_barriers(runner, sim, monkeypatch):
    """On the simulation's clock no kernel runs, and so none takes so long that a step is cut."""
    monkeypatch.setenv("SIMMETAL_CLOCK", ",".join(f"{first}:1" for first in "aegmprs"))
    found = {
        "prefill": counted(runner, sim, [1, 2, 3], 0),
        "decode": counted(runner, sim, [4], 3),
    }
    assert found == COUNTS
