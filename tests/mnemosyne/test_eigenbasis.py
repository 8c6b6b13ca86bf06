# SPDX-License-Identifier: Apache-2.0
"""Rotation takes nothing away, follows the gradients' second moments, and never breaks."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne import eigenbasis, handover
from mnemosyne.telemetry import telemetry
from tests.mnemosyne import problems

CONFIG = dataclasses.replace(problems.LEAN, eigenbasis=True, adaptive=False)
SHAPES = {"vector": (5,), "matrix": (6, 4), "kernel": (2, 2, 3, 4), "column": (7, 1)}


class MomentumState(NamedTuple):
    mu: Any


def _momentum() -> optax.GradientTransformation:
    """Linear, so that rotating its input and its output changes nothing, if its state turns too."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MomentumState]:
        del params
        mu = jax.tree.map(lambda m, g: 0.9 * m + g, state.mu, updates)
        return mu, MomentumState(mu)

    return optax.GradientTransformation(
        lambda params: MomentumState(optax.tree.zeros_like(params)), update
    )


def _gradients(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {name: np.asarray(rng.standard_normal(s), np.float32) for name, s in SHAPES.items()}
        for _ in range(count)
    ]


def _run(opt: Any, gradients: list[Any]) -> tuple[list[Any], Any]:
    params = jax.tree.map(jnp.zeros_like, gradients[0])
    state, out, update = opt.init(params), [], jax.jit(opt.update)
    for gradient in gradients:
        moved, state = update(gradient, state, params)
        out.append(moved)
    return out, state


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigenbasis, "INTERVAL", 2)


@pytest.mark.usefixtures("often")
def test_linear_rule_is_the_same_in_every_basis() -> None:
    gradients = _gradients(7)
    plain, _ = _run(_momentum(), gradients)
    turned, state = _run(eigenbasis.in_eigenbasis(_momentum()), gradients)
    for a, b in zip(plain, turned, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)
    assert any(float(jnp.abs(u - jnp.eye(len(u))).max()) > 0.3 for u, _ in state.bases if u.size)
    for basis in jax.tree.leaves(state.bases):
        np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-5)


@pytest.mark.usefixtures("often")
def test_bases_are_the_eigenvectors_of_the_second_moments() -> None:
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (6, 4))
    rows, columns = 2.0 ** -np.arange(6), 3.0 ** -np.arange(4)
    gradients = [
        {"w": np.float32(u @ (rng.standard_normal((6, 4)) * np.outer(rows, columns)) @ v.T)}
        for _ in range(300)
    ]
    _, state = _run(eigenbasis.in_eigenbasis(_momentum()), gradients)
    for moment, basis in zip(state.moments[0], state.bases[0], strict=True):
        diagonal = basis.T @ moment @ basis
        np.testing.assert_allclose(jnp.trace(moment), 1.0 - 0.99**300, rtol=1e-4)
        off = diagonal - jnp.diag(jnp.diagonal(diagonal))
        assert float(jnp.abs(off).max()) < 2e-3
        assert bool((jnp.diff(jnp.diagonal(diagonal)) < 0).all())  # the largest first
    # The leading ones are those that the gradients were drawn with.
    assert abs(float(state.bases[0][0][:, 0] @ u[:, 0])) > 0.95
    assert abs(float(state.bases[0][1][:, 0] @ v[:, 0])) > 0.95


def test_wide_sides_and_vectors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigenbasis, "MAX_SIDE", 5)
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    state: Any = eigenbasis.in_eigenbasis(_momentum()).init(params)
    sides = {
        name: [len(q) for q in pair] for name, pair in zip(sorted(SHAPES), state.bases, strict=True)
    }
    assert sides == {"column": [0, 0], "kernel": [0, 4], "matrix": [0, 4], "vector": [0, 0]}


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_bases_do_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    gradients = _gradients(3)
    _, usual = _run(eigenbasis.in_eigenbasis(_momentum()), gradients)
    scaled = jax.tree.map(lambda x: np.float32(scale) * x, gradients)
    _, other = _run(eigenbasis.in_eigenbasis(_momentum()), scaled)
    for a, b in zip(jax.tree.leaves(usual.moments), jax.tree.leaves(other.moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_gradient_that_says_nothing_leaves_moments_and_bases(bad: float) -> None:
    optimizer = mnemosyne.from_meta_params(problems.meta_params(CONFIG), CONFIG)
    gradients = _gradients(3)
    _, before = _run(optimizer, gradients)
    nothing = jax.tree.map(lambda x: np.full_like(x, bad), gradients[0])
    moved, after = _run(optimizer, [*gradients, nothing])
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((moved, after)))
    if not np.isfinite(bad):
        assert optax.tree.norm(moved[-1]) == 0
    jax.tree.map(np.testing.assert_array_equal, before.moments, after.moments)
    jax.tree.map(np.testing.assert_array_equal, before.bases, after.bases)


@pytest.mark.usefixtures("often")
def test_rows_without_gradient_never_move() -> None:
    optimizer = mnemosyne.from_meta_params(problems.meta_params(CONFIG), CONFIG)
    gradients = _gradients(9)
    for gradient in gradients:
        gradient["matrix"][2] = 0.0
        gradient["matrix"][:, 1] = 0.0
    moved, _ = _run(optimizer, gradients)
    for updates in moved:
        assert float(jnp.abs(updates["matrix"][2]).max()) < 1e-9
        assert float(jnp.abs(updates["matrix"][:, 1]).max()) < 1e-9
        assert float(jnp.abs(updates["matrix"][0, 0])) > 1e-6


@pytest.mark.usefixtures("often")
def test_lanes_that_are_due_at_different_times_are_those_of_single_runs() -> None:
    optimizer = eigenbasis.in_eigenbasis(_momentum())
    runs = [_gradients(count, seed) for seed, count in enumerate((2, 3, 4, 5))]
    states = [_run(optimizer, gradients[:-1])[1] for gradients in runs]
    last = [gradients[-1] for gradients in runs]
    pairs = [jax.tree.map(lambda *x: jnp.stack(x), *xs) for xs in (last, states)]
    stacked = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), pairs)
    _, together = jax.jit(jax.vmap(jax.vmap(optimizer.update)))(*stacked)
    for i, gradients in enumerate(runs):
        _, alone = _run(optimizer, gradients)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x, y[i // 2, i % 2], atol=1e-5),
            alone.bases,
            together.bases,
        )


