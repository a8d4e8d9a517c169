"""Every target of targets.py for a few seconds; `-m long` has a minute each, and
METAL_MARLIN_TEST_FUZZ_S as long as it says.

A run has a seed of its own, which is said with what was found: METAL_MARLIN_TEST_FUZZ_SEED repeats
it. Coverage does not guide it.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from marlin.errors import ModelFileError
from marlin.text.folder_tokenizer import load_tokenizer

PROGRAM = Path(__file__).with_name("fuzz.py")
NAMES = ("gguf", "safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
         "generation_config.json", "template", "http", "bodies")  # fmt: skip
QUICK_S, LONG_S = "1", "60"


def fuzz(name, seconds, folder):
    seconds = os.environ.get("METAL_MARLIN_TEST_FUZZ_S", seconds)
    seed = os.environ.get("METAL_MARLIN_TEST_FUZZ_SEED", random.SystemRandom().randrange(10**9))
    words = [sys.executable, PROGRAM, name, seconds, seed, folder]
    patience_s = float(seconds) + 300
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=patience_s, check=False
    )
    said = f"{name}, seed {seed}, rc {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
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


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_minute_of_changed_input_is_answered_or_refused(name, tmp_path):
    fuzz(name, LONG_S, tmp_path)


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
