"""From logits to token ids: penalties to the bit, greedy choice, and draws that follow the oracle's
distribution and depend on seed and position alone."""

import launch
import numpy as np
import pytest
import reference

from marlin.device import abi

NO_PENALTY = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}


def sample_rows(num_rows, seed=0, position=0, **settings):
    """SampleRow [num_rows] at positions from `position` on."""
    rows = np.zeros(num_rows, abi.PARAMS["SampleRow"])
    defaults = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, **NO_PENALTY}
    for name, value in (defaults | settings).items():
        rows[name] = value
    rows["seed_low"], rows["seed_high"] = seed & 0xFFFFFFFF, seed >> 32
    rows["position"] = position + np.arange(num_rows)
    return rows


def draws(device, logits, num_draws, seed=0, **settings):
    """int32 [num_draws] of one row of logits at successive positions."""
    tiled = np.tile(np.asarray(logits, np.float32), (num_draws, 1))
    return launch.sample(device, tiled, sample_rows(num_draws, seed, **settings))


def one(device, logits, **settings):
    return int(draws(device, logits, 1, **settings)[0])


def logits_of(vocab_size, seed=0, spread=2.0):
    """float32 [vocab_size] without two equal values."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(vocab_size) * spread).astype(np.float32)


# --- greedy ---


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 33, 700])
def test_temperature_zero_takes_the_largest_wherever_it_is(device, vocab_size):
    logits = np.tile(logits_of(vocab_size), (vocab_size, 1))
    np.fill_diagonal(logits, 50.0)
    ids = launch.sample(device, logits, sample_rows(vocab_size, temperature=0.0))
    assert ids.tolist() == list(range(vocab_size))


@pytest.mark.parametrize("tied", [(3, 5), (0, 32), (15, 16), (31, 32), (7, 8, 9)])
def test_the_lowest_id_wins_a_tie(device, tied):
    logits = logits_of(33)
    logits[list(tied)] = 9.0
    assert one(device, logits, temperature=0.0) == min(tied)


def test_top_k_of_one_is_greedy_at_any_temperature(device):
    logits = np.stack([logits_of(100, seed) for seed in range(20)])
    hot = launch.sample(device, logits, sample_rows(20, temperature=5.0, top_k=1))
    assert hot.tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}])
def test_infinite_logits_are_never_or_always_drawn(device, settings):
    logits = logits_of(33)
    logits[::2] = -np.inf
    assert (draws(device, logits, 200, **settings) % 2 == 1).all()
    logits[8] = np.inf
    assert (draws(device, logits, 20, **settings) == 8).all()
    assert one(device, logits, temperature=0.0) == 8


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 3}, {"temperature": 0.0}])
@pytest.mark.parametrize("vocab_size", [1, 16, 33, 700])
def test_a_row_without_a_number_gives_no_token_and_its_neighbours_theirs(
    device, vocab_size, settings
):
    logits = np.full((4, vocab_size), np.nan, np.float32)
    logits[1] = -np.inf
    logits[2, 1::2] = -np.inf
    logits[3, -1] = -5.0
    ids = launch.sample(device, logits, sample_rows(4, **settings))
    assert ids.tolist() == [-1, -1, -1, vocab_size - 1]


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 3}, {"temperature": 0.0}])
@pytest.mark.parametrize("place", [0, 15, 16, 31, 32])
def test_the_largest_is_found_past_what_is_not_a_number(device, place, settings):
    """Wherever it is, and whatever lies behind it in its lane of a vector register."""
    logits = np.full((2, 99), np.nan, np.float32)
    logits[1] = -3.0
    logits[1, place + 1 : place + 33] = np.nan
    logits[:, place] = 50.0
    ids = launch.sample(device, logits, sample_rows(2, **settings))
    assert ids.tolist() == [place, place]


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_huge_logits_do_not_overflow(device, size):
    logits = np.linspace(-size, size, 33).astype(np.float32)
    assert (draws(device, logits, 50) == 32).all()
    assert one(device, logits, temperature=0.0) == 32


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40])
def test_a_temperature_near_zero_is_greedy(device, temperature):
    logits = logits_of(50)
    assert (draws(device, logits, 20, temperature=temperature) == logits.argmax()).all()


# --- draws ---

SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7, "min_p": 0.1},
    {"top_k": 5},
    {"top_p": 0.7},
    {"top_p": 0.05},
    {"top_k": 10, "top_p": 0.8},
    {"temperature": 0.8, "min_p": 0.02, "top_k": 20, "top_p": 0.9},
    {"top_k": 1000, "top_p": 0.5},
]


def assert_frequencies_match(ids, expected):
    """No impossible token, and a chi-square statistic within 5 deviations of its mean: the draws
    are fixed by their seed, so this either always holds or never."""
    counts = np.bincount(ids, minlength=len(expected))
    assert counts[expected == 0].sum() == 0, np.flatnonzero(counts * (expected == 0))
    wanted = expected * len(ids)
    # Tokens expected less than five times are taken together: the statistic needs large counts.
    rare = (wanted < 5) & (expected > 0)
    groups = [(counts[i], wanted[i]) for i in np.flatnonzero(wanted >= 5)]
    if rare.any():
        groups.append((counts[rare].sum(), wanted[rare].sum()))
    statistic = sum((count - mean) ** 2 / mean for count, mean in groups)
    freedom = max(len(groups) - 1, 1)
    assert statistic <= freedom + 5 * np.sqrt(2 * freedom), (statistic, freedom)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_frequencies_follow_the_distribution(device, settings):
    logits = logits_of(50)
    # A draw takes a millisecond on a simulated GPU.
    ids = draws(device, logits, 4000 if device.kind == "cpu" else 1000, seed=11, **settings)
    assert_frequencies_match(ids, reference.distribution(logits, **settings))


@pytest.mark.parametrize("top_k", [0, 2, 50, 300])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_exactly_the_tokens_of_the_distribution_can_be_drawn(any_device, top_k, top_p, spread):
    """With many draws of few tokens every one that may be drawn is, when none is rare."""
    logits = logits_of(400, seed=int(spread * 2), spread=spread)
    expected = reference.distribution(logits, top_p=top_p, top_k=top_k)
    ids = draws(any_device, logits, 3000, seed=5, top_p=top_p, top_k=top_k)
    common = np.flatnonzero(expected > 0.01)
    assert set(common) <= set(ids.tolist()) <= set(np.flatnonzero(expected))


def test_top_p_is_a_share_of_what_top_k_left(device):
    # Relative weights 1, 0.3, 0.1 and many small ones, 1.5 in all: 90% needs the first three, while
    # 90% of the first three alone would be reached by two.
    weights = np.array([1.0, 0.3, 0.1] + [0.002] * 50)
    settings = {"top_k": 50, "top_p": 0.9}
    expected = reference.distribution(np.log(weights), **settings)
    assert np.flatnonzero(expected).tolist() == [0, 1, 2]
    ids = draws(device, np.log(weights), 500, **settings)
    assert set(ids.tolist()) == {0, 1, 2}


def test_equal_logits_turn_a_draw_into_its_uniform_number(device):
    ids = draws(device, np.zeros(1024), 200, seed=(7 << 32) + 3)
    expected = [int(reference.uniform((7 << 32) + 3, position) * 1024) for position in range(200)]
    assert ids.tolist() == expected


def test_a_draw_depends_on_its_seed_and_position_alone(device):
    logits = np.stack([logits_of(300, seed) for seed in range(17)])
    rows = sample_rows(17, seed=1 << 40, position=1000, temperature=1.5, top_p=0.95)
    together = launch.sample(device, logits, rows)
    backwards = launch.sample(device, logits[::-1].copy(), rows[::-1].copy())
    assert backwards[::-1].tolist() == together.tolist()
    alone = [int(launch.sample(device, logits[i : i + 1], rows[i : i + 1])[0]) for i in range(17)]
    assert alone == together.tolist()


@pytest.mark.parametrize("change", [{"seed": 2}, {"seed": 1 << 32 | 1}, {"position": 200}])
def test_another_seed_or_position_is_another_draw(device, change):
    logits = np.zeros(1024)
    first, second = (
        draws(device, logits, 100, seed=1),
        draws(device, logits, 100, **{"seed": 1} | change),
    )
    assert np.mean(first == second) < 0.1


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_instruction_set_and_thread_count_draws_the_same(isa, devices, settings):
    logits = logits_of(333)
    expected = draws(devices.get("scalar"), logits, 60, seed=3, **settings)
    for num_threads in (1, 2, 3):
        ids = draws(devices.get(isa, num_threads), logits, 60, seed=3, **settings)
        assert ids.tolist() == expected.tolist()


# --- penalties ---

PENALTIES = [
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.1},
    {"repetition_penalty": 0.8, "frequency_penalty": -0.3, "presence_penalty": 0.9},
]


def penalty_arrays(lists):
    """(entries PenaltyEntry [all], starts int32 [rows + 1]) of a list of entries a row."""
    flat = [entry for entries in lists for entry in entries]
    starts = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    return np.array(flat or [(0, -1, 0.0)], abi.PARAMS["PenaltyEntry"]), starts


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
def test_penalties_change_the_listed_tokens_to_the_bit(device, penalties):
    logits = np.stack([logits_of(33, seed) for seed in range(5)])
    lists = [
        [(0, 1, 0.0), (32, 3, 0.0), (16, 0, 0.0)],
        [],
        [(5, 0, 2.5), (6, -1, -1.25), (7, 2, 100.0)],
        [(token_id, token_id % 4 - 1, 0.125) for token_id in range(33)],
        [(31, -1, -np.inf)],
    ]
    rows = sample_rows(5, **penalties)
    rows[3]["repetition_penalty"] = 1.0
    expected = [reference.penalize(*row) for row in zip(logits, lists, rows, strict=True)]
    actual = launch.penalize(device, logits, *penalty_arrays(lists), rows)
    np.testing.assert_array_equal(actual, np.stack(expected))


def test_repetition_pushes_both_signs_down(device):
    logits = np.array([[4.0, -4.0, 0.0]], np.float32)
    entries, starts = penalty_arrays([[(0, 0, 0.0), (1, 0, 0.0), (2, 0, 0.0)]])
    rows = sample_rows(1, repetition_penalty=2.0)
    assert launch.penalize(device, logits, entries, starts, rows).tolist() == [[2.0, -8.0, 0.0]]


def test_neutral_penalties_change_nothing(device):
    logits = logits_of(100)[None]
    entries, starts = penalty_arrays([[(token_id, 3, 0.0) for token_id in range(100)]])
    actual = launch.penalize(device, logits, entries, starts, sample_rows(1))
    np.testing.assert_array_equal(actual, logits)


def test_minus_infinity_stays_banned_under_penalties(device):
    logits = np.full((1, 4), -np.inf, np.float32)
    entries, starts = penalty_arrays([[(0, 2, 5.0), (1, 0, 0.0), (2, -1, 1.0)]])
    rows = sample_rows(1, repetition_penalty=1.5, frequency_penalty=2.0)
    assert launch.penalize(device, logits, entries, starts, rows).tolist() == [[-np.inf] * 4]


# --- masks ---


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 700])
def test_a_mask_leaves_the_logits_of_its_bits_and_no_others(device, vocab_size):
    rng = np.random.default_rng(vocab_size)
    logits = np.stack([logits_of(vocab_size, seed) for seed in range(4)])
    masks = rng.integers(0, 2**32, (3, -(-vocab_size // 32))).astype(np.uint32)
    masks[1] = 0xFFFFFFFF
    rows = np.array([3, 0, 1], np.int32)
    masked = launch.mask_logits(device, logits, masks, rows)
    np.testing.assert_array_equal(masked, reference.mask_logits(logits, masks, rows))
    np.testing.assert_array_equal(masked[[0, 2]], logits[[0, 2]])
