"""`metal-marlin plan` beside what the same model takes in memory when it is loaded, and beside the
speeds that docs/performance.md has of it."""

import json

import pytest

from marlin import cli
from marlin.device.device import Device
from marlin.engine.forecast import Forecast, cpu, gpu
from marlin.engine.load import Batching, load_model
from marlin.models.checkpoint import open_checkpoint

CPU = ["--device", "cpu", "--bandwidth", "28.3", "--compute", "0.858"]
# Of docs/performance.md, on two threads; the rates are what its bench said of the machine.
READS, MULTIPLIES = 28.3e9, 858e9
DECODES = {128 + 64: 267, 512 + 64: 236, 2048 + 64: 179}  # tokens a second, by the context
PREFILLS = {128: 1699, 512: 1541, 2048: 1103}
ROWS_MS = {2: 4.7, 4: 5.9, 8: 9.7, 16: 16.2}


@pytest.fixture(scope="module")
def checkpoint(demo_model_path):
    device = Device(kind="cpu")
    yield open_checkpoint(demo_model_path, device)
    device.close()


def planned(capsys, path, *words):
    code = cli.main(["plan", str(path), *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_forecast_is_within_a_fifth_of_what_was_measured(checkpoint):
    both = [
        Forecast(checkpoint.spec, checkpoint.weight_bytes, one) for one in cpu(READS, MULTIPLIES)
    ]

    def middle(figure):
        return sum(map(figure, both)) / 2

    for context, measured in DECODES.items():
        assert middle(lambda one, n=context: 1 / one.step_s([n])) == pytest.approx(
            measured, rel=0.2
        )
    for count, measured in PREFILLS.items():
        found = middle(lambda one, n=count: n / one.prefill_s(n, 256))
        assert found == pytest.approx(measured, rel=0.2)
    for rows, measured in ROWS_MS.items():
        found = middle(lambda one, n=rows: 1000 * one.step_s([192] * n))
        assert found == pytest.approx(measured, rel=0.2)


def test_a_gpu_reads_launches_and_pays_for_a_step(checkpoint):
    least, most = gpu(100e9)
    assert (least.bytes_per_s, most.bytes_per_s) == (75e9, 87e9)
    forecast = Forecast(checkpoint.spec, checkpoint.weight_bytes, least)
    launches = 30 / 36 * (365 * 4e-6 + 475 * 0.6e-6)  # docs/metal.md's, of 36 layers
    read = (checkpoint.weight_bytes + 1000 * 30 * 4 * 3 * 64) / 75e9  # its embedding is tied
    assert forecast.step_s([1000]) == pytest.approx(read + launches + 0.5e-3, rel=0.01)


def test_what_is_planned_is_what_a_loaded_model_takes(demo_model_path, capsys):
    words = ["--memory", "4GB", "--context", "512", "--streams", "3", *CPU]
    code, report = planned(capsys, demo_model_path, *words)
    assert code == 0 and report["memory"]["fits"]
    model = load_model(demo_model_path, 1, 512, device_kind="cpu", batching=Batching(3 * 32, 16, 3))
    try:
        assert report["memory"]["kv_bytes"] == model.engine.stats().kv_bytes
    finally:
        model.close()


def test_what_does_not_fit_is_said_with_what_would(demo_model_path, capsys):
    def fits(streams):
        words = ["--memory", "1", "--context", "2k", "--streams", str(streams), *CPU]
        code, report = planned(capsys, demo_model_path, *words)
        assert code == (0 if report["memory"]["fits"] else 1)
        return report["memory"]

    most = fits(1)["streams_that_fit"]
    assert 1 < most < 100
    assert fits(most)["fits"] and not fits(most + 1)["fits"]


def test_a_fleet_has_as_many_servers_as_the_first_token_asks_for(demo_model_path, capsys):
    words = ["--memory", "4", "--context", "2k", "--streams", "16", *CPU, "--arrivals", "4"]
    words += ["--prompt-tokens", "512", "--output-tokens", "64"]
    _, report = planned(capsys, demo_model_path, *words, "--first-token", "4")
    enough = report["fleet"]
    assert enough["is_enough"] and enough["servers"] > 1 and enough["first_token_s"]["99"] <= 4
    _, report = planned(
        capsys,
        demo_model_path,
        *words,
        "--first-token",
        "2",
        "--servers",
        str(enough["servers"] - 1),
    )
    assert not report["fleet"]["is_enough"] and report["fleet"]["first_token_s"]["99"] > 4


def test_the_plan_as_text_says_how_fast_and_how_many(demo_model_path, capsys):
    words = ["--memory", "16GB", "--context", "8k", "--streams", "4", "--bandwidth", "68"]
    queue = ["--arrivals", "1", "--output-tokens", "16", "--servers", "2"]
    assert cli.main(["plan", str(demo_model_path), *words, *queue]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("in all") and line.endswith("fits") for line in lines)
    assert [line.split()[0] for line in lines] == [
        *("weights", "KV", "activations", "in", "streams", "decode", "decode", "prefill"),
        *("servers", "first", "answers"),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--context", "9k"], "--context 9216 is longer than the model's own, 8192"),
        (["--context", "1k", "--device", "cpu"], "--device cpu needs --compute"),
        (["--context", "1x"], "--context must be a whole number"),
        (["--context", "1k", "--bandwidth", "0"], "--bandwidth must be above 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(words, said, demo_model_path, capsys):
    given = ["--memory", "16GB", "--bandwidth", "68", *words]
    assert cli.main(["plan", str(demo_model_path), *given]) == 2
    assert said in capsys.readouterr().err
