"""What a release is made of: locked packages, and the bill of materials that lists them."""

import json
import os
import re
import subprocess
import sys

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

NAMES = {"numpy", "safetensors", "tokenizers"}


@pytest.fixture(scope="module")
def locked(checkout):
    """{(name, version): digests}."""
    text = (checkout / "deploy" / "requirements.lock").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = {}
    for line in lines:
        name, version = line.split(" ")[0].split("==")
        found[name, version] = set(re.findall(r"--hash=sha256:([0-9a-f]{64})(?: |$)", line))
    return found


def bill_of(checkout, **environ):
    run = [sys.executable, str(checkout / "bin" / "sbom")]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, env={**os.environ, **environ}
    )
    return done.stdout


def test_the_lock_has_what_the_package_needs_and_nothing_else(locked, checkout):
    declared = re.search(
        r"^dependencies = \[(.*?)\]", (checkout / "pyproject.toml").read_text(), re.M | re.S
    )[1]
    assert {name for name, _ in locked} == set(re.findall(r'"(\w+)', declared)) == NAMES
    # Wheels that are of no Python in particular: three platforms. numpy has one of each.
    assert all(len(digests) >= 3 for digests in locked.values())


def test_the_bill_of_materials_is_valid_and_lists_what_is_locked(locked, checkout):
    text = bill_of(checkout)
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None
    components = json.loads(text)["components"]
    listed = {
        (one["name"], one["version"]): {hash["content"] for hash in one["hashes"]}
        for one in components
    }
    assert listed == locked


def test_with_a_date_the_bill_is_the_same_text_every_time(checkout):
    first, second = (bill_of(checkout, SOURCE_DATE_EPOCH="1700000000") for _ in range(2))
    assert first == second and '"2023-11-14T22:13:20Z"' in first


def test_the_container_installs_by_the_lock(checkout):
    text = (checkout / "deploy" / "Dockerfile").read_text()
    assert "--require-hashes --no-deps --only-binary :all: -r deploy/requirements.lock" in text


@pytest.mark.downloads
def test_the_lock_installs_three_packages_and_nothing_else(checkout, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    words = ["-m", "pip", "--python", str(python), "install", "--require-hashes", "--no-deps"]
    words += ["--only-binary", ":all:", "-r", str(checkout / "deploy" / "requirements.lock")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if "Could not find a version" in done.stderr or "Connection" in done.stderr:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    installed = {path.name.split("-")[0] for path in tmp_path.glob("venv/lib/*/*/*.dist-info")}
    assert installed == NAMES
