# SPDX-License-Identifier: Apache-2.0
"""A design in which every number's effect is measured by all runs, free of the others'."""

import numpy as np
import pytest

from experiments import policy_search
from experiments.benchmarks.options import Options
from experiments.benchmarks.policies import suites
from experiments.policy_start import Numbers

NAMES = list(policy_search.RANGES)


def test_design_is_balanced_and_orthogonal() -> None:
    signs = 2 * policy_search.design(NAMES) - 1
    np.testing.assert_array_equal(signs.sum(axis=0), 0)
    np.testing.assert_array_equal(signs.T @ signs, policy_search.CANDIDATES * np.eye(len(NAMES)))


def test_effects_are_recovered_whatever_the_others_are() -> None:
    rng = np.random.default_rng(0)
    true = dict(zip(NAMES, rng.normal(size=len(NAMES)), strict=True))
    tried = policy_search.candidates(NAMES)
    values = np.full(policy_search.CANDIDATES, 7.0)
    for name, slope in true.items():
        low, high = policy_search.RANGES[name]
        values += slope * (getattr(tried, name) - low) / (high - low)
    found = policy_search.effects(NAMES, values)
    assert found == pytest.approx(true)


def test_candidates_keep_what_does_not_vary() -> None:
    tried = policy_search.candidates(["target"])
    assert set(tried.target.tolist()) == set(policy_search.RANGES["target"])
    assert set(tried.value.tolist()) == {Numbers().value}


@pytest.mark.parametrize("name", list(policy_search.RANGES))
def test_ranges_hold_the_shipped_number(name: str) -> None:
    low, high = policy_search.RANGES[name]
    assert low <= getattr(Numbers(), name) <= high


@pytest.mark.parametrize(
    ("env", "names", "words"),
    [
        ("brax:ant", ["target"], "hold-out"),
        ("brax:hopper", ["speed"], "there is no such number"),
    ],
)
def test_search_refuses(env: str, names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy_search.search(env, names, 1)


@pytest.mark.slow
def test_run_differs_by_candidate_and_by_nothing_else() -> None:
    cell = suites.cell_of(Options(size="smoke"), "control:pointmass")
    values = Numbers(*(np.full(3, x) for x in Numbers()))
    values = values._replace(value=np.asarray([1.4, 1.4, -3.0]))
    found = policy_search.run(cell, values, 2)
    assert found.final[0] == found.final[1] != found.final[2]
    assert np.isfinite(found.final).all() and np.isfinite(found.area).all()
