# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from robotics import normalize

_NUMPY = np.random.default_rng(0)


def assert_are_statistics_of(statistics, samples):
    assert float(statistics.count) == len(samples)
    np.testing.assert_allclose(statistics.mean, samples.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics.variance, samples.var(0), rtol=1e-4, atol=1e-6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([1, 2, 17]), min_size=1, max_size=6))
def test_statistics_of_batches_equal_numpy_over_all_samples(sizes):
    samples = _NUMPY.normal([0.0, 5.0, -3.0], [1.0, 0.1, 20.0], (sum(sizes), 3)).astype(np.float32)
    statistics = normalize.init_statistics((3,))
    for part in np.split(samples, np.cumsum(sizes)[:-1]):
        statistics = normalize.update(statistics, jnp.asarray(part))
    assert_are_statistics_of(statistics, samples)


def test_leading_axes_are_all_samples():
    samples = _NUMPY.normal(1.0, 2.0, (7, 5, 3)).astype(np.float32)
    statistics = normalize.update(normalize.init_statistics((3,)), jnp.asarray(samples))
    assert_are_statistics_of(statistics, samples.reshape(35, 3))


def test_large_mean_does_not_cancel_the_variance():
    samples = (1e4 + _NUMPY.normal(0.0, 1.0, (4096,))).astype(np.float32)
    statistics = normalize.init_statistics(())
    for part in np.split(samples, 8):
        statistics = normalize.update(statistics, jnp.asarray(part))
    np.testing.assert_allclose(statistics.variance, samples.astype(np.float64).var(), rtol=0.01)


def test_merge_is_symmetric_and_has_the_empty_set_as_neutral_element():
    a = normalize.update(normalize.init_statistics(()), jnp.array([1.0, 2.0, 6.0]))
    b = normalize.update(normalize.init_statistics(()), jnp.array([-4.0, 0.0]))
    np.testing.assert_allclose(normalize.merge(a, b), normalize.merge(b, a), rtol=1e-6)
    empty = normalize.init_statistics(())
    np.testing.assert_allclose(normalize.merge(a, empty), a)
    np.testing.assert_allclose(normalize.merge(empty, a), a)


def test_constant_entry_has_a_floor_under_its_deviation():
    statistics = normalize.update(normalize.init_statistics(()), jnp.full(10, 3.0))
    assert float(normalize.standard_deviation(statistics)) == np.float32(1e-4)
