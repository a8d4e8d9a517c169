"""The tests themselves: their README knows every folder and mark, PyTorch comes by one door."""

import ast
import configparser
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def tests(checkout):
    return checkout / "tests"


def first_cells(text, heading):
    """The names in backquotes of the first column of the first table after a heading."""
    rows = text.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return {name.rstrip("/") for row in rows for name in re.findall("`([^`]+)`", row.split("|")[1])}


def test_the_readme_names_every_folder_every_helper_and_every_mark(checkout, tests):
    readme = (tests / "README.md").read_text()
    kept = {path.name for path in tests.iterdir() if path.name not in ("README.md", "conftest.py")}
    assert first_cells(readme, "folder") == kept - {"__pycache__"}
    helpers = {path.name for path in (tests / "support").glob("*.py")}
    assert first_cells(readme, "support") == helpers
    setup = configparser.ConfigParser()
    setup.read(checkout / "setup.cfg")
    marks = setup["tool:pytest"]["markers"].strip().splitlines()
    assert first_cells(readme, "mark") == {mark.partition(":")[0] for mark in marks}


NAMED = re.compile(r"[\w./]+\.(?:py|h|c|md|cfg|toml)\b|(?<![\w/])(?:tests|bin)/[\w./]*\w")


def test_every_file_that_the_pages_for_contributors_name_is_there(checkout, tests):
    pages = (checkout / "CONTRIBUTING.md", checkout / "SECURITY.md", tests / "README.md")
    names = {name for page in pages for name in NAMED.findall(page.read_text())}
    folders = ("bin", "docs", "marlin", "metal_shim", "shaders", "tests")
    files = [path for folder in folders for path in (checkout / folder).rglob("*")]
    there = [f"/{path.relative_to(checkout)}" for path in [*files, *checkout.iterdir()]]
    lost = {name for name in names if not any(path.endswith(f"/{name}") for path in there)}
    assert len(names) > 40 and lost == set()


def test_the_only_tests_at_the_top_are_the_contract_suite(tests):
    assert {path.name for path in tests.glob("*.py")} == {
        "conftest.py",
        "test_openai_server.py",
        "test_openai_breadth.py",
    }


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_pytorch_comes_through_the_helper_that_skips_without_it(tests):
    direct = [
        path.name
        for path in sorted(tests.rglob("*.py"))
        if "torch" in {name.partition(".")[0] for name in imported(path)}
    ]
    assert direct == []
    assert "pytorch" in set(imported(tests / "unit" / "test_rope.py"))


@pytest.mark.parametrize(
    ("words", "soaks"),
    [([], False), (["-m", "not native"], False), (["-m", "soak"], True)],
    ids=["no -m", "another -m", "asked for"],
)
def test_the_soak_test_runs_only_when_asked_for(checkout, words, soaks):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *words]
    done = subprocess.run(
        [*command, "tests/contract/test_serve_abuse.py", "tests/chaos"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    names = {line.rpartition("::")[2] for line in done.stdout.splitlines() if "::" in line}
    soak = {
        "test_minutes_of_abuse_leave_a_server_as_it_was",
        "test_a_server_in_lock_down_bears_half_an_hour_of_everything",
    }
    assert names == soak if soaks else names and not names & soak
