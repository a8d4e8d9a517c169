"""Every target of targets.py for a few seconds; `-m long` has a minute each (test_long_fuzz_*.py),
and METAL_MARLIN_TEST_FUZZ_S as long as it says.

A run has a seed of its own, which is said with what was found: METAL_MARLIN_TEST_FUZZ_SEED repeats
it. `-m long` has those that reach native code with the library under sanitizers, too, and `-m soak`
all of them guided by coverage, where atheris is installed. What was found is kept in found/, a
folder for each target, and tried first in every run.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from marlin.errors import ModelFileError
from marlin.text.folder_tokenizer import load_tokenizer

PROGRAM = Path(__file__).with_name("fuzz.py")
# Two halves, each with a file of its own for its minutes: two files run at once.
FILES = ("gguf", "safetensors", "config.json", "tokenizer.json")
TEXTS = ("tokenizer_config.json", "generation_config.json", "template", "http", "bodies")
NAMES = FILES + TEXTS
NATIVE = ("gguf", "safetensors", "config.json")
QUICK_S, LONG_S, GUIDED_S = "1", "60", "30"
SANITIZERS = {
    # Python keeps what it allocates; without the limit of memory that other runs have, a failed
    # allocation is still one that the program hears of.
    "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1,hard_rss_limit_mb=6144",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def asked_for(seconds):
    return os.environ.get("METAL_MARLIN_TEST_FUZZ_S", seconds)


def run(name, seconds, folder, *library, flags=(), prefix=(), environ=()):
    """(finished process, what it said) of fuzz.py."""
    seed = os.environ.get("METAL_MARLIN_TEST_FUZZ_SEED", random.SystemRandom().randrange(10**9))
    words = [*prefix, sys.executable, PROGRAM, *flags, name, seconds, seed, folder, *library]
    done = subprocess.run(
        list(map(str, words)),
        env={**os.environ, **dict(environ)},
        capture_output=True,
        text=True,
        timeout=float(seconds) + 300,
        check=False,
    )
    said = f"{name}, seed {seed}, rc {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done, said


def fuzz(name, seconds, folder, *library, **how):
    done, said = run(name, asked_for(seconds), folder, *library, **how)
    assert done.returncode == 0, said
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts.values()) > 0, said
    print(said)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "post_processor", "decoder"])
@pytest.mark.parametrize("value", [7, "x", True, [3], {"type": 2}])
def test_found_a_part_of_a_tokenizer_that_is_no_object_is_refused(part, value, tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    described = json.loads(backend.to_str()) | {part: value}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ModelFileError):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_changed_input_is_answered_or_refused(name, tmp_path):
    fuzz(name, QUICK_S, tmp_path)


@pytest.fixture(scope="module")
def sanitized(checkout, tmp_path_factory):
    """(library with sanitizers, prefix of a command, variables) to fuzz with."""
    if shutil.which("gcc") is None or shutil.which("setarch") is None:
        pytest.skip("no gcc or setarch on PATH: sudo apt-get install gcc libc6-dev util-linux")
    folder = tmp_path_factory.mktemp("sanitized")
    words = ["metal_shim/build/build.py", "--output", folder, "--cc", "gcc"]
    words += ["--sanitize", "address,undefined"]
    subprocess.run(list(map(str, [sys.executable, *words])), cwd=checkout, check=True)
    run_times = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(map(os.path.isabs, run_times)):
        pytest.skip("gcc has no run time of its sanitizers here: libasan.so, libubsan.so")
    prefix = ("setarch", "-R")  # their shadow has fixed places
    if subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        prefix = ()
    environ = {**SANITIZERS, "LD_PRELOAD": ":".join(run_times)}
    return folder / "libmarlin_cpu.so", prefix, environ


@pytest.mark.long
@pytest.mark.parametrize("name", NATIVE)
def test_changed_models_do_native_code_no_harm_that_sanitizers_see(name, sanitized, tmp_path):
    library, prefix, environ = sanitized
    fuzz(name, GUIDED_S, tmp_path, library, prefix=prefix, environ=environ)


@pytest.mark.long
def test_the_library_under_sanitizers_is_the_one_that_is_fuzzed(sanitized, tmp_path):
    library, prefix, _environ = sanitized
    done, said = run("gguf", QUICK_S, tmp_path, library, prefix=prefix)
    assert done.returncode != 0 and "ASan runtime does not come first" in said


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_input_that_coverage_guides_is_answered_or_refused(name, tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed: .venv/bin/pip install atheris")
    done, said = run(name, asked_for(GUIDED_S), tmp_path, flags=["--guided"])
    assert done.returncode == 0, said
    assert "Done " in said, said


def test_what_was_found_once_is_tried_first(tmp_path):
    done, said = run("tokenizer.json", "0", tmp_path)
    assert done.returncode == 0, said
    num_found = len(list(PROGRAM.with_name("found").glob("tokenizer.json/*")))
    assert num_found >= 5 and json.loads(done.stdout) == {"refused": num_found}


def test_what_was_found_has_a_target():
    assert {path.name for path in PROGRAM.with_name("found").iterdir()} <= set(NAMES)


def test_what_is_not_clean_is_told_with_its_case(tmp_path):
    """A target that breaks: the fuzzer can fail."""
    program = PROGRAM.read_text().replace(
        "from targets import TARGETS", "from broken import TARGETS"
    )
    (tmp_path / "fuzz.py").write_text(program)
    (tmp_path / "broken.py").write_text(
        "class Broken:\n"
        "    def __init__(self, _folder): pass\n"
        "    def case(self, rng): return b'the case'\n"
        "    def run(self, case): raise ZeroDivisionError\n"
        "TARGETS = {'broken': Broken}\n"
    )
    words = [sys.executable, tmp_path / "fuzz.py", "broken", "5", "1", tmp_path]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert f"unclean: {tmp_path / 'case'} after 0 cases" in done.stdout
    assert (tmp_path / "case").read_bytes() == b"the case"


def test_every_target_is_tried():
    text = PROGRAM.with_name("targets.py").read_text().partition("\nTARGETS = {")[2]
    assert tuple(line.split('"')[1] for line in text.splitlines() if '": ' in line) == NAMES
