"""The sizes that docs/architecture.md promises a reader, held for every source file."""

import ast
from pathlib import Path

import pytest

MAX_LINES = {".py": 400, ".c": 600, ".h": 600, ".m": 600, ".metal": 600}
MAX_LINE_CHARACTERS = 100
MAX_FUNCTION_LINES = 40
MAX_C_FUNCTION_LINES = 80
FOLDERS = ("bench", "bin", "marlin", "metal_shim", "shaders", "tests")


def source_files(root, suffixes):
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    return sorted(path for path in found if path.suffix in suffixes and path.is_file())


def function_lines(function):
    """Lines of a function from `def` to its end, its docstring not counted."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def long_functions(text):
    """(line, name, lines) of every function over the limit."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    sizes = [(node.lineno, node.name, function_lines(node)) for node in functions]
    return [size for size in sizes if size[2] > MAX_FUNCTION_LINES]


def test_a_docstring_does_not_count_against_its_function():
    body = "\n".join("    x = 1" for _ in range(MAX_FUNCTION_LINES - 1))
    docstring = '    """One.\n\n    Two.\n    """'
    assert long_functions(f"def f():\n{docstring}\n{body}\n") == []
    assert long_functions(f"def f():\n{docstring}\n{body}\n    y = 2\n") == [(1, "f", 41)]


@pytest.mark.parametrize("suffix", MAX_LINES)
def test_no_file_is_longer_than_its_kind_may_be(checkout, suffix):
    sizes = {path: len(path.read_text().splitlines()) for path in source_files(checkout, {suffix})}
    too_long = {str(path): size for path, size in sizes.items() if size > MAX_LINES[suffix]}
    assert too_long == {}


def test_no_line_is_longer_than_a_hundred_characters(checkout):
    too_long = [
        f"{path.relative_to(checkout)}:{number}"
        for path in source_files(checkout, set(MAX_LINES))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MAX_LINE_CHARACTERS
    ]
    assert too_long == []


def test_no_python_function_is_longer_than_forty_lines(checkout):
    too_long = [
        f"{path.relative_to(checkout)}:{line} {name} has {size} lines"
        for path in source_files(checkout, {".py"})
        for line, name, size in long_functions(path.read_text())
    ]
    assert too_long == []


def long_c_functions(text):
    """(line, first line, lines) of every C function over the limit: from its name to its brace.

    clang-format puts both of a function's braces into the first column, and no others but those
    of what is declared there.
    """
    found, start = [], None
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if line == "{":
            start = number - 1
            while lines[start - 1][:1] in (" ", "\t"):  # parameters that go on
                start -= 1
        elif line == "}" and start is not None:
            if number - start + 1 > MAX_C_FUNCTION_LINES:
                found.append((start, lines[start - 1], number - start + 1))
            start = None
    return found


def test_the_lines_of_a_c_function_are_counted_with_its_head_and_braces():
    body = "    x++;\n" * (MAX_C_FUNCTION_LINES - 4)
    text = f"static int f(int a,\n             int b)\n{{\n{body}}}\n"
    assert long_c_functions(text) == []
    longer = text.replace("x++;", "x++;\n    y++;", 1)
    assert long_c_functions(longer) == [(1, "static int f(int a,", 81)]


def test_no_c_function_is_longer_than_eighty_lines(checkout):
    too_long = [
        f"{path.relative_to(checkout)}:{line} {head} has {size} lines"
        for path in source_files(checkout, {".c", ".h", ".m", ".metal"})
        for line, head, size in long_c_functions(path.read_text())
    ]
    assert too_long == []


def test_the_files_looked_at_include_every_kind_of_source(checkout):
    assert {path.suffix for path in source_files(checkout, set(MAX_LINES))} >= {".py", ".c", ".h"}
    assert Path(__file__) in source_files(checkout, {".py"})


def test_no_two_files_of_tests_have_one_name(checkout):
    """pytest takes the second for the first, and collects nothing at all."""
    names = [path.name for path in (checkout / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
