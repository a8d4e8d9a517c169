"""The workflows in .github: what they may do, that they run the whole suite, and that actionlint
finds nothing in them."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

# No Python package ships the program; have it on PATH to lint.
ACTIONLINT = shutil.which("actionlint")


@pytest.fixture(scope="module")
def folder(checkout):
    return checkout / ".github" / "workflows"


@pytest.fixture(scope="module")
def ci(folder):
    return yaml.safe_load((folder / "ci.yml").read_text())


def commands(job):
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_every_workflow_may_only_read_the_repository(folder):
    for path in folder.glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}, path.name
        assert not [job for job in workflow["jobs"].values() if "permissions" in job], path.name


def test_every_action_is_pinned_to_a_commit(folder):
    used = re.findall(r"uses: *(\S+)", "".join(path.read_text() for path in folder.glob("*.yml")))
    assert used
    assert [
        action for action in used if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action)
    ] == []


def test_every_job_ends_by_itself_and_keeps_no_credentials(ci):
    for name, job in ci["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        checkouts = [step for step in job["steps"] if "checkout" in step.get("uses", "")]
        assert [step["with"]["persist-credentials"] for step in checkouts] == [False], name


def test_linux_runs_ci_run_on_both_kinds_of_processor(ci):
    job = ci["jobs"]["linux"]
    assert commands(job).strip() == "bash .ci/run"
    runners = job["strategy"]["matrix"]["runner"]
    assert [runner.endswith("-arm") for runner in runners] == [False, True]


@pytest.mark.parametrize(
    ("job", "selftest"), [("macos", "selftest |"), ("metal", "selftest --device metal |")]
)
def test_a_mac_shows_what_it_is_and_runs_every_kernel_and_the_suite(ci, job, selftest):
    words = commands(ci["jobs"][job])
    places = [words.index(part) for part in ("metal-marlin info", selftest, "bin/test")]
    assert places == sorted(places)


def run_step(ci, job, word, tmp_path, **programs):
    """Exit code of the step whose script has `word`, as the workflow's shell runs it, in an empty
    checkout where each program is the shell script given."""
    shells = {"bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]}
    (script,) = [step["run"] for step in ci["jobs"][job]["steps"] if word in step.get("run", "")]
    for name, text in programs.items():
        path = tmp_path / name.replace("venv_", ".venv/bin/").replace("_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
    shell = shells[ci["defaults"]["run"]["shell"]]
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_STEP_SUMMARY": os.devnull}
    return subprocess.run([*shell, script], cwd=tmp_path, env=environ).returncode


@pytest.mark.parametrize(
    ("builds", "code"),
    [
        ("libmarlin_metal.dylib marlin.metallib", 0),
        ("libmarlin_metal.dylib", 1),
        ("marlin.metallib", 1),
        ("", 1),
    ],
)
def test_a_hosted_mac_fails_unless_the_shim_and_the_shaders_were_built(ci, tmp_path, builds, code):
    (tmp_path / "marlin" / "device").mkdir(parents=True)
    build = f'[ "$1" = metal_shim/build/build.py ] || exit 3\ncd marlin/device && touch x {builds}'
    programs = {"xcrun": "exit 0", "python3": build}
    assert run_step(ci, "macos", "xcrun", tmp_path, **programs) == code


@pytest.mark.parametrize("job", ["macos", "metal"])
@pytest.mark.parametrize("code", [0, 1])
def test_a_selftest_that_fails_fails_its_job(ci, tmp_path, job, code):
    programs = {"venv_metal_marlin": f"echo a report\nexit {code}"}
    assert run_step(ci, job, "metal-marlin selftest", tmp_path, **programs) == code


def test_a_machine_that_is_kept_runs_no_pull_request(ci):
    for name, job in ci["jobs"].items():
        if "self-hosted" in job["runs-on"]:
            assert "github.event_name != 'pull_request'" in job["if"], name


@pytest.mark.skipif(ACTIONLINT is None, reason="no actionlint on PATH")
def test_actionlint_finds_nothing(checkout, folder):
    paths = sorted(map(str, folder.glob("*.yml")))
    done = subprocess.run([ACTIONLINT, *paths], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
