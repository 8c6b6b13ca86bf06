# SPDX-License-Identifier: Apache-2.0
"""The theory of the memory against numbers that were derived apart, and against chance."""

import numpy as np
import pytest

from mnemosyne.analysis import capacity, recall
from mnemosyne.cli.capacity_report import EXAMPLE

PATTERNS = np.asarray([[0.3 if sign == "1" else -0.3 for sign in row] for row in EXAMPLE])
STATE = np.full(6, 0.3)
FLIPPED = STATE * np.asarray([-1, 1, 1, 1, 1, 1])


def test_storage_bound_has_the_exponent_that_the_proof_gives() -> None:
    assert capacity.storage_bound(*capacity.CROWDED) == pytest.approx(3.19, abs=0.01)
    # With tau - rho instead of tau - 2 rho it would allow this many.
    wrong = capacity.storage_bound(200, 0.1 + 0.045, 0.045)
    assert wrong == pytest.approx(2.1e8, rel=0.01)
    assert capacity.sharp_storage_bound(*capacity.CROWDED) == pytest.approx(1 + np.exp(2), rel=1e-6)


@pytest.mark.parametrize("code", capacity.CODES, ids=str)
def test_storage_theorem_holds_on_random_codes(code: tuple[int, float, float]) -> None:
    found = capacity.storage_violations(np.random.default_rng(0), *code, states=50)
    assert found["violations"] == 0
    assert 1 < found["patterns"] <= found["bound"]


def test_storage_theorem_fails_far_beyond_its_bound() -> None:
    # All 4,096 sign vectors: no state is near a pattern only.
    found = 0
    for index in range(20):
        rng = np.random.default_rng(index)
        patterns = rng.choice([-1.0, 1.0], (4096, 12))
        changes = capacity.flip_changes(patterns[0], patterns)
        found += int(np.sum(changes <= 0))
    assert found > 0


def test_flip_changes_are_differences_of_the_energy() -> None:
    rng = np.random.default_rng(0)
    patterns, state = rng.choice([-1.0, 1.0], (5, 8)), rng.choice([-1.0, 1.0], 8)
    changes = capacity.flip_changes(state, patterns, beta=0.7)
    for bit in range(8):
        other = state * np.where(np.arange(8) == bit, -1, 1)
        before, after = (-np.sum(np.exp(0.7 * patterns @ s)) for s in (state, other))
        assert changes[bit] == pytest.approx(after - before)


def test_random_code_keeps_its_distance() -> None:
    code = capacity.random_code(np.random.default_rng(0), 50, 24, 8.0)
    distances = 0.5 * (24 - code @ code.T)[~np.eye(len(code), dtype=bool)]
    assert len(code) > 10
    assert distances.min() >= 8


def test_crowded_arrangement_turns_at_the_sharp_bound() -> None:
    changes = [capacity.crowded_energy_change(num) for num in range(1, 21)]
    np.testing.assert_array_equal(np.asarray(changes) > 0, np.arange(1, 21) < 1 + np.exp(2))
    # e^2 - 1 for the nearest pattern, e^-2 - 1 for each other one.
    assert changes[19] == pytest.approx(np.exp(2) - 1 + 19 * (np.exp(-2) - 1), rel=1e-5)
    with pytest.raises(ValueError, match="between 1 and 20"):
        capacity.crowded_energy_change(21)


@pytest.mark.parametrize(("kernel", "variance"), [("exp", 0.4972), ("cosh", 0.1942)])
def test_flip_moments_match_known_numbers_and_monte_carlo(
    kernel: capacity.KernelName, variance: float
) -> None:
    mean, found = capacity.compact_flip_moments(STATE, FLIPPED, PATTERNS, 64, kernel)
    assert mean == pytest.approx(0.4865, abs=5e-5)
    assert found == pytest.approx(variance, abs=5e-5)
    sampled = capacity.compact_flip_samples(
        np.random.default_rng(0), STATE, FLIPPED[None], PATTERNS, 64, kernel, 10_000
    )
    assert abs(sampled.mean() - mean) < 5 * np.sqrt(variance / 10_000)
    assert sampled.var() == pytest.approx(variance, rel=0.05)


def test_correct_flips_need_features_that_grow_with_the_strength() -> None:
    assert capacity.required_features(1.0) == pytest.approx(np.exp(4) - 2 + np.exp(-4))
    assert capacity.required_features(4.0) > 8e6
    few, many = (capacity.correct_flips(0, 2.0, width, codes=8)[1] for width in (32, 2048))
    exact = capacity.correct_flips(0, 2.0, 32, codes=8)[0]
    assert 0.5 < few < 0.7 < many < exact
    assert exact > 0.99


def test_retrieval_of_random_patterns_breaks_down_above_the_limit() -> None:
    assert capacity.retrieval_limit(0.0) == pytest.approx(0.347, abs=5e-4)
    assert capacity.retrieval_limit(0.1) == pytest.approx(0.184, abs=5e-4)
    light, heavy = (capacity.retrieval_error(np.random.default_rng(0), x) for x in (0.1, 0.4))
    assert light < 5e-3
    assert 0.05 < heavy < 0.2


@pytest.mark.parametrize(
    ("norm", "orthogonal", "aligned"),
    [
        (0.7, (0.25, 0.18, 0.13, 0.09, 0.06), (0.57, 0.40, 0.29, 0.20, 0.14)),
        (1.0, (0.59, 0.42, 0.29, 0.21, 0.15), (1.8, 1.3, 0.91, 0.64, 0.45)),
        (1.5, (2.4, 1.7, 1.2, 0.83, 0.59), (22, 16, 11, 8.0, 5.6)),
        (2.0, (14, 10, 7, 5, 3), (745, 527, 373, 263, 186)),
    ],
)
def test_predicted_spread_has_the_known_values(
    norm: float, orthogonal: tuple[float, ...], aligned: tuple[float, ...]
) -> None:
    for same, expected in ((False, orthogonal), (True, aligned)):
        found = [recall.predicted_spread(norm, same, "cosh", width) for width in recall.WIDTHS]
        np.testing.assert_allclose(found, expected, rtol=0.15 if norm == 2 else 0.03, atol=6e-3)


def test_kernel_spread_matches_the_formula_and_orthogonal_is_smaller() -> None:
    spreads = {name: recall.kernel_spread(0, 0.5, False, name) for name in recall.VARIANTS}
    for name in ("exp", "cosh"):
        expected = [recall.predicted_spread(0.5, False, name, width) for width in recall.WIDTHS]
        np.testing.assert_allclose(spreads[name], expected, rtol=0.1)
    assert np.all(spreads["cosh, orthogonal"] < 0.8 * spreads["cosh"])


def test_read_error_is_that_of_the_known_table() -> None:
    for width, expected in {64: 0.08, 0: 0.19}.items():
        error, deviation = recall.read_error(0, 0.7, width)
        assert error == pytest.approx(expected, abs=max(0.015, 4 * deviation))


def test_streaming_form_rounds_only_and_rank_is_bounded() -> None:
    assert recall.streaming_gap(0, (0.2, 0.003), steps=60).max() < 1e-6
    assert recall.moving_average_gap(0, 0.1) < 1e-6
    assert recall.stored_rank(0, width=8, dim=16) == 8
