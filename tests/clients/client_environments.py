"""Where the clients are installed: a folder for each row of the table in the user's cache.

Owns pip, npm and the folders' names; what was installed whole is kept and used again.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

DRIVERS = Path(__file__).with_name("drivers")
# What pip and npm say of an index that they cannot reach.
_OFFLINE = (
    *("Failed to establish a new connection", "name resolution", "Network is unreachable"),
    *("Connection refused", "timed out", "ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT"),
    *("ENETUNREACH", "ECONNRESET", "Cannot connect to proxy"),
)


class Unavailable(Exception):
    """The client cannot be had on this machine; the text says why."""


def driver_command(client, cache):
    """The command that runs a client's driver, installed first where it is not yet.

    Args:
        client: client_table.Client.
        cache: Path of the folder that holds the environments.

    Raises:
        Unavailable: no Node, a Python that is too new, or no package index in reach.
        AssertionError: the installer failed for another reason; the text has its output.
    """
    driver = DRIVERS / client.driver
    for_node = driver.suffix == ".mjs"
    if for_node and not (shutil.which("node") and shutil.which("npm")):
        raise Unavailable("no node and npm on the PATH")
    if client.below_python and sys.version_info >= client.below_python:
        bound = ".".join(map(str, client.below_python))
        raise Unavailable(f"{' '.join(client.packages)} needs a Python below {bound}")
    if not client.packages:
        return [sys.executable, str(driver)]
    folder = cache / f"{client.name}-{_fingerprint(client)}"
    with _lock(cache, folder.name):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            (_install_for_node if for_node else _install_for_python)(client.packages, folder)
            (folder / "complete").touch()
    if not for_node:
        return [str(folder / "bin" / "python"), str(driver)]
    # Node looks for packages beside a module's file, so the driver has to lie beside them.
    return ["node", shutil.copy(driver, folder)]


def _fingerprint(client):
    wanted = " ".join([sys.executable, sys.version, *client.packages])
    return hashlib.sha256(wanted.encode()).hexdigest()[:12]


@contextmanager
def _lock(cache, name):
    """Two runs at once install an environment once."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install_for_python(packages, folder):
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", "--retries", "1", *packages])


def _install_for_node(packages, folder):
    folder.mkdir()
    (folder / "package.json").write_text('{"private": true}\n')
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries", "1"]
    _run(["npm", "install", "--prefix", str(folder), *options, *packages])


def _run(command):
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if ended.returncode == 0:
        return
    said = ended.stdout + ended.stderr
    for line in said.splitlines():
        if any(word in line for word in _OFFLINE):
            raise Unavailable(f"no package index in reach: {line.strip()[:300]}")
    raise AssertionError(f"{' '.join(command)} failed\n{said}")
