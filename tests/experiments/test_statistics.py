# SPDX-License-Identifier: Apache-2.0
"""Known values of the statistics."""

import numpy as np
import pytest

from experiments import statistics


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([0.0, 1.0, 2.0, 100.0], 1.5),
        ([1, 2, 3, 4, 5, 6, 7, 8], 4.5),
        ([0, 0, 9], 1.5),
    ],
)
def test_iqm_known_values(values: list, expected: float) -> None:
    # Three values: the middle one weighs 4/6, each outer one 1/6.
    np.testing.assert_allclose(statistics.iqm(np.asarray(values, float)), expected)


def test_bootstrap_interval_covers_and_shrinks() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=10), rng.normal(size=1000)
    widths = []
    for sample in (small, large):
        low, high = statistics.bootstrap(sample, lambda x: float(np.mean(x)), 1000)
        assert low < sample.mean() < high
        widths.append(high - low)
    np.testing.assert_allclose(widths[1], 2 * 1.96 / np.sqrt(1000), rtol=0.15)
    assert widths[0] > 3 * widths[1]


def test_iqm_ignores_infinite_outliers() -> None:
    assert statistics.iqm(np.asarray([np.inf, 1.0, 2.0, -np.inf])) == 1.5


def test_stratified_bootstrap_never_mixes_strata() -> None:
    # Within a stratum all runs agree, so no resample can differ.
    strata = [np.full(4, 1.0), np.full(3, 100.0)]
    interval = statistics.stratified_bootstrap(strata, lambda s: float(s[1].mean() - s[0].mean()))
    assert interval == (99.0, 99.0)
    noisy = [np.random.default_rng(i).normal(size=200) for i in range(4)]
    low, high = statistics.stratified_bootstrap(noisy, lambda s: float(np.mean(s)))
    # 800 standard normal runs.
    np.testing.assert_allclose(high - low, 2 * 1.96 / np.sqrt(800), rtol=0.15)


def test_probability_of_improvement_counts_pairs_and_half_of_ties() -> None:
    better, worse = np.asarray([2.0, 3.0]), np.asarray([0.0, 1.0])
    assert statistics.probability_of_improvement([better], [worse]) == 1.0
    assert statistics.probability_of_improvement([better, worse], [worse, better]) == 0.5
    assert statistics.probability_of_improvement([better], [better]) == 0.5


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [(0.5, "beats"), (0.0, "matches"), (-0.01, "matches"), (-0.5, "not better")],
)
def test_claim_rule(shift: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    rivals = [1.0 + 0.05 * rng.normal(size=8) for _ in range(6)]
    ours = [x + shift + 0.02 * rng.normal(size=8) for x in rivals]
    found = statistics.compare(ours, rivals)
    assert found.verdict == verdict
    np.testing.assert_allclose(found.difference, shift, atol=0.02)


def test_claim_rule_pairs_the_first_seeds_of_both() -> None:
    rivals = [np.asarray([1.0, 5.0, 9.0])]
    ours = [np.asarray([1.5, 5.5, 9.5, -100.0])]
    found = statistics.compare(ours, rivals)
    # Paired differences are all 0.5 although runs differ by 4; the unpaired test sees overlap.
    assert found.difference_ci95 == (0.5, 0.5) and found.verdict != "beats"
