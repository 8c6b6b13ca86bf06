# SPDX-License-Identifier: Apache-2.0
"""The properties of the learned update that hold for every set of meta-parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne import controller, features, layout, memory, rule, telemetry
from tests.mnemosyne import problems


def _small(**arguments: Any) -> optax.GradientTransformationExtraArgs:
    theta = problems.meta_params(problems.SMALL)
    return mnemosyne.from_meta_params(theta, problems.SMALL, **arguments)


def _run(
    steps: int = 20, scale: float = 1.0, params: Any = None, **extras: float
) -> tuple[Any, Any, list[Any]]:
    """The perturbed default network on noisy gradients."""
    params = problems.tree() if params is None else params
    step = problems.learned(problems.meta_params(), **extras)
    return problems.trajectory(step, problems.init(params), params, steps, scale)


def _adam(
    params: Any, steps: int, growth: float = 1.0, **arguments: Any
) -> tuple[Any, Any, list[Any]]:
    adam = optax.adamw(1e-3, b1=0.9, b2=0.99, eps=1e-16, **arguments)
    state = adam.init(params)
    return problems.trajectory(jax.jit(adam.update), state, params, steps, growth=growth)


@pytest.mark.parametrize("growth", [1.0, 1.5, 0.7])
def test_untrained_plus_is_adam(growth: float) -> None:
    # Growing and shrinking gradients make the units of the moments change on the way.
    start = problems.tree()
    step, state = problems.learned(problems.untrained()), problems.init(start)
    params, _, ours = problems.trajectory(step, state, start, 30, growth=growth)
    expected, _, theirs = _adam(start, 30, growth, weight_decay=0.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), ours[0], theirs[0])
    # Later updates are differences of rounded moments; compared with the size of a step, 1e-3.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), ours, theirs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected
    )


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e8])
def test_update_ignores_the_loss_scale(scale: float) -> None:
    base, _, _ = _run(value=1.0)
    scaled, _, _ = _run(scale=scale, value=scale)
    assert problems.gap(base, scaled) < 2e-6


def test_update_loss_scale_by_a_power_of_two_is_bitwise_the_same() -> None:
    base, _, _ = _run()
    scaled, _, _ = _run(scale=2.0**40)
    assert problems.gap(base, scaled) == 0.0


def test_update_zero_gradient_coordinates_never_move() -> None:
    params = problems.tree()
    step, state = problems.learned(problems.meta_params()), problems.init(params)
    for index in range(5):
        grads = problems.noisy_gradient(params, index)
        grads["matrix"][:, 7] = 0.0
        grads["bias"][:] = 0.0
        updates, state = step(grads, state, params)
        assert np.all(updates["matrix"][:, 7] == 0)
        assert np.all(updates["bias"] == 0)
        assert np.any(updates["matrix"] != 0)


def test_update_renaming_and_regrouping_leaves_permutes_the_updates() -> None:
    params = problems.tree()

    def regroup(tree: Any) -> Any:
        return {
            "a": tree["kernel"],
            "deep": {"er": [tree["matrix"]]},
            "z": (tree["scalar"], tree["bias"]),
        }

    def run(tree: Any) -> Any:
        step, state = problems.learned(problems.meta_params()), problems.init(tree)
        for scale in (1.0, -0.5, 2.0):
            grads = jax.tree.map(lambda p, s=scale: np.float32(s) * np.sin(9 * p), tree)
            updates, state = step(grads, state, tree)
        return updates

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8),
        regroup(run(params)),
        run(regroup(params)),
    )


def test_first_update_descends_in_every_tensor() -> None:
    params = problems.tree()
    grads = problems.noisy_gradient(params, 1)
    updates, _ = problems.learned(problems.meta_params())(grads, problems.init(params), params)
    cosines = jax.tree.map(lambda u, g: np.sum(u * g), updates, grads)
    assert all(float(c) < 0 for c in jax.tree.leaves(cosines))


def test_update_rows_flips_with_gradient_momentum_and_parameter() -> None:
    # The token network may break this symmetry in the controls; the rule itself never does.
    rng = np.random.default_rng(0)
    g, mu, nu, p, polar = jnp.asarray(rng.standard_normal((5, 2, 6)), jnp.float32)
    each = jnp.asarray([[0.3], [0.7]])
    gates = jnp.asarray(rng.standard_normal((2, 2, rule.NUM_BASIS)), jnp.float32)
    row = rule.Coefficients(*[each] * 10, *gates)

    @jax.jit
    def update(sign: jax.Array) -> tuple[jax.Array, jax.Array]:
        moments = rule.Moments(rule.momentum(sign * g, sign * mu, row), jnp.square(nu))
        return rule.update_rows(sign * g, moments, sign * p, sign * polar, row)

    delta, nu_after = update(1.0)
    flipped, flipped_nu = update(-1.0)
    np.testing.assert_array_equal(delta, -flipped)
    np.testing.assert_array_equal(nu_after, flipped_nu)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_update_extreme_gradients_give_finite_steps(size: float) -> None:
    params = problems.tree()
    step, state = problems.learned(problems.meta_params()), problems.init(params)
    grads = jax.tree.map(lambda p: np.full_like(p, size), params)
    for _ in range(3):
        updates, state = step(grads, state, params)
    assert problems.all_finite(updates)
    assert np.all((updates["bias"] != 0) == (size > 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_update_bad_gradient_is_skipped_and_forgotten(bad: float) -> None:
    params = problems.tree()
    step, state = problems.learned(problems.meta_params()), problems.init(params)
    sizes = []
    for index in range(41):
        grads = problems.noisy_gradient(params, index)
        if index == 20:
            before = state
            grads["matrix"][3, 3] = bad
        updates, state = step(grads, state, params)
        if index == 20:
            assert all(bool(np.all(u == 0)) for u in jax.tree.leaves(updates))
            for name in ("mu", "nu", "memory"):
                assert problems.gap(getattr(before, name), getattr(state, name)) == 0
        sizes.append(problems.norm(updates))
    assert int(state.units.skipped) == 1
    assert 0.3 < sizes[40] / sizes[19] < 3.0


def test_update_ten_bad_gradients_restart_the_moments_and_training_goes_on() -> None:
    params = problems.tree()
    step, state = problems.learned(problems.meta_params()), problems.init(params)
    for index in range(30):
        scale = 1e9 if index >= 5 else 1.0
        updates, state = step(problems.noisy_gradient(params, index, scale), state, params)
        if index == 14:
            assert problems.norm((state.mu, state.nu, state.mu_mass, state.nu_mass)) == 0
    assert int(state.units.skipped) == 10
    assert problems.norm(updates) > 0


@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"value": 0.0, "progress": 0.0},
        {"value": -1e9, "kl": 1e9, "epoch": 77.0, "progress": -3.0},
        {"value": np.nan, "kl": np.inf},
    ],
)
def test_update_extras_absent_constant_or_wild_stay_stable(extras: dict[str, float]) -> None:
    params, _, updates = _run(50, **extras)
    assert problems.all_finite(updates)
    assert problems.norm(params) < 3 * problems.norm(problems.tree())


def test_update_extra_that_is_unheard_of_changes_nothing() -> None:
    params, opt = problems.pair(), _small()
    state = opt.init(params)
    assert problems.same_program(
        lambda g, s: opt.update(g, s, params, unheard_of="anything"),
        lambda g, s: opt.update(g, s, params),
        params,
        state,
    )


def test_update_extras_reach_the_network() -> None:
    _, _, base = _run(3, value=np.nan)
    for name, value in {"kl": 0.1, "progress": 0.9, "epoch": 0.5}.items():
        _, _, other = _run(3, **{name: value})
        assert problems.gap(base, other) > 0, name


def test_update_extra_that_is_no_scalar_is_refused() -> None:
    params, opt = problems.pair(), _small()
    with pytest.raises(ValueError, match="value= must be a scalar"):
        opt.update(params, opt.init(params), params, value=jnp.ones(3))


def test_update_tells_the_divergence_to_the_policy_alone() -> None:
    theta = problems.untrained(problems.LEAN)
    theta |= {"skip": theta["skip"].at[features.input_row("kl", 1), 0].set(-3.0)}
    opt = mnemosyne.from_meta_params(theta, problems.LEAN)
    params = {"policy": problems.pair(), "value": problems.pair()}
    state, roles = opt.init(params), {"policy": True, "value": False}

    def update(**extras: Any) -> Any:
        return jax.jit(lambda s: opt.update(params, s, params, progress=0.5, **extras)[0])(state)

    nobody, everybody, some = update(), update(kl=0.1), update(kl=0.1, policy=roles)
    assert problems.gap(nobody["policy"], everybody["policy"]) > 1e-5
    assert problems.gap(some["policy"], everybody["policy"]) == 0
    assert problems.gap(some["value"], nobody["value"]) == 0


@pytest.mark.parametrize("policy", [{"policy": True}, {"matrix": True, "other": False}])
def test_update_policy_that_is_no_prefix_is_refused(policy: dict) -> None:
    params, opt = problems.pair(), _small()
    with pytest.raises(ValueError, match="policy= must have a truth value for every subtree"):
        opt.update(params, opt.init(params), params, policy=policy)


def test_update_without_params_works_and_weight_decay_then_refuses() -> None:
    params, opt = problems.pair(), problems.small()
    updates, _ = opt.update(params, opt.init(params))
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert problems.all_finite(updates)
    decayed = _small(weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        jax.eval_shape(decayed.update, params, decayed.init(params))


def test_weight_decay_matches_adamw_on_the_untrained_network() -> None:
    start, mask = problems.pair(), {"bias": False, "matrix": True}
    theta = problems.untrained(problems.SMALL)
    ours = mnemosyne.from_meta_params(theta, problems.SMALL, weight_decay=0.3, mask=mask)
    params, _, _ = problems.trajectory(jax.jit(ours.update), ours.init(start), start, 20)
    expected, _, _ = _adam(start, 20, weight_decay=0.3, mask=mask)
    assert problems.gap(params, expected) < 1e-6


def test_learning_rate_multiplies_and_accepts_a_schedule() -> None:
    params = problems.pair()
    schedule = optax.constant_schedule(0.5)
    optimizers = [_small(learning_rate=rate) for rate in (1.0, 0.5, schedule)]
    one, two, three = (
        jax.jit(opt.update)(params, opt.init(params), params)[0] for opt in optimizers
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(0.5 * a, b, rtol=1e-5), one, two)
    assert problems.gap(two, three) == 0


def test_total_steps_fills_in_progress_and_yields_to_the_host() -> None:
    known, plain, params = _small(total_steps=4), _small(), problems.pair()
    arguments = (params, known.init(params))
    assert problems.same_program(
        lambda g, s: known.update(g, s, params),
        lambda g, s: plain.update(g, s, params, progress=s.count / 4),
        *arguments,
    )
    assert problems.same_program(
        lambda g, s: known.update(g, s, params, progress=0.9),
        lambda g, s: plain.update(g, s, params, progress=0.9),
        *arguments,
    )
    assert not problems.same_program(
        lambda g, s: known.update(g, s, params), lambda g, s: plain.update(g, s, params), *arguments
    )


@pytest.mark.parametrize("arguments", [{"total_steps": 0}, {"weight_decay": -1.0}])
def test_from_meta_params_refuses_impossible_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        _small(**arguments)


def test_shared_memory_slots_still_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MIN_SLOTS", 1)
    layout.make_layout.cache_clear()
    params, opt = problems.pair(), _small()
    state = opt.init(params)
    assert state.memory.matrix.shape[0] == 1
    updates, state = jax.jit(opt.update)(params, state, params)
    layout.make_layout.cache_clear()
    assert problems.all_finite(updates)
    assert float(jnp.max(jnp.abs(state.memory.matrix))) > 0


def test_write_shared_stores_the_mean_of_the_patterns_of_a_slot() -> None:
    rng = np.random.default_rng(0)
    keys, values = jnp.asarray(rng.random((2, 3, 4)), jnp.float32)
    start = memory.MemoryState(
        jnp.asarray(np.ones((2, 1, 4, 4), np.float32)), jnp.asarray(np.ones((2, 1, 4), np.float32))
    )
    plan = layout.Layout(((2,), (1,)), (2, 1), np.asarray([0, 0, 1], np.int32), 2)
    decay = jnp.asarray([0.5])
    write = jax.jit(lambda *arguments: controller._write_shared(*arguments, plan))
    written = write(start, keys, values, decay)
    outer = np.einsum("nr,nd->nrd", keys, values)
    np.testing.assert_allclose(written.matrix[0, 0], 0.5 + outer[:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(written.matrix[1, 0], 0.5 + outer[2], rtol=1e-6)
    np.testing.assert_allclose(written.mass[0, 0], 0.5 + keys[:2].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("weights", ["mnemosyne-base", "mnemosyne-rl"])
def test_telemetry_of_shipped_weights_is_finite(weights: str) -> None:
    optimizer = mnemosyne.mnemosyne(weights, total_steps=10)
    params = jax.tree.map(jnp.asarray, problems.tree())
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    scalars = jax.jit(telemetry)(state, updates, params)
    assert all(jnp.isfinite(value) for value in scalars.values()), scalars
    assert "optimizer/log_gain" in scalars


def test_telemetry_reports_the_optimizer_and_its_memory() -> None:
    start = problems.tree()
    step = problems.learned(problems.untrained())
    params, state, updates = problems.trajectory(step, problems.init(start), start, 5)
    # As in optax.chain(optax.clip_by_global_norm(...), ours).
    scalars = jax.jit(telemetry)((optax.EmptyState(), state), updates[-1], params)
    np.testing.assert_allclose(scalars["optimizer/cosine_to_adam"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(scalars["optimizer/effective_step_size"], 1e-3, rtol=1e-3)
    assert {"memory/norm", "memory/effective_rank", "memory/saturation"} <= set(scalars)
    assert scalars["optimizer/log_gain"] == 0.0
    assert 0.3 < scalars["optimizer/straightness"] <= 1.0
    assert all(jnp.shape(value) == () for value in scalars.values())
    plain = jax.jit(telemetry)(optax.adam(1e-3).init(params), updates[-1], params)
    assert set(plain) == {"optimizer/update_rms", "optimizer/update_to_param_ratio"}
