# SPDX-License-Identifier: Apache-2.0
"""What optax and its users expect of every transformation; the battery of optax's own common tests."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from tests.mnemosyne import problems

THETA = problems.meta_params()


def _optimizer(**arguments: object) -> optax.GradientTransformationExtraArgs:
    return mnemosyne.from_meta_params(THETA, **arguments)


def _signature(tree: object) -> object:
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def test_state_structure_dtype_and_weak_type_are_fixed() -> None:
    params, opt = problems.tree(), _optimizer()
    state = opt.init(params)
    _, after = opt.update(params, state, params, value=1.0, kl=0.01, progress=0.5)
    assert _signature(state) == _signature(after)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_state_is_a_cond_branch_and_a_while_carry() -> None:
    params, opt = problems.tree(), _optimizer()

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
    params = jax.tree.map(lambda x: x.astype(dtype), problems.tree())
    opt = _optimizer()
    updates, state = opt.update(params, opt.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.mu)} == {jnp.dtype(jnp.float32)}


def test_update_compiles_once() -> None:
    params, opt, traces = problems.tree(), _optimizer(), []

    @jax.jit
    def step(grads: object, state: object, params: object) -> tuple:
        traces.append(1)
        return opt.update(grads, state, params)

    state = opt.init(params)
    for _ in range(3):
        _, state = step(params, state, params)
    assert len(traces) == 1


def test_vmap_over_meta_params_equals_a_loop() -> None:
    params = problems.tree()
    thetas = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x, 0.9 * x]), THETA)

    def run(theta: object) -> object:
        opt = mnemosyne.from_meta_params(theta)
        state = opt.init(params)
        for _ in range(2):
            updates, state = opt.update(params, state, params)
        return updates

    together = jax.vmap(run)(thetas)
    for index in range(3):
        alone = run(jax.tree.map(lambda x, i=index: x[i], thetas))
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-7),
            together,
            alone,
        )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda opt: optax.chain(optax.clip_by_global_norm(1.0), opt),
        lambda opt: optax.MultiSteps(opt, 2),
        lambda opt: optax.apply_if_finite(opt, 3),
        lambda opt: optax.flatten(opt),
        lambda opt: optax.masked(opt, {name: name != "bias" for name in problems.SHAPES}),
        lambda opt: optax.partition(
            {"learned": opt, "adam": optax.adam(1e-3)},
            {name: "adam" if name == "bias" else "learned" for name in problems.SHAPES},
        ),
        lambda opt: optax.lookahead(opt, 2, 0.5),
    ],
    ids=["chain", "multi_steps", "apply_if_finite", "flatten", "masked", "partition", "lookahead"],
)
def test_wrappers_of_optax_compose(wrap: object) -> None:
    params = problems.tree()
    opt = wrap(_optimizer())
    if isinstance(opt, optax.MultiSteps):
        opt = opt.gradient_transformation()
    lookahead = isinstance(opt.init, type(lambda: 0)) and "lookahead" in repr(opt.init)
    start = optax.LookaheadParams.init_synced(params) if lookahead else params
    state = opt.init(start)
    for index in range(2):
        grads = problems.noisy_gradient(params, jax.random.key(index))
        updates, state = jax.jit(opt.update)(grads, state, start)
        start = optax.apply_updates(start, updates)
    moved = start.fast if lookahead else start
    assert float(optax.tree.norm(optax.tree.sub(moved, params))) > 0
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(moved))


def test_apply_if_finite_recovers() -> None:
    params = problems.tree()
    opt = optax.apply_if_finite(_optimizer(), 5)
    state = opt.init(params)
    bad = jax.tree.map(lambda x: jnp.nan * x, params)
    updates, state = opt.update(bad, state, params)
    assert float(optax.tree.norm(updates)) == 0
    updates, _ = opt.update(params, state, params)
    assert float(optax.tree.norm(updates)) > 0


def test_inject_hyperparams_sees_the_learning_rate_and_nothing_else() -> None:
    params = problems.tree()

    def build(meta_params: object, learning_rate: float) -> optax.GradientTransformation:
        return mnemosyne.from_meta_params(meta_params, learning_rate=learning_rate)

    opt = optax.inject_hyperparams(build, static_args=())(THETA, learning_rate=0.5)
    state = opt.init(params)
    assert set(state.hyperparams) == {"learning_rate"}
    updates, _ = opt.update(params, state, params)
    plain = _optimizer(learning_rate=0.5)
    expected, _ = plain.update(params, plain.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_tree_map_params_finds_the_moments() -> None:
    params = problems.tree()
    opt = _optimizer()
    state = opt.init(params)
    marked = optax.tree.map_params(opt, lambda _: "moment", state)
    assert set(jax.tree.leaves(marked.mu)) == {"moment"}
    assert set(jax.tree.leaves(marked.nu)) == {"moment"}
    assert isinstance(marked.count, jax.Array)


def test_empty_leaves_and_empty_trees_pass_through() -> None:
    params = {"empty": jnp.zeros((0, 3)), "full": jnp.ones(3)}
    opt = _optimizer()
    updates, state = opt.update(params, opt.init(params), params)
    assert updates["empty"].shape == (0, 3)
    assert jnp.all(updates["full"] != 0)
    assert opt.update({}, opt.init({}), {})[0] == {}
    assert _signature(state) == _signature(opt.init(params))


def test_donated_state_gives_the_same_numbers() -> None:
    params, opt = problems.tree(), _optimizer()
    step = jax.jit(lambda s, g, p: opt.update(g, s, p), donate_argnums=0)
    state = opt.init(params)
    for _ in range(2):
        updates, state = step(state, params, params)
    plain = opt.init(params)
    for _ in range(2):
        expected, plain = opt.update(params, plain, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), updates, expected
    )


@pytest.mark.parametrize("problem", ["parabola", "rosenbrock"])
def test_convergence_targets_of_optax(problem: str) -> None:
    target = jnp.ones(2)
    functions = {
        "parabola": lambda x: jnp.sum(jnp.square(x - target)),
        "rosenbrock": lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2,
    }
    theta = mnemosyne.init_meta_params(jax.random.key(0))
    opt = mnemosyne.from_meta_params(theta, learning_rate=10.0)
    loss = functions[problem]

    def step(carry: tuple, _: None) -> tuple:
        x, state = carry
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = opt.update(grad, state, x, value=value)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.asarray([-1.0, 0.5])
    (x, _), _ = jax.lax.scan(step, (start, opt.init(start)), None, length=3000)
    np.testing.assert_allclose(x, target, atol=0.05)
