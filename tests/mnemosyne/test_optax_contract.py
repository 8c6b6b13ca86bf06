# SPDX-License-Identifier: Apache-2.0
"""What optax and its users expect of every transformation; the battery of optax's own tests."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from tests.mnemosyne import problems

Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]


def _signature(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.fixture(scope="module")
def jitted() -> tuple[Callable[..., Any], list[int]]:
    """A jitted update that donates the state, and the list that grows with every trace of it."""
    theta, traces = problems.meta_params(problems.SMALL), []
    opt = mnemosyne.from_meta_params(theta, problems.SMALL)

    def step(state: Any, grads: Any, params: Any) -> tuple[Any, Any]:
        traces.append(1)
        return opt.update(grads, state, params)

    return jax.jit(step, donate_argnums=0), traces


def test_state_structure_dtype_and_weak_type_are_fixed() -> None:
    params, opt = problems.pair(), problems.small()
    state = opt.init(params)
    update = lambda s: opt.update(params, s, params, value=1.0, kl=0.01, progress=0.5)[1]  # noqa: E731
    assert _signature(state) == _signature(jax.eval_shape(update, state))
    assert _signature(state) == _signature(opt.update(params, state, params)[1])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_state_is_a_cond_branch_and_a_while_carry() -> None:
    params, opt = problems.pair(), problems.small()

    def body(carry: tuple) -> tuple:
        index, state = carry
        state = jax.lax.cond(
            index % 2 == 0, lambda s: opt.update(params, s, params)[1], lambda s: s, state
        )
        return index + 1, state

    _, state = jax.lax.while_loop(lambda c: c[0] < 4, body, (0, opt.init(params)))
    assert int(state.count) == 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_updates_have_the_dtype_of_the_parameters(dtype: jnp.dtype) -> None:
    params = jax.tree.map(lambda x: x.astype(dtype), problems.pair())
    opt = problems.small()
    updates, state = opt.update(params, opt.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.mu)} == {jnp.dtype(jnp.float32)}
    # Gradients are not rounded further, so the updates differ by the rounding of their inputs.
    full = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    expected, _ = opt.update(full, opt.init(full), full)
    eps = float(jnp.finfo(dtype).eps)
    # The smallest updates are not even normal numbers of float16.
    atol = float(jnp.finfo(dtype).smallest_subnormal)
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2 * eps, atol=atol)


def test_update_compiles_once(jitted: tuple[Callable[..., Any], list[int]]) -> None:
    step, traces = jitted
    params = problems.pair()
    state = problems.small().init(params)
    for _ in range(3):
        _, state = step(state, params, params)
    assert len(traces) == 1


def test_donated_state_gives_the_same_numbers(
    jitted: tuple[Callable[..., Any], list[int]],
) -> None:
    params, opt = problems.pair(), problems.small()
    state, plain = opt.init(params), opt.init(params)
    for _ in range(2):
        updates, state = jitted[0](state, params, params)
        expected, plain = opt.update(params, plain, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), updates, expected
    )


def test_vmap_over_meta_params_equals_a_loop() -> None:
    params, theta = problems.pair(), problems.meta_params(problems.SMALL)
    factors = np.asarray([1.0, 1.1, 0.9], np.float32)
    thetas = jax.tree.map(lambda x: np.float32(np.multiply.outer(factors, x)), theta)
    state = mnemosyne.from_meta_params(theta, problems.SMALL).init(params)

    def update(theta: Any, state: Any) -> Any:
        return mnemosyne.from_meta_params(theta, problems.SMALL).update(params, state, params)

    alone, together = jax.jit(update), jax.jit(jax.vmap(update))
    updates, states = together(thetas, jax.tree.map(lambda x: np.stack([x] * 3), state))
    updates, states = together(thetas, states)
    for index in range(3):
        one = jax.tree.map(lambda x, i=index: x[i], thetas)
        expected, _ = alone(one, alone(one, state)[1])
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-7),
            updates,
            expected,
        )


# What wraps an update sees its state and its arguments, not the size of its network.
LEARNED = {"bias": "learned", "matrix": "learned", "other": "adam"}
WRAPPERS: dict[str, Wrap] = {
    "chain": lambda opt: optax.chain(optax.clip_by_global_norm(1.0), opt),
    "multi_steps": lambda opt: optax.MultiSteps(opt, 2).gradient_transformation(),
    "flatten": lambda opt: optax.flatten(opt),
    "masked": lambda opt: optax.masked(
        opt, {name: by == "learned" for name, by in LEARNED.items()}
    ),
    "partition": lambda opt: optax.partition({"learned": opt, "adam": optax.adam(1e-3)}, LEARNED),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_optax_compose(name: str) -> None:
    params = problems.pair()
    if name in ("masked", "partition"):
        params["other"] = jnp.ones(2)
    moved = problems.two_updates(WRAPPERS[name](problems.lean()), params)
    for tensor in ("bias", "matrix"):
        assert problems.gap(moved[tensor], params[tensor]) > 0
    assert problems.all_finite(moved)


def test_lookahead_of_optax_composes() -> None:
    params = problems.pair()
    start = optax.LookaheadParams.init_synced(params)
    moved = problems.two_updates(optax.lookahead(problems.lean(), 2, 0.5), start, params)
    assert problems.gap(moved.fast, params) > 1e-4
    # After two fast steps the slow parameters go half of the way, and the fast ones join them.
    assert problems.gap(moved.fast, moved.slow) < 1e-6
    assert problems.all_finite(moved)


def test_apply_if_finite_composes_and_recovers() -> None:
    params = problems.pair()
    opt = optax.apply_if_finite(problems.lean(), 5)
    state, update = opt.init(params), jax.jit(opt.update)
    bad = jax.tree.map(lambda x: jnp.nan * x, params)
    updates, state = update(bad, state, params)
    assert problems.norm(updates) == 0
    for _ in range(2):
        updates, state = update(params, state, params)
        assert problems.norm(updates) > 0
        assert problems.all_finite(updates)


def test_inject_hyperparams_sees_the_learning_rate_and_nothing_else() -> None:
    params = problems.pair()

    def build(meta_params: object, learning_rate: float) -> optax.GradientTransformation:
        return mnemosyne.from_meta_params(meta_params, problems.LEAN, learning_rate=learning_rate)

    theta = problems.meta_params(problems.LEAN)
    opt = optax.inject_hyperparams(build, static_args=())(theta, learning_rate=0.5)
    state = opt.init(params)
    assert set(state.hyperparams) == {"learning_rate"}
    updates, _ = jax.jit(opt.update)(params, state, params)
    plain, _ = problems.lean().update(params, problems.lean().init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.5 * b, rtol=1e-5), updates, plain)


def test_tree_map_params_finds_the_moments() -> None:
    params = problems.pair()
    opt = problems.small()
    state = opt.init(params)
    marked = optax.tree.map_params(opt, lambda _: "moment", state)
    assert set(jax.tree.leaves(marked.mu)) == {"moment"}
    assert set(jax.tree.leaves(marked.nu)) == {"moment"}
    assert isinstance(marked.count, jax.Array)


def test_empty_leaves_and_empty_trees_pass_through() -> None:
    params = {"empty": jnp.zeros((0, 3)), **problems.pair()}
    opt = problems.small()
    updates, state = opt.update(params, opt.init(params), params)
    assert updates["empty"].shape == (0, 3)
    assert jnp.all(updates["matrix"] != 0)
    assert opt.update({}, opt.init({}), {})[0] == {}
    assert _signature(state) == _signature(opt.init(params))


@pytest.fixture(scope="module")
def descend() -> Callable[[Any], jax.Array]:
    """3000 updates of the untrained network: on the parabola or, if told so, on Rosenbrock's."""
    opt = mnemosyne.from_meta_params(problems.untrained(), learning_rate=10.0)

    def loss(x: jax.Array, rosenbrock: jax.Array) -> jax.Array:
        parabola = jnp.sum(jnp.square(x - 1.0))
        return jnp.where(rosenbrock, 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, parabola)

    @jax.jit
    def run(rosenbrock: jax.Array) -> jax.Array:
        def step(carry: tuple, _: None) -> tuple:
            x, state = carry
            value, grad = jax.value_and_grad(loss)(x, rosenbrock)
            updates, state = opt.update(grad, state, x, value=value)
            return (optax.apply_updates(x, updates), state), None

        start = jnp.asarray([-1.0, 0.5])
        (x, _), _ = jax.lax.scan(step, (start, opt.init(start)), None, length=3000)
        return x

    return run


@pytest.mark.parametrize("rosenbrock", [False, True])
def test_convergence_targets_of_optax(
    descend: Callable[[Any], jax.Array], rosenbrock: bool
) -> None:
    np.testing.assert_allclose(descend(jnp.asarray(rosenbrock)), jnp.ones(2), atol=0.05)
