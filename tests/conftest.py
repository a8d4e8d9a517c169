"""What every test folder shares: a native library that is up to date, and the demo model.

Owns no model code: the model's place is bin/fetch_model.py's business, the compiler build.py's.
"""

import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Draws are the same in every run and take what time they take, so that none fails by luck; other
# draws: --hypothesis-profile search.
_QUIET = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("same", derandomize=True, database=None, **_QUIET)
hypothesis.settings.register_profile("search", derandomize=False, **_QUIET)
hypothesis.settings.load_profile("same")


def _load(path):
    """A program of the checkout as a module, under a name that shadows no package."""
    name = f"checkout_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def needs_native_library(item):
    """Only tests/unit runs without it, but for what is marked native there."""
    in_unit = ROOT / "tests" / "unit" in item.path.parents
    return not in_unit or item.get_closest_marker("native") is not None


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked long, soak, chaos, downloads or clients, unless -m has a word about
    it; what is marked as the quick part of those stays.

    Not by a `-m` in setup.cfg: whoever gave another would run them without knowing.
    """
    names = ("long", "soak", "chaos", "downloads", "clients")
    unasked = [name for name in names if name not in config.option.markexpr]

    def is_left_out(item):
        marks = filter(None, map(item.get_closest_marker, unasked))
        return not all(mark.kwargs.get("quick") for mark in marks)

    left_out = list(filter(is_left_out, items))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session):
    """Build the library before the first test that loads it: none runs against an old one."""
    if session.config.option.collectonly or not any(map(needs_native_library, session.items)):
        return
    command = [sys.executable, str(ROOT / "metal_shim" / "build" / "build.py")]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0:
        pytest.exit(f"the native library cannot be built\n{built.stderr}", returncode=1)


def _threads():
    """Those of this process, but for what a library keeps for as long as it is loaded."""
    return {thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"}


def _tables(file):
    """{name: what it holds} of the constants that a test file, what tests share and marlin have."""
    homes, found = (str(ROOT / "tests"), str(ROOT / "marlin")), {}
    for module in list(sys.modules.values()):
        if not (getattr(module, "__file__", None) or "").startswith(homes):
            continue
        # What a file takes from another test file is among its own names, and other files' tables
        # are millions of characters.
        if module.__name__.startswith("test_") and module is not file:
            continue
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, (dict, list, set)):
                found.setdefault(id(value), (f"{module.__name__}.{name}", repr(value)))
    return dict(found.values())


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(request):
    """A file's tests leave threads, log handlers, tables and the folder as they found them."""

    def state():
        root = logging.getLogger()
        # pytest's own handlers come and go with each phase of a test.
        handlers = [one for one in root.handlers if not type(one).__module__.startswith("_pytest")]
        return handlers, root.level, os.getcwd()

    before, threads, tables = state(), _threads(), _tables(request.module)
    yield
    end = time.monotonic() + 10  # of threads that are about to end
    while (left := _threads() - threads) and time.monotonic() < end:
        time.sleep(0.02)
    assert [thread.name for thread in left] == []
    assert state() == before
    after = _tables(request.module)
    assert [name for name, held in after.items() if held != tables.get(name, held)] == []


@pytest.fixture(scope="session")
def checkout():
    """The checkout's root."""
    return ROOT


@pytest.fixture(scope="session")
def load_script():
    """Import a program by its path in the checkout: load_script("bin/fetch_model.py")."""
    return lambda path: _load(ROOT / path)


@pytest.fixture(scope="session")
def demo_model_path():
    """SmolLM2-135M-Instruct Q4_1: METAL_MARLIN_TEST_MODEL, else bin/fetch_model.py's place."""
    configured = os.environ.get("METAL_MARLIN_TEST_MODEL")
    if configured:
        assert Path(configured).is_file(), f"METAL_MARLIN_TEST_MODEL: no file {configured}"
        return Path(configured)
    fetch_model = _load(ROOT / "bin" / "fetch_model.py")
    cached = fetch_model.cache_folder(os.environ) / fetch_model.DEMO_MODEL.file_name
    if not cached.is_file():
        pytest.skip(f"no demo model at {cached}; bin/test fetches it")
    return cached


@pytest.fixture(scope="session")
def fetched_model():
    """fetched_model(name) -> path of that model of bin/fetch_model.py, downloaded if need be."""

    def fetch(name):
        command = [sys.executable, str(ROOT / "bin" / "fetch_model.py"), name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"{name} cannot be had: " + " ".join(done.stderr.splitlines()[-2:]))
        return Path(done.stdout.strip())

    return fetch


@pytest.fixture(scope="session")
def simulated_metal():
    """The Metal device off a Mac: a simulated.Simulated (tests/metal), or a skip that says why."""
    sys.path.insert(0, str(ROOT / "tests" / "metal"))
    import simulated

    if reason := simulated.unavailable():
        pytest.skip(reason)
    build_metal = _load(ROOT / "metal_shim" / "build" / "build_metal.py")
    return simulated.build(ROOT / "build" / "metal-sim", build_metal)


@pytest.fixture(scope="module")
def served(request):
    """The contract suite's server: a served.Served of the model that contract.MOCK says."""
    from contract import MOCK, MODEL
    from served import Served

    variables = {"METAL_MARLIN_MOCK_MODEL": "1" if MOCK else "0"}
    path = f"models/{MODEL}" if MOCK else request.getfixturevalue("demo_model_path")
    with Served(path, "--host", "127.0.0.1", environ=variables) as server:
        yield server


@pytest.fixture(scope="module")
def sdk(served):
    """The official client of that server."""
    import openai

    with openai.OpenAI(base_url=served.base_url, api_key="unused", max_retries=0) as client:
        yield client
