"""Bits go where they keep most of what a model says."""

import pytest

from marlin.engine.mixing import Sensitivity, bits_of, choose
from marlin.errors import ConfigError

FEW, SOME, MANY = ("iq4", 32), ("int5", 32), ("int8", 32)  # 4.25, 5.5 and 8.5 bits
COLUMNS = 1 << 20  # so many that a row's steps count for nothing


def matrix(*costs, num_values=1000):
    return Sensitivity(num_values, COLUMNS, dict(zip((FEW, SOME, MANY), costs, strict=True)))


def test_bits_of_a_kind_are_those_of_codes_scales_and_biases():
    assert [bits_of(*choice, 512) for choice in (FEW, SOME, MANY)] == [4.28125, 5.5625, 8.5]
    assert bits_of("int4", 64, 128) == 4.5 and bits_of("iq4", 128, 256) == 4.125


def test_bits_go_to_the_matrices_whose_errors_cost_most():
    matrices = {"a": matrix(1, 0.3, 0.01), "b": matrix(9, 2.7, 0.09), "c": matrix(2, 0.6, 0.02)}
    assert choose(matrices, 4.251) == {"a": FEW, "b": FEW, "c": FEW}
    assert choose(matrices, 4.251 + 1.25 / 3) == {"a": FEW, "b": SOME, "c": FEW}
    assert choose(matrices, 4.251 + 2.5 / 3) == {"a": FEW, "b": SOME, "c": SOME}
    assert choose(matrices, 8.5) == {"a": MANY, "b": MANY, "c": MANY}


def test_large_matrices_pay_for_their_size():
    matrices = {"small": matrix(1, 0.3, 0.01), "large": matrix(2, 0.6, 0.02, num_values=4000)}
    assert choose(matrices, 4.501) == {"small": SOME, "large": FEW}


@pytest.mark.parametrize("bits", [4.3, 4.6, 5.0, 5.7, 6.5, 8.0])
def test_no_budget_is_passed_and_none_of_it_is_left_that_could_be_spent(bits):
    matrices = {str(n): matrix(n, n * 0.3, n * 0.01) for n in range(1, 200)}
    spent = [bits_of(*choice, COLUMNS) for choice in choose(matrices, bits).values()]
    assert bits - 3 / 199 < sum(spent) / len(spent) <= bits


def test_a_choice_of_more_bits_and_no_less_error_is_never_made():
    worse = {"a": Sensitivity(1000, COLUMNS, {FEW: 1.0, SOME: 1.2, MANY: 0.9})}
    assert choose(worse, 6.0) == {"a": FEW} and choose(worse, 8.5) == {"a": MANY}


def test_too_few_bits_are_refused_with_the_least_that_there_are():
    with pytest.raises(ConfigError, match=r"--mixed 4 is too few bits: these .* take 4\.250"):
        choose({"a": matrix(1, 0.3, 0.01)}, 4.0)
