"""The table of sampling parameters: what must agree with it, and how a request's values reach the
device's rows."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from marlin import cli
from marlin.device import abi
from marlin.engine.batch import SAMPLE_ROW, fill_sample_rows, penalty_entries
from marlin.engine.request import Request
from marlin.engine.sampling import PARAMETERS, SamplingParams, parse_sampling
from marlin.errors import RequestError
from marlin.server.api.fields import request_fields

SERVING = Path(__file__).parents[2] / "docs" / "serving.md"
# What a row of the device has of the request itself.
OF_THE_REQUEST = {"seed_low": "u4", "seed_high": "u4", "position": "u4"}
RANGED = [row for row in PARAMETERS if row.kind is not bool]


def parse(body):
    return parse_sampling(request_fields(body))


def named(rows):
    return {"argvalues": rows, "ids": [row.name for row in rows]}


def entries(prompt=(1, 2, 2), output=(5, 6, 5), **params):
    """{token id: (num_outputs, bias)}, after a look that none is there twice."""
    request = Request("id", list(prompt), SamplingParams(**params), 0, list(output))
    found = penalty_entries(request)
    assert len(set(found["token_id"].tolist())) == len(found)
    return {int(e["token_id"]): (int(e["num_outputs"]), float(e["bias"])) for e in found}


# --- the table, and what must agree with it ---


def test_the_devices_row_has_the_kernels_parameters_and_the_draws_place():
    """That shaders/params.h has the fields of abi.PARAMS is tests/device/test_abi.py's."""
    of_kernels = {row.name: {float: "f4", int: "u4"}[row.kind] for row in PARAMETERS if row.in_row}
    dtype = abi.PARAMS["SampleRow"]
    columns = {name: dtype[name].str[1:] for name in dtype.names}
    assert columns == of_kernels | OF_THE_REQUEST


def test_a_row_is_filled_with_every_value_that_was_asked_for():
    asked = {"temperature": 1.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125}
    penalties = {"frequency_penalty": -0.5, "presence_penalty": 1.25, "repetition_penalty": 1.75}
    params = parse({**asked, **penalties})
    rows = np.zeros(2, SAMPLE_ROW)
    fill_sample_rows(rows, Request("id", [1, 2, 3], params, (9 << 32) + 4, [5]))
    for index, row in enumerate(rows):
        found = dict(zip(rows.dtype.names, row.tolist(), strict=True))
        draw = {"seed_low": 4, "seed_high": 9, "position": 4 + index}
        assert found == asked | penalties | draw


@pytest.mark.parametrize("row", **named(PARAMETERS))
def test_the_documentation_has_the_parameter_with_its_range_and_default(row):
    lines = [line for line in SERVING.read_text().splitlines() if f"`{row.name}`" in line]
    cells = next(line for line in lines if line.startswith("| `")).strip("| ").split(" | ")
    numbers = [float(text) for text in re.findall(r"-?[0-9]+(?:\.[0-9]+)?", cells[1])]
    if row.name == "top_k":  # from "off" on, up to what the kernel's integer holds
        assert set(numbers) == {0, row.low}
    elif row.name == "seed":
        assert (row.low, row.high) == (-(2**63), 2**63 - 1) and "64-bit signed" in cells[1]
    elif row.kind is not bool:
        assert numbers[:1] == [row.low] and (row.high is None or numbers[1] == row.high)
    named_defaults = {"seed": "drawn anew", "max_tokens": "`--max-tokens`", "ignore_eos": "false"}
    assert cells[2] == (named_defaults.get(row.name) or f"{row.default:g}")


@pytest.mark.parametrize("row", **named(PARAMETERS))
def test_generate_has_an_option_for_the_parameter(row):
    flag = "--" + row.name.replace("_", "-")
    words = [flag] if row.kind is bool else [flag, "1"]
    assert getattr(cli.read(["generate", "M", *words], {}), row.name) == 1
    assert not getattr(cli.read(["generate", "M"], {}), row.name)


@pytest.mark.parametrize("row", **named(RANGED))
def test_a_parameter_takes_its_bounds_and_nothing_past_them(row):
    step = 1 if row.kind is int else 0.001
    for bound, outwards in ((row.low, -step), (row.high, step)):
        if bound is None:
            continue
        outside = bound if row.above_low and outwards < 0 else bound + outwards
        inside = outside - outwards
        asked = parse({row.name: inside})
        assert getattr(asked, row.name) == row.adjust(row.kind(inside))
        with pytest.raises(RequestError, match=f"^{row.name} must be ") as refused:
            parse({row.name: outside})
        assert refused.value.param == row.name


@pytest.mark.parametrize("row", **named(PARAMETERS))
@pytest.mark.parametrize("wrong", ["1", [1], {}])
def test_a_parameter_of_another_type_is_refused(row, wrong):
    with pytest.raises(RequestError, match=f"^{row.name} must be .*, got "):
        parse({row.name: wrong})


@pytest.mark.parametrize("row", **named(PARAMETERS))
def test_null_and_absence_mean_the_default(row):
    assert parse({row.name: None}) == parse({}) == SamplingParams()


def test_what_each_api_spells_its_own_way_is_no_row():
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert names - {row.name for row in PARAMETERS} == {
        *("logit_bias", "num_logprobs", "score_prompt", "constraint", "grammar"),
        *("thought_tokens", "thought"),
    }


# --- penalties and biases, each token once ---


def test_nothing_set_changes_nothing():
    assert entries() == {}


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties_count_the_outputs_alone(name):
    assert entries(**{name: 0.5}) == {5: (2, 0.0), 6: (1, 0.0)}


def test_a_repetition_penalty_sees_the_prompt_too():
    seen = {1: (0, 0.0), 2: (0, 0.0), 5: (2, 0.0), 6: (1, 0.0)}
    assert entries(repetition_penalty=1.2) == seen


def test_a_bias_alone_leaves_the_penalties_off():
    assert entries(logit_bias=((5, -100.0), (9, 2.5))) == {5: (-1, -100.0), 9: (-1, 2.5)}


def test_a_token_with_penalty_and_bias_is_one_entry_with_both():
    found = entries(frequency_penalty=0.5, logit_bias=((9, 1.0), (5, -1.0)))
    assert found == {5: (2, -1.0), 6: (1, 0.0), 9: (-1, 1.0)}


def test_a_bias_on_a_token_of_the_prompt_keeps_the_repetition_penalty():
    found = entries(output=(), repetition_penalty=2.0, logit_bias=((2, 3.0),))
    assert found == {1: (0, 0.0), 2: (0, 3.0)}
