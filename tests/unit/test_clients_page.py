"""docs/clients.md names the clients that are run, at the versions that are installed."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_that_is_installed_is_on_the_page_with_its_version_and_no_other():
    path = ROOT / "tests" / "clients" / "client_table.py"
    spec = importlib.util.spec_from_file_location("client_table", path)
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    rows = (*table.CLIENTS, *table.TOOL_CLIENTS, *table.VECTOR_CLIENTS, table.SCORING_CLIENT)
    packages = (package for row in rows for package in row.packages)
    wanted = {re.sub(r"\[.*\]", "", package).replace("==", "@") for package in packages}
    page = (ROOT / "docs" / "clients.md").read_text()
    cells = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ")]
    found = re.findall(r"([@\w/-]+) (\d[\d.]+)", " ".join(f"{cell}," for cell in cells))
    assert {f"{name}@{version}" for name, version in found} == wanted
