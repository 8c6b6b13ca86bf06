# SPDX-License-Identifier: Apache-2.0
"""What all learned baselines keep: sizes, optax's contract, and the numbers of plain NumPy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne import baselines
from mnemosyne.baselines import adafactor, lstm
from tests.mnemosyne.baselines import reference

NAMES = list(baselines.BASELINES)
STEPS = 3
REFERENCES: dict[str, Callable[[Any], reference.Rule]] = {
    "lstm": lambda theta: reference.Lstm(theta, "paper"),
    "lstm-code": lambda theta: reference.Lstm(theta, "code"),
    "lstm-features": lambda theta: reference.Lstm(theta, "features"),
    "adafac-mlp": reference.AdafacMlp,
    "star": lambda theta: reference.AdafacMlp(theta, 1e-3, preconditioner="momentum"),
    "nn-adam": reference.NNAdam,
    "celo2": lambda theta: reference.Celo2(theta, _rate),
}


def _rate(count: Any) -> Any:
    """A schedule for the one rule that needs one."""
    return 1e-3 / (1.0 + count)


def _signature(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@functools.cache
def _fresh(name: str) -> Any:
    return jax.device_get(jax.jit(baselines.make(name).init)(jax.random.key(1)))


def _theta(name: str, noise: float = 0.0) -> Any:
    """Fresh meta-parameters; noise wakes what starts at zero."""
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda x: np.asarray(x + noise * rng.standard_normal(x.shape), np.float32), _fresh(name)
    )


def _params() -> dict[str, np.ndarray]:
    """Tensors of all ranks, some of them several rows of a block."""
    shapes = {"scalar": (), "bias": (10,), "matrix": (64, 33), "kernel": (3, 3, 2, 4)}
    rng = np.random.default_rng(0)
    return {k: np.asarray(0.3 * rng.standard_normal(s), np.float32) for k, s in shapes.items()}


@functools.cache
def _gradients() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)

    def noisy(p: np.ndarray) -> np.ndarray:
        return np.asarray(p + 0.3 * rng.standard_normal(p.shape), np.float32)

    return [jax.tree.map(noisy, _params()) for _ in range(STEPS)]


@functools.cache
def _program(name: str) -> Callable[..., Any]:
    """Several optimizers side by side, each for a few updates: vmap over scan, compiled once."""
    rule = baselines.celo2_rule(_rate) if name == "celo2" else baselines.make(name)

    def run(theta: Any, params: Any, gradients: Any) -> Any:
        opt = rule.transform(theta)

        def step(carry: Any, g: Any) -> Any:
            params, state = carry
            updates, state = opt.update(g, state, params, value=1.0, unknown=2.0)
            return (jax.tree.map(jnp.add, params, updates), state), updates

        return jax.lax.scan(step, (params, opt.init(params)), gradients)[1]

    return jax.jit(jax.vmap(run, (0, None, None)))


def _updates(name: str, thetas: list[Any]) -> list[list[Any]]:
    """Updates of every theta on the tree of all ranks."""
    params = _params()
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *thetas)
    every = jax.tree.map(lambda *leaves: np.stack(leaves), *_gradients())
    out = jax.device_get(_program(name)(stacked, params, every))
    return [
        [jax.tree.map(lambda x, i=i, t=t: x[i, t], out) for t in range(STEPS)]
        for i in range(len(thetas))
    ]


@pytest.mark.parametrize(
    ("name", "numbers", "floats"),
    [
        ("lstm", 5141, 80.0),
        ("lstm-code", 5141, 80.0),
        ("lstm-features", 5861, 85.0),
        ("adafac-mlp", 197, 4.03),
        ("star", 207, 4.03),
        ("nn-adam", 6856, 2.0),
        ("celo2", 347, 4.03),
    ],
)
def test_sizes_of_theta_and_state(name: str, numbers: int, floats: float) -> None:
    rule = baselines.make(name)
    theta = jax.eval_shape(rule.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {jnp.dtype(jnp.float32)}
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == numbers
    params = {"w": jax.ShapeDtypeStruct((784, 128), jnp.float32)}
    state = jax.eval_shape(lambda t, p: rule.transform(t).init(p), theta, params)
    per_parameter = sum(leaf.size for leaf in jax.tree.leaves(state)) / (784 * 128)
    assert per_parameter == pytest.approx(floats, abs=0.003)


def test_raw_lstm_has_a_channel_less() -> None:
    theta = jax.eval_shape(lambda key: lstm.init(key, "raw"), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == 5061


@pytest.mark.parametrize("name", ["lstm-features", "adafac-mlp", "nn-adam"])
def test_structure_and_dtypes_are_fixed(name: str) -> None:
    params = {"empty": np.zeros((0, 3)), **_params()}
    grads = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    opt = baselines.make(name).transform(_theta(name))
    state = jax.eval_shape(opt.init, params)
    updates, moved = jax.eval_shape(
        lambda g, s, p: opt.update(g, s, p, value=1.0, kl=0.1, unknown=3.0), grads, state, params
    )
    assert _signature(moved) == _signature(state)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), updates)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),
    }


@pytest.mark.parametrize("name", NAMES)
def test_fresh_state_is_zero_whatever_theta(name: str) -> None:
    # Perturbed copies of theta start from one state, and still feel all of their perturbation.
    params = {"w": np.ones((5, 7), np.float32), "b": np.ones(3, np.float32)}
    state = baselines.make(name).transform(_theta(name, 0.1)).init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", NAMES)
def test_rules_without_params_work_or_say_what_they_need(name: str) -> None:
    grads = jax.ShapeDtypeStruct((5, 7), jnp.bfloat16)
    opt = baselines.make(name).transform(_theta(name))
    state = jax.eval_shape(opt.init, grads)
    if name.startswith("lstm"):
        assert jax.eval_shape(opt.update, grads, state)[0].dtype == jnp.bfloat16
        return
    with pytest.raises(ValueError, match=f"{name} reads the parameters"):
        jax.eval_shape(opt.update, grads, state)


@pytest.mark.parametrize("name", NAMES)
def test_updates_are_those_of_numpy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "adafac-mlp":
        # The matrix counts as large here: it is a block of its own, the others share one.
        monkeypatch.setattr(adafactor, "MAX_PACKED", 1000)
    if name == "lstm":
        # Three chunks, and a padded last one.
        monkeypatch.setattr(lstm, "MAX_CHUNK", 1000)
    # Fresh, and with noise everywhere so that no weight, bias or head is silent.
    thetas = [_theta(name), _theta(name, 0.05)]
    for theta, ours in zip(thetas, _updates(name, thetas), strict=True):
        params = _params()
        expected = reference.run(lambda t=theta: REFERENCES[name](t), params, _gradients())
        pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True))
        size = max(np.abs(leaf).max() for _, leaf in pairs)
        assert size > 1e-5
        for leaf, reference_leaf in pairs:
            np.testing.assert_allclose(leaf, reference_leaf, rtol=2e-4, atol=1e-4 * size)


def test_fresh_star_is_its_nominal_term() -> None:
    accumulators: dict[str, reference.Adafac] = {}
    ours = _updates("star", [_theta("star")] * 2)[0]
    for t, g in enumerate(_gradients()):
        for name, update in ours[t].items():
            a = accumulators.setdefault(
                name, reference.Adafac([0.9, 0.99, 0.999], 0.999, [0.9] * 3)
            )
            a.add(np.asarray(g[name], np.float64))
            nominal = -1e-3 * np.mean(a.m, 0) / np.sqrt(a.v + 1e-6)
            np.testing.assert_allclose(update, nominal, rtol=1e-3, atol=1e-7)
    # Without bias correction it starts a little above the sign of the gradient.
    g = _gradients()[0]["matrix"]
    large = np.abs(g) > 0.5
    np.testing.assert_allclose(ours[0]["matrix"][large], -1.17e-3 * np.sign(g[large]), rtol=5e-3)


def test_fresh_nn_adam_is_adam_without_bias_correction() -> None:
    m, v = 0.0, 0.0
    ours = _updates("nn-adam", [_theta("nn-adam")] * 2)[0]
    for t, grads in enumerate(_gradients()):
        g = grads["matrix"].astype(np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected = -1e-4 * m / (np.sqrt(v + 1e-10) + 1e-8)
        np.testing.assert_allclose(ours[t]["matrix"], expected, rtol=1e-3, atol=1e-8)


def test_celo2_fixes_the_size_of_the_update_of_every_tensor() -> None:
    for t, updates in enumerate(_updates("celo2", [_theta("celo2")] * 2)[0]):
        for leaf in updates.values():
            assert np.sqrt(np.mean(leaf**2)) == pytest.approx(_rate(t), rel=1e-3)


def test_sums_over_rows_agree_for_few_and_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = adafactor._plan_rows(((100,), (3, 5), (64,), (130,)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *rows.used.shape)), jnp.float32)
    product = jax.jit(lambda x: adafactor.normalize(list(x), rows, 1e-5))(x)
    monkeypatch.setattr(adafactor, "MAX_ONE_HOT", 0)
    scatter = jax.jit(lambda x: adafactor.normalize(list(x), rows, 1e-5))(x)
    np.testing.assert_allclose(product, scatter, rtol=1e-5)
    first = np.asarray(x[0]).reshape(-1)[:100]
    expected = first / np.sqrt(1e-5 + np.mean(first**2))
    np.testing.assert_allclose(np.asarray(product[0]).reshape(-1)[:100], expected, rtol=1e-5)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'lstm-paper'; did you mean 'lstm"):
        baselines.make("lstm-paper")
    with pytest.raises(ValueError, match="preprocessing must be one of"):
        lstm._known("log")
    assert {name: baselines.make(name).name for name in NAMES} == {n: n for n in NAMES}
