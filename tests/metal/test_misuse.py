"""The simulated Metal refuses what Metal's validation layer refuses, and a missing barrier: each
mistake of misuse/program.m ends its process with one sentence, and without one it runs."""

import os
import subprocess

import pytest

MISTAKES = {
    "a constant of another size": "function constant TIMES: a value of the wrong size",
    "a pointer within a page": "is not aligned to pages",
    "a length that is no page": "is no multiple of a page",
    "no pipeline": "a dispatch without a pipeline",
    "an unbound buffer": r"scale: buffer 0 (x) is not bound",
    "an offset past the end": "setBuffer: offset 256 is past the end (256)",
    "an offset between floats": "scale: buffer 0 (x) begins where a value of alignment 4 cannot",
    "an offset of no buffer": "setBufferOffset: no buffer at 7",
    "short bytes": "scale: buffer 2 (p) has 4 bytes, the kernel reads 8",
    "too many bytes": "setBytes: length 8192 is not 1 to 4096",
    "too many threads": "2048 threads a threadgroup, the pipeline takes 1 to 1024",
    "an empty grid": "a grid with no threadgroups",
    "a read after a write": "dispatch 1 (scale) reads buffer 0, which dispatch 0 (scale) writes",
    "a write after a write": "dispatch 1 (scale) writes buffer 1, which dispatch 0 (scale) writes",
    "a write after a read": "dispatch 1 (scale) writes buffer 1, which dispatch 0 (scale) reads",
    "a barrier for textures": "a barrier of scope 2 orders no buffers",
    "no fence between command buffers": "a command buffer (scale) reads buffer 0, which one before",
    "a fence that the encoder updates itself": "the encoder has updated that fence itself",
    "a wait before commit": "waitUntilCompleted before commit",
    "a second encoder": "a second encoder while one is open",
    "a commit while encoding": "commit with an open encoder",
    "an encoder that is never ended": "a command encoder was released before endEncoding",
    "encoding after the end": "encoding after endEncoding",
    "a second commit": "a command buffer was committed twice",
    "encoding after commit": "encoding into a committed command buffer",
    "a buffer freed in flight": "SimBuffer was freed while a command buffer",
    "a pipeline freed in flight": "SimPipeline was freed while a command buffer",
}


@pytest.fixture(scope="module")
def run(simulated_metal, checkout):
    """Run the program with a mistake: the finished process."""
    import simulated
    from msl import build as msl_build

    cache, folder = simulated_metal.home.parent, checkout / "tests" / "metal" / "misuse"
    program = simulated.program(cache, folder / "program.m")
    library = msl_build.library(folder / "kernels.metal", cache)
    environment = os.environ | {"SIMMETAL_DELAY_US": "50000"}
    environment.pop("SIMMETAL_EXTENTS", None)

    def run_with(mistake):
        command = [str(program), str(library), mistake]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    return run_with


def test_without_a_mistake_the_program_runs(run):
    done = run("none")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_the_process_with_its_reason(run, mistake):
    done = run(mistake)
    assert done.returncode < 0 and "fine" not in done.stdout
    (said,) = [line for line in done.stderr.splitlines() if "simulated Metal: misuse: " in line]
    assert MISTAKES[mistake] in said


def test_every_mistake_that_the_program_knows_is_tried(checkout):
    text = (checkout / "tests" / "metal" / "misuse" / "program.m").read_text()
    known = {part.split('"')[1] for part in text.split("makes(")[1:] if part.startswith('"')}
    assert known == {*MISTAKES, "none"}
