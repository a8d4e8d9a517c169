"""A source archive, unpacked where a stranger might: its one command serves, and its tests run.

pip downloads what the package needs, as it does for whoever tries it.
"""

import os
import re
import signal
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
ODD_NAME = "br[old] \u00fcn\u00ef 'q' & $"
# Of tests/unit: some of every kind, none of them slow.
LIGHT = (
    "test_cli.py",
    "test_config.py",
    "test_bin_scripts.py",
    "test_scheduler.py",
    "test_http.py",
)


@pytest.fixture(scope="module")
def unpacked(checkout, tmp_path_factory):
    """The root of an unpacked sdist of the checkout."""
    folder = tmp_path_factory.mktemp("strangers") / ODD_NAME
    archive = folder.parent / "dist"
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(archive)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True)
    (sdist,) = archive.iterdir()
    with tarfile.open(sdist) as opened:
        opened.extractall(folder)
    (root,) = folder.iterdir()
    return root


def environ(unpacked, **more):
    """Nothing of whoever runs the tests but where programs are; a home, and a small temporary."""
    home = unpacked.parent.parent / "home"
    home.mkdir(exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), **more}


def test_the_archive_holds_every_file_that_the_repository_does(unpacked, checkout):
    if not (checkout / ".git").exists():
        pytest.skip("this checkout is no repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached"], cwd=checkout, check=True, capture_output=True
    )
    names = filter(None, os.fsdecode(listed.stdout).split("\0"))
    missing = [
        name for name in names if (checkout / name).exists() and not (unpacked / name).exists()
    ]
    assert missing == []


def test_its_one_command_serves_and_a_second_start_builds_and_installs_nothing(
    unpacked, demo_model_path
):
    cache = unpacked.parent.parent / "cache" / "metal-marlin"
    cache.mkdir(parents=True)
    (cache / demo_model_path.name).symlink_to(demo_model_path)
    variables = environ(unpacked, XDG_CACHE_HOME=str(cache.parent))
    for is_first in (True, False):
        log = unpacked.parent / f"log-{is_first}"
        with log.open("w") as stderr:
            demo = subprocess.Popen(
                [str(unpacked / "bin" / "demo"), "--port", "0"],
                cwd=unpacked.parent,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        announced = (re.search(r" at (http://127.0.0.1:\d+)$", line) for line in demo.stdout)
        found = next(filter(None, announced), None)
        assert found, log.read_text()
        with urllib.request.urlopen(f"{found[1]}/health", timeout=60) as answer:
            assert answer.status == 200
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(60) == 0
        demo.stdout.close()
        said = log.read_text()
        assert ("Installing" in said) == ("Making" in said) == is_first
        assert "Traceback" not in said


def test_its_light_tests_run_and_all_can_be_collected(unpacked):
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    variables = environ(unpacked)
    for words in (["--collect-only"], [str(Path("tests/unit") / name) for name in LIGHT]):
        done = subprocess.run(
            [*run, *words], cwd=unpacked, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-4000:]
