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


@pytest.mark.parametrize(
    "name", ["adam", "adam-anneal", "adam-kl", "adamw", "lion", "rmsprop", "sgd"]
)
@pytest.mark.parametrize("algo", ["ppo", "es"])
def test_every_named_optimizer_descends_and_keeps_its_state_structure(name, algo):
    assert name in list_optimizers()
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
        assert optimizers.default_learning_rate(name, "es") > 0
    assert optimizers.default_learning_rate("module:function") is None
