# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robotics import optimizers
from robotics.optimizers import list_optimizers, make_optimizer, scale_by_kl_adaptive_rate

_PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
_EXTRAS = {"value": 1.0, "kl": 0.01, "progress": 0.25, "epoch": 0.0}


def _step(optimizer, state=None, grads=None, **extras):
    grads = jax.tree.map(jnp.ones_like, _PARAMS) if grads is None else grads
    state = optimizer.init(_PARAMS) if state is None else state
    return optimizer.update(grads, state, _PARAMS, **extras)


def factory():
    return optax.sgd(0.5)


def not_an_optimizer():
    return 3


def needs_arguments(rate):
    return optax.sgd(rate)


def test_the_rivals_of_the_policy_benchmark_are_known_by_name():
    assert list_optimizers() == [
        "adam", "adam-anneal", "adam-kl", "adam-rel", "adamw", "lion", "muon", "rmsprop", "sgd",
    ]  # fmt: skip


@pytest.mark.parametrize("name", list_optimizers())
@pytest.mark.parametrize("algo", ["ppo", "es"])
def test_every_named_optimizer_descends_and_keeps_its_state_structure(name, algo):
    if name == "adam-rel" and algo == "es":
        pytest.skip("follows rollouts")
    optimizer = make_optimizer(name, algo=algo)
    start = optimizer.init(_PARAMS)
    updates, state = _step(optimizer, start, **_EXTRAS)
    assert all(np.all(np.asarray(leaf) < 0) for leaf in jax.tree.leaves(updates))
    before, after = (
        jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), s) for s in (start, state)
    )
    assert before == after


def test_learning_rate_overrides_the_default():
    for name in list_optimizers():
        rates = [1e-3, 2e-3]
        small, large = (_step(make_optimizer(name, rate), **_EXTRAS)[0]["w"] for rate in rates)
        np.testing.assert_allclose(large, 2 * small, rtol=1e-4)


def test_adam_is_optax_adam_at_three_ten_thousandths():
    ours, _ = _step(make_optimizer("adam"))
    theirs, _ = _step(optax.adam(3e-4))
    np.testing.assert_array_equal(ours["w"], theirs["w"])


def test_annealed_rate_follows_progress_and_falls_back_to_counting():
    with_progress = make_optimizer("adam-anneal", 1e-3)
    full, half, none = (_step(with_progress, progress=p)[0]["w"][0] for p in (0.0, 0.5, 1.0))
    np.testing.assert_allclose([half / full, none], [0.5, 0.0], rtol=1e-6)
    counting = make_optimizer("adam-anneal", 1e-3, num_updates=2)
    first, state = _step(counting)
    second, _ = _step(counting, state)
    np.testing.assert_allclose(second["w"] / first["w"], 0.5, rtol=1e-4)
    with pytest.raises(ValueError, match="progress"):
        _step(make_optimizer("adam-anneal"))


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.021, 1 / 1.5),
        (0.019, 1.0),
        (0.0051, 1.0),
        (0.0049, 1.5),
        (0.0, 1.0),
        (jnp.nan, 1.0),
        (None, 1.0),
    ],
)
def test_kl_moves_the_rate_by_its_two_thresholds(kl, factor):
    _, state = _step(scale_by_kl_adaptive_rate(1e-3, target=0.01), kl=kl)
    np.testing.assert_allclose(state.learning_rate, 1e-3 * factor, rtol=1e-6)


def test_kl_adaptive_rate_acts_at_once_and_stays_in_its_range():
    optimizer = scale_by_kl_adaptive_rate(1e-3)
    updates, state = _step(optimizer, kl=1.0)
    np.testing.assert_allclose(updates["w"], -1e-3 / 1.5, rtol=1e-6)
    for kl, end in [(1.0, 1e-5), (1e-3, 1e-2)]:
        for _ in range(40):
            _, state = _step(optimizer, state, kl=kl)
        np.testing.assert_allclose(state.learning_rate, end, rtol=1e-6)


