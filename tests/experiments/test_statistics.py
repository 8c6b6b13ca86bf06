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
