"""The program in C of docs/embedding.md, compiled and run as the page says."""

import math
import os
import re
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="the page's command names a Linux library")
def test_the_program_in_c_computes_what_it_says_and_is_told_what_it_cannot_have(checkout, tmp_path):
    page = (checkout / "docs" / "embedding.md").read_text()
    (source,) = re.findall(r"^```c\n(.*?)^```", page, re.S | re.M)
    (command,) = re.findall(r"^cc .* silu\.c .*$", page, re.M)
    (tmp_path / "silu.c").write_text(source)
    compiles, runs = command.replace("silu.c", str(tmp_path / "silu.c")).split(" && ")
    compiles = compiles.replace("-o silu", f"-Wall -Wextra -Werror -o {tmp_path}/silu")
    built = subprocess.run(
        ["sh", "-c", compiles],
        cwd=checkout,
        env={**os.environ, "PWD": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([runs], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

    def silu_doubled(x):
        return 2 * x / (1 + math.exp(-x))

    two, three, four = done.stdout.splitlines()
    assert two == f"2 rows: y[0] {silu_doubled(-6):.4f}, y[11] 0.0000"
    assert three == f"3 rows: y[0] {silu_doubled(-6):.4f}, y[11] {silu_doubled(5):.4f}"
    assert four == "4 rows: vars[0] is 4, the bound buffers hold 0 to 3"