def _relative_steps(extras):
    """Steps of Adam-Rel at rate 1 under a constant gradient, by what it is told."""
    optimizer = make_optimizer("adam-rel", 1.0)
    state, steps = optimizer.init(_PARAMS), []
    for told in extras:
        updates, state = _step(optimizer, state, **told)
        steps.append(-float(updates["b"]))
    return np.asarray(steps)


def _bias_corrected(counts):
    """The same by hand: gradients of one, moments that never start over, time that does."""
    updates = np.arange(1, len(counts) + 1)
    counts = np.asarray(counts)
    mu, nu = ((1 - decay**updates) / (1 - decay**counts) for decay in (0.9, 0.999))
    return mu / np.sqrt(nu)


def test_adam_rel_counts_time_within_a_rollout_and_keeps_its_moments():
    # Two passes of two minibatches over two rollouts.
    epochs = [0.0, 0.0, 1.0, 1.0] * 2
    told = [{"epoch": epoch, "explained_variance": 0.25} for epoch in epochs]
    found = _relative_steps(told)
    np.testing.assert_allclose(found, _bias_corrected([1, 2, 3, 4] * 2), rtol=1e-3)
    assert found[4] > found[3]  # with a constant gradient Adam itself always moves by 1
    np.testing.assert_allclose(_relative_steps([{}] * 4), 1.0, rtol=1e-3)


def test_adam_rel_sees_a_new_rollout_of_a_single_pass_by_its_explained_variance():
    variances = [0.0, 0.0, 0.5, 0.5, jnp.nan, 0.6]
    told = [{"epoch": 0.0, "explained_variance": variance} for variance in variances]
    np.testing.assert_allclose(
        _relative_steps(told), _bias_corrected([1, 2, 1, 2, 3, 1]), rtol=1e-3
    )


def test_adam_rel_is_refused_where_there_are_no_rollouts():
    with pytest.raises(ValueError, match="which ES does not have"):
        make_optimizer("adam-rel", algo="es")


def test_muon_moves_matrices_along_their_singular_vectors_and_vectors_like_nadam():
    grads = {"w": jnp.diag(jnp.array([4.0, 1.0])), "b": jnp.array([3.0, -3.0])}
    optimizer = make_optimizer("muon", 1e-3)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    # With Nesterov momentum, whose first step is 0.9 * 0.1 / 0.19 + 1.
    np.testing.assert_allclose(updates["b"], [-1.4737e-3, 1.4737e-3], rtol=1e-4)
    # Singular values become about one, times 0.2 sqrt(2): a fifth of the rate root mean square.
    moved = np.asarray(updates["w"])
    np.testing.assert_allclose(np.diag(moved), -1e-3 * 0.2 * np.sqrt(2.0), rtol=0.4)
    np.testing.assert_allclose(moved - np.diag(np.diag(moved)), 0.0, atol=1e-9)


def test_factory_by_module_and_function_takes_extras():
    updates, _ = _step(make_optimizer(f"{__name__}:factory"), **_EXTRAS)
    np.testing.assert_allclose(updates["w"], -0.5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adm", "nearest valid one is 'adam'"),
        ("no_such_module:make", "cannot be imported"),
        (f"{__name__}:no_such_function", "cannot be imported"),
        (f"{__name__}:not_an_optimizer", "optax"),
        (f"{__name__}:needs_arguments", "without arguments"),
        (":make", "cannot be imported"),
    ],
)
def test_bad_name_is_refused_with_a_sentence(name, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(name)


def test_bad_learning_rate_is_refused_with_a_sentence():
    for rate in (0.0, -1e-3, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            make_optimizer("adam", rate)
    with pytest.raises(ValueError, match=r"0\.01"):
        make_optimizer("adam-kl", 0.5)
    with pytest.raises(ValueError, match="no learning rate"):
        make_optimizer(f"{__name__}:factory", 0.1)


def test_default_rates_are_known_for_every_name():
    for name in list_optimizers():
        assert optimizers.default_learning_rate(name) > 0
        assert (optimizers.default_learning_rate(name, "es") is None) == (name == "adam-rel")
    assert optimizers.default_learning_rate("module:function") is None
