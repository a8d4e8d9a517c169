"""What Apple's compiler would refuse is refused here, and our own shaders are not.

A file of broken/ holds one mistake: its first line is the message that must name it, and the line
after the mistake holds the text that repairs it (`// fixed: ...`).
"""

import re

import pytest
from msl import build, check, mslc
from msl.kernels import integer
from msl.source import MSL_FOLDER, SHADER_FOLDER

MISSING = build.compiler_missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

FOLDER = MSL_FOLDER.parent / "broken"
BROKEN = sorted(FOLDER.glob("*.metal"))
SHADERS = sorted(SHADER_FOLDER.glob("*.metal"))
EXPECTATION = re.compile(r"// expect: (.*)")
REPAIR = re.compile(r"(.*)\n *// fixed: ?(.*)")
# Of the whole file: what compiled code shows, and what the first kernel lacks.
WITHOUT_A_LINE = {"recursion", "too_much_threadgroup_memory", "no_metal_stdlib"}


def repaired(text):
    """The file without its mistake."""
    return re.sub(REPAIR, r"\2", EXPECTATION.sub("//", text))


def mistaken_lines(text):
    """The lines that hold the mistake."""
    lines = text.splitlines()
    return {n for n, line in enumerate(lines) if line.strip().startswith("// fixed:")}


def test_there_are_files_of_both_kinds():
    assert len(BROKEN) >= 60
    assert len(SHADERS) >= 6


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_shader_is_refused_for_its_own_reason(path):
    text = path.read_text()
    expected = re.compile(EXPECTATION.match(text)[1])
    found = [d for d in check.check(path) if d.severity != "warning"]
    matching = [d for d in found if expected.search(d.message)]
    assert matching, f"no message matches {expected.pattern!r} in {found}"
    if path.stem not in WITHOUT_A_LINE:
        assert {d.line for d in matching} & mistaken_lines(text), matching


def test_the_repaired_shaders_are_accepted_without_a_word(tmp_path):
    joined = tmp_path / "repaired.metal"
    joined.write_text("".join(repaired(path.read_text()) for path in BROKEN))
    assert [str(d) for d in check.check(joined) if d.severity != "warning"] == []


@pytest.mark.parametrize("path", SHADERS, ids=lambda path: path.stem)
def test_our_shaders_are_accepted_without_a_word(path):
    assert [str(d) for d in check.check(path)] == []


def test_the_joined_source_is_accepted_without_a_word(load_script, tmp_path):
    joined = tmp_path / "marlin.metal"
    joined.write_text(load_script("metal_shim/build/build_metal.py").joined_source(SHADER_FOLDER))
    assert [str(d) for d in check.check(joined)] == []


@pytest.mark.parametrize("expression", ["3", "0x1F", "2 + 3 * 4", "30u"])
def test_an_attribute_index_may_be_an_integer_expression(expression):
    assert integer(expression) == {"3": 3, "0x1F": 31, "2 + 3 * 4": 14, "30u": 30}[expression]


def test_the_command_prints_what_it_found_and_fails(capsys):
    path = FOLDER / "double_variable.metal"
    assert mslc.main(["check", str(path)]) == 1
    assert "'double' is not supported in Metal" in capsys.readouterr().out