def test_gradients_flow_through_an_update_but_not_through_its_basis() -> None:
    optimizer = eigenbasis.in_eigenbasis(_momentum())
    (start, gradient) = jax.tree.map(jnp.asarray, _gradients(2))
    _, state = _run(optimizer, [start])

    def norm(x: Any) -> Any:
        moved, _ = optimizer.update(x, state, x)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(moved))

    found = jax.jit(jax.grad(norm))(gradient)
    moved, _ = jax.jit(optimizer.update)(gradient, state, gradient)
    # Of momentum, the derivative of the squared length is twice the update.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, 2 * y, atol=1e-4), found, moved)


def _noisy_bowl(direction: Any, rate: Any, key: Any) -> Any:
    """Loss after 400 steps in a bowl whose axes are no coordinates, as its gradients' noise is."""
    basis = jnp.linalg.qr(jax.random.normal(key, (16, 16)))[0]
    sizes = 10.0 ** -jnp.linspace(0.0, 3.0, 16)
    curvature, root = ((basis * sizes**power) @ basis.T for power in (1.0, 0.5))

    def step(carry: Any, key: Any) -> Any:
        x, state = carry
        gradient = curvature @ x + 0.3 * root @ jax.random.normal(key, x.shape)
        moved, state = direction.update(gradient, state, x)
        return (x - rate * moved, state), None

    x = jax.random.normal(jax.random.fold_in(key, 1), (16, 8))
    (x, _), _ = jax.lax.scan(step, (x, direction.init(x)), jax.random.split(key, 400))
    return 0.5 * jnp.sum(x * (curvature @ x))


def test_noisy_bowl_is_descended_further_than_in_its_coordinates() -> None:
    """What it is for: gradients whose noise is as anisotropic as the curvature."""
    keys = jax.random.split(jax.random.key(0), 4)
    rates = jnp.asarray([4e-3, 8e-3, 16e-3, 32e-3])
    adam = optax.scale_by_adam(0.9, 0.99)

    def mean_loss(rate: Any, direction: Any) -> Any:
        return jnp.mean(jax.vmap(lambda key: _noisy_bowl(direction, rate, key))(keys))

    # Each at its best rate.
    turned, plain = (
        jax.jit(jax.vmap(lambda rate, by=direction: mean_loss(rate, by)))(rates).min()
        for direction in (eigenbasis.in_eigenbasis(adam), adam)
    )
    assert turned < 0.6 * plain


def test_moments_are_handed_over_in_the_coordinates_of_the_weights() -> None:
    theta = mnemosyne.init_meta_params(jax.random.key(0), CONFIG)
    ours = mnemosyne.from_meta_params(theta, CONFIG)
    gradients = _gradients(40)
    _, state = _run(ours, gradients)
    reference = optax.adam(1e-3, 0.9, 0.99)
    _, adam = _run(reference, gradients)
    found: Any = handover.to_adam(state, adam, CONFIG, (0.9, 0.99))[0]
    for name, mu in adam[0].mu.items():
        np.testing.assert_allclose(found.mu[name], mu, atol=1e-5)
    # Second moments keep their sum, and rotated back and forth their mean.
    for name, nu in adam[0].nu.items():
        np.testing.assert_allclose(found.nu[name].sum(), nu.sum(), rtol=1e-2)


def test_telemetry_compares_in_the_coordinates_of_the_moments() -> None:
    theta = mnemosyne.init_meta_params(jax.random.key(0), CONFIG)
    moved, state = _run(mnemosyne.from_meta_params(theta, CONFIG), _gradients(20))
    scalars = jax.jit(telemetry)(state, moved[-1], moved[0])
    np.testing.assert_allclose(scalars["optimizer/cosine_to_adam"], 1.0, rtol=1e-4)
