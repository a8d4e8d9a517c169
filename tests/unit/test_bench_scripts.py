"""The scripts in bench/: what the docs tell to run, and the figures they print."""

import ast
import importlib
import re
import sys

import pytest


@pytest.fixture(scope="module")
def script(checkout):
    """script("workers") is bench/workers.py."""

    def imported(name):
        sys.path.insert(0, str(checkout / "bench"))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    return imported


@pytest.fixture(scope="module")
def workers(script):
    return script("workers")


def test_what_a_gpu_is_timed_with_has_the_fields_of_today(script):
    params = script("gpu_times").attention_params(num_blocks=8, table_stride=4)
    assert (params["table_stride"], params["has_sinks"]) == (4, 0)


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md", "docs/metal.md"])
def test_every_bench_command_names_the_python_that_has_its_packages(page, checkout):
    text = (checkout / page).read_text()
    assert re.findall(r"\bpython3? bench/\w+", text.replace(".venv/bin/python bench/", "")) == []


def test_every_bench_script_that_imports_a_package_says_so_in_its_own_command(checkout):
    for path in (checkout / "bench").glob("*.py"):
        tree = ast.parse(path.read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {getattr(node, "module", None) or node.names[0].name for node in nodes}
        if {"numpy"} & names or any(name.startswith("marlin.") for name in names):
            assert f"python3 bench/{path.name}" not in ast.get_docstring(tree), path.name


def test_a_row_of_workers_tells_the_supervisors_part_and_how_often_weights_lie_in_memory(workers):
    mib = 1024
    supervisor = (20 * mib, 0, 0)
    worker = (96 * mib, 46 * mib, 92 * mib)  # everything, its half of the weights, all of them
    assert workers.row(2, [supervisor, worker, worker], 10.0).split() == [
        *("2", "3", "212.0", "20.0", "92.0", "1.00", "10.0")
    ]
    alone = (150 * mib, 0, 0)
    assert workers.row(1, [alone], 10.0).split() == ["1", "1", "150.0", "-", "-", "-", "10.0"]
