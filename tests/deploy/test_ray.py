"""deploy/ray in a local cluster, which pip downloads: two replicas, of which one's process is
killed under load."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("ray_cluster.py")
PATIENCE_S = 900  # of pip, which fetches 80 MB; and of a cluster on a busy machine


@pytest.fixture(scope="module")
def python(checkout, tmp_path_factory):
    """A Python with Ray and this checkout, as a cluster's machines have them."""
    folder = tmp_path_factory.mktemp("ray") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    program = folder / "bin" / "python"
    words = ["-m", "pip", "install", "-q", "-r", checkout / "deploy" / "ray" / "requirements.txt"]
    words += ["numpy", "safetensors", "tokenizers"]
    words = [str(word) for word in (program, *words)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if "Could not find a version" in done.stderr or "Connection" in done.stderr:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    (packages / "checkout.pth").write_text(f"{checkout}\n")
    return program


@pytest.mark.clients
def test_a_replica_whose_server_is_killed_loses_what_it_had_and_no_more(python, checkout):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = subprocess.run(
        [str(python), str(PROGRAM), str(checkout), str(port)],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (said,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    status, whole = said["whole"]
    assert status == 200 and json.loads(whole)["usage"]["completion_tokens"] == 20
    status, stream = said["stream"]
    assert status == 200 and stream.endswith("data: [DONE]\n\n")
    status, refused = said["refused"]
    assert (status, json.loads(refused)["error"]["param"]) == (422, "temperature")
    assert said["answered"] >= 100
    assert set(said["others"]) <= {503} and len(said["others"]) <= 4  # the clients there were
    assert said["servers"] == 2  # the killed one has a successor
