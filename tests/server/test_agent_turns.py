"""An agent's turns compute what is new, whichever cache a model has: bench/agent_turns.py as a user
runs it, with fewer turns."""

import subprocess
import sys

import pytest
from served import ROOT, Served

# The narrow model whose layers keep all keys, a window of them, or a state.
MODELS = {"full": ("qwen2.5-3b", 2), "windowed": ("gemma-3-4b", 6), "recurrent": ("qwen3.5-4b", 4)}


@pytest.mark.long
@pytest.mark.parametrize("cache", MODELS)
def test_of_what_was_known_at_most_a_twentieth_is_computed_again(cache, tmp_path):
    name, num_layers = MODELS[cache]
    path = tmp_path / f"{name}.gguf"
    shape = ["--layers", num_layers, "--width", 256, "--type", "Q8_0"]
    _bench("make_model.py", name, path, *shape)
    options = ["--enable-batching", "--num-kv-blocks", 2048, "--timeout", 600]
    with Served(path, *options) as server:
        counts = ["--conversations", "1,3", "--turns", 4, "--at-most", 5]
        table = _bench("agent_turns.py", f"http://127.0.0.1:{server.port}", *counts)
    assert len(table.splitlines()) == 1 + 2 * 3, table


def _bench(script, *arguments):
    command = [sys.executable, ROOT / "bench" / script, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
