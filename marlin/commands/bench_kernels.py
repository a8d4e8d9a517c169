"""What `metal-marlin bench --kernels` measures: each size of matrix that a model has, alone.

A step's time says that something is slow; this says what. Knows recorded programs and their linear
layers; nothing of requests.
"""

import statistics
import time
from typing import Any, TextIO

import numpy as np

from marlin.device import abi
from marlin.device.program import Program
from marlin.engine.runner import Runner

WEIGHT_BINDINGS = slice(1, 4)
# Floats a row that a device's linear layers take, beside a weight's own bytes.
FLOAT_BYTES = 4


def measure_kernels(runner: Runner, step_tokens: int, repeat: int) -> list[dict[str, Any]]:
    """Time every matrix of a decode step, with one row, and of a prefill step.

    Matrices of one size run one after the other, each behind a barrier, so that what one layer left
    in a cache is of no use to the next.

    Args:
        step_tokens: rows of a prefill step; the output matrix has one.
        repeat: runs of each, of which the median counts.

    Returns:
        A row each: kernel, n, k, rows, how many matrices of that size there are, the seconds, bytes
        and operations of one, largest share of a step first.
    """
    rows = []
    for program, num_rows in zip(runner.programs, (step_tokens, 1), strict=True):
        for (kernel, raw), indices in _sizes(program).items():
            params = np.frombuffer(raw, abi.PARAMS["LinearParams"])[0]
            rows_var = int(params["rows_var"])
            records = program.records[indices].copy()
            records["barrier"] = 1
            alone = Program(program.device, records, [kernel] * len(indices))
            variables = [1] * abi.MAX_VARS
            variables[0] = num_rows
            seconds = _median_seconds(alone, variables, repeat) / len(indices)
            alone.close()
            n, k, count = int(params["n"]), int(params["k"]), variables[rows_var]
            weights = int(records[0]["bindings"][WEIGHT_BINDINGS]["bytes"].sum())
            rows.append(
                {
                    **{"kernel": kernel, "n": n, "k": k, "rows": count, "matrices": len(indices)},
                    "seconds": seconds,
                    "bytes": weights + FLOAT_BYTES * count * (n + k),
                    "operations": 2 * n * k * count,
                }
            )
    return sorted(rows, key=lambda row: -row["seconds"] * row["matrices"])


def _sizes(program):
    """{(kernel, bytes of its LinearParams): indices of its records}."""
    found: dict[tuple[str, bytes], list[int]] = {}
    for index, (record, label) in enumerate(zip(program.records, program.labels, strict=True)):
        kernel = label.partition(" ")[0]
        is_linear = kernel.startswith(("matvec_", "matmul_")) and "_experts_" not in kernel
        if is_linear:
            raw = record["params"][: record["param_bytes"]].tobytes()
            found.setdefault((kernel, raw), []).append(index)
    return found


def _median_seconds(program, variables, repeat):
    program.run(*variables)  # the first run pages the weights in
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        program.run(*variables)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def print_kernels(rows: list[dict[str, Any]], file: TextIO) -> None:
    """The rows as a table; each time is of one matrix, launch and all."""
    print(
        f"\n{'kernel':<12}{'n':>8}{'k':>8}{'rows':>6}{'matrices':>10}{'us':>10}{'GB/s':>8}"
        f"{'GFLOP/s':>9}",
        file=file,
    )
    for row in rows:
        sizes = f"{row['n']:>8}{row['k']:>8}{row['rows']:>6}{row['matrices']:>10}"
        print(
            f"{row['kernel']:<12}{sizes}{row['seconds'] * 1e6:>10.1f}"
            f"{row['bytes'] / row['seconds'] / 1e9:>8.1f}"
            f"{row['operations'] / row['seconds'] / 1e9:>9.0f}",
            file=file,
        )
