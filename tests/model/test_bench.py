"""`metal-marlin bench`: what a report holds, on a CPU and on a device that is none."""

import io
import json
import re

import numpy as np
import pytest
from kernel_list import read_kernels
from tiny_models import random_tensors, tiny_config, write_folder

from marlin import cli
from marlin.commands import bench
from marlin.device import abi
from marlin.device.device import Device
from marlin.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    config = tiny_config()
    return write_folder(tmp_path / "model", config, random_tensors(config, 0))


@pytest.fixture(params=["cpu", "metal"])
def subject(request, folder, monkeypatch):
    """Measured once; the CPU's library stands in for Metal's."""
    for name in ("PROBE_READ_UNITS", "PROBE_DOT_UNITS"):
        monkeypatch.setattr(bench, name, 8)
    library = abi.library_path("cpu") if request.param == "metal" else None
    subject = bench.Subject(folder, Device(library_path=library, kind=request.param), 64)
    subject.measure([20, 40], 8)
    yield subject
    subject.close()


def test_every_prompt_length_has_its_rates_as_shares_of_the_machines_best(subject):
    summary = subject.summary()
    assert [row["prompt_tokens"] for row in summary["rows"]] == [20, 40]
    for row in summary["rows"]:
        assert row["prefill_tokens_per_s"] > 0 and row["decode_tokens_per_s"] > 0
        bytes_per_s = row["decode_tokens_per_s"] * summary["bytes_per_token"]
        share = bytes_per_s / summary["read_bytes_per_s"]
        assert row["decode_share_of_bandwidth"] == pytest.approx(share, abs=1e-3)


def test_the_table_names_threads_of_a_cpu_and_a_gpu_by_its_name(subject):
    printed, summary = io.StringIO(), subject.summary()
    report = {"model": "m", "machine": {"cores": 2, "cpu": "c"}, "results": [summary]}
    bench.print_table(report, printed)
    first = printed.getvalue().splitlines()[2]
    if subject.device.kind == "cpu":
        assert first.startswith(f"{summary['threads']} threads, ") and ", int8 " in first
    else:
        assert first.startswith(f"{summary['device']}, ") and ", float32 " in first


def test_each_size_of_matrix_is_timed_alone(subject):
    config, printed = tiny_config(), io.StringIO()
    rows = bench.measure_kernels(subject.runner, 32, 2)
    sizes = {(row["n"], row["k"], row["rows"]): row for row in rows}
    hidden, ffn, vocab = config.hidden_dim, config.intermediate_dim, config.vocab_size
    gate_and_up = sizes[ffn, hidden, 1]
    assert gate_and_up["matrices"] == 2 * config.num_layers
    assert gate_and_up["operations"] == 2 * ffn * hidden
    assert gate_and_up["bytes"] == ffn * hidden * 4 + 4 * (ffn + hidden)
    prefill, output = sizes[hidden, ffn, 32], sizes[vocab, hidden, 1]
    assert prefill["operations"] == 64 * ffn * hidden and prefill["kernel"].startswith("matmul_")
    assert output["matrices"] == 1 and all(row["seconds"] > 0 for row in rows)
    bench.print_kernels(rows, printed)
    assert len(printed.getvalue().splitlines()) == len(rows) + 2


def test_the_command_prints_and_writes_them(folder, tmp_path, capsys):
    place, picture = tmp_path / "figures.json", tmp_path / "figures.svg"
    words = ["--device", "cpu", "--prompt-tokens", "4", "--output-tokens", "2", "--repeat", "1"]
    words += ["--kernels", "--json", str(place), "--plot", str(picture)]
    assert cli.main(["bench", str(folder), *words]) == 0
    assert picture.read_text().startswith("<svg ")
    printed = capsys.readouterr().out
    assert len(re.findall(r" [#.]{10} ", printed)) == 2  # of prefill and of decode
    (result,) = json.loads(place.read_text())["results"]
    assert "GFLOP/s" in printed and len(result["kernels"]) > 5


def test_a_gpus_peak_counts_the_threads_that_the_shader_has():
    assert read_kernels()["probe_dot"].threads == bench.GPU_DOT_THREADS


def test_a_context_that_the_device_cannot_hold_is_refused(folder):
    device = Device(num_threads=1, kind="cpu")
    with pytest.raises(ConfigError, match="the model does not fit"):
        bench.Subject(folder, device, 1 << 40)
    device.close()


def test_a_model_whose_logits_are_not_numbers_is_not_measured(tmp_path, capsys):
    config = tiny_config()
    tensors = random_tensors(config, 0)
    tensors["model.norm.weight"][0] = np.nan
    path = str(write_folder(tmp_path / "model", config, tensors))
    lengths = ["--prompt-tokens", "4", "--output-tokens", "2"]
    assert cli.main(["bench", path, "--device", "cpu", *lengths, "--repeat", "1"]) == 1
    assert "not numbers" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bench, "Subject", None)
    missing = tmp_path / "no" / "x.json"
    for path, reason in ((missing, "there is no folder"), (tmp_path, "it is a folder")):
        for option in ("--json", "--plot"):
            assert cli.main(["bench", str(folder), option, str(path)]) == 2
            error = capsys.readouterr().err
            assert f"{option} {path} cannot be written: {reason}" in error
            assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "2,257"], "each number of --threads must be 1 to 256, got '2,257'"),
        (["--prompt-tokens", "0"], "each number of --prompt-tokens must be 1 or more, got '0'"),
        (["--prompt-tokens", "x"], "--prompt-tokens must be a whole number, 1 or more, got 'x'"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_limits(words, said, capsys):
    assert cli.main(["bench", "m", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
