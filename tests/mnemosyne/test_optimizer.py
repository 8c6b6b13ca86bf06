# SPDX-License-Identifier: Apache-2.0
"""The properties of the learned update that hold for every set of meta-parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mnemosyne
from mnemosyne import telemetry
from tests.mnemosyne import problems

THETA = problems.meta_params()


def _gap(a: object, b: object) -> float:
    differences = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), a, b)
    return float(jnp.max(jnp.stack(jax.tree.leaves(differences))))


def test_untrained_plus_is_adam() -> None:
    with jax.enable_x64(False):
        theta = mnemosyne.init_meta_params(jax.random.key(0))
    adam = optax.adam(1e-3, b1=0.9, b2=0.99, eps=1e-16)
    params, _, ours = problems.trajectory(mnemosyne.scale_by_mnemosyne(theta), problems.tree(), 30)
    expected, _, theirs = problems.trajectory(adam, problems.tree(), 30)
    first = jax.tree.map(lambda u: u[0], (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), *first)
    # Later updates are differences of rounded moments; compared with the size of a step, 1e-3.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), ours, theirs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected
    )


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e8])
def test_update_ignores_the_loss_scale(scale: float) -> None:
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    base, _, _ = problems.trajectory(opt, problems.tree(), value=1.0)
    scaled, _, _ = problems.trajectory(opt, problems.tree(), scale=scale, value=scale)
    assert _gap(base, scaled) < 2e-6


def test_update_loss_scale_by_a_power_of_two_is_bitwise_the_same() -> None:
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    base, _, _ = problems.trajectory(opt, problems.tree())
    scaled, _, _ = problems.trajectory(opt, problems.tree(), scale=2.0**40)
    assert _gap(base, scaled) == 0.0


def test_update_zero_gradient_coordinates_never_move() -> None:
    params = problems.tree()
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    state = opt.init(params)
    for index in range(5):
        grads = problems.noisy_gradient(params, jax.random.key(index))
        grads["matrix"] = grads["matrix"].at[:, 7].set(0.0)
        grads["bias"] = jnp.zeros_like(grads["bias"])
        updates, state = jax.jit(opt.update)(grads, state, params)
        assert jnp.all(updates["matrix"][:, 7] == 0)
        assert jnp.all(updates["bias"] == 0)
        assert jnp.any(updates["matrix"] != 0)


def test_update_renaming_and_regrouping_leaves_permutes_the_updates() -> None:
    params = problems.tree()
    names = {"scalar": "z", "bias": "y", "matrix": "x", "kernel": "w"}
    regrouped = {"deep": {"er": [params["matrix"]]}, "a": params["kernel"]}
    regrouped |= {"b": (params["scalar"], params["bias"])}
    renamed = {names[key]: value for key, value in params.items()}
    opt = mnemosyne.scale_by_mnemosyne(THETA)

    def run(tree: object) -> object:
        state = opt.init(tree)
        for scale in (1.0, -0.5, 2.0):
            grads = jax.tree.map(lambda p, s=scale: s * jnp.sin(9.0 * p), tree)
            updates, state = opt.update(grads, state, tree)
        return updates

    base, other, nested = run(params), run(renamed), run(regrouped)
    for key, value in base.items():
        np.testing.assert_allclose(value, other[names[key]], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(base["matrix"], nested["deep"]["er"][0], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(base["kernel"], nested["a"], rtol=1e-4, atol=1e-8)


def test_update_flips_with_gradient_and_parameter_history() -> None:
    # The encoder may break the symmetry of the step size, never that of the direction.
    params = problems.tree()
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    grads = problems.noisy_gradient(params, jax.random.key(1))
    updates, _ = opt.update(grads, opt.init(params), params)
    cosines = jax.tree.map(lambda u, g: jnp.sum(u * g), updates, grads)
    assert all(float(c) < 0 for c in jax.tree.leaves(cosines))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_update_extreme_gradients_give_finite_steps(size: float) -> None:
    params = problems.tree()
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    state = opt.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda p: size * jnp.ones_like(p), params)
        updates, state = opt.update(grads, state, params)
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))
    assert bool(jnp.all((updates["bias"] != 0) == (size > 0)))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_update_bad_gradient_is_skipped_and_forgotten(bad: float) -> None:
    params = problems.tree()
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    update = jax.jit(opt.update)
    state = opt.init(params)
    sizes = []
    for index in range(41):
        grads = problems.noisy_gradient(params, jax.random.key(index))
        if index == 20:
            before = state
            grads["matrix"] = grads["matrix"].at[3, 3].set(bad)
        updates, state = update(grads, state, params)
        if index == 20:
            assert all(bool(jnp.all(u == 0)) for u in jax.tree.leaves(updates))
            assert (
                _gap((before.mu, before.nu, before.memory), (state.mu, state.nu, state.memory)) == 0
            )
        sizes.append(float(optax.tree.norm(updates)))
    assert int(state.units.skipped) == 1
    assert 0.3 < sizes[40] / sizes[19] < 3.0


def test_update_ten_bad_gradients_restart_the_moments_and_training_goes_on() -> None:
    params = problems.tree()
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    update = jax.jit(opt.update)
    state = opt.init(params)
    for index in range(30):
        scale = 1e9 if index >= 5 else 1.0
        grads = problems.noisy_gradient(params, jax.random.key(index), scale)
        updates, state = update(grads, state, params)
    assert int(state.units.skipped) == 10
    assert float(optax.tree.norm(updates)) > 0


@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"value": 0.0, "progress": 0.0},
        {"value": -1e9, "kl": 1e9, "epoch": 77.0, "progress": -3.0},
        {"value": jnp.nan, "kl": jnp.inf},
        {"unheard_of": "anything"},
    ],
)
def test_update_extras_absent_constant_or_wild_stay_stable(extras: dict) -> None:
    params, _, updates = problems.trajectory(
        mnemosyne.scale_by_mnemosyne(THETA), problems.tree(), 50, **extras
    )
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))
    assert float(optax.tree.norm(params)) < 3 * float(optax.tree.norm(problems.tree()))


def test_update_extras_reach_the_network() -> None:
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    _, _, base = problems.trajectory(opt, problems.tree(), 3)
    for name, value in {"kl": 0.1, "progress": 0.9, "epoch": 0.5}.items():
        _, _, other = problems.trajectory(opt, problems.tree(), 3, **{name: value})
        assert _gap(base, other) > 0, name


def test_update_extra_that_is_no_scalar_is_refused() -> None:
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    params = problems.tree()
    with pytest.raises(ValueError, match="value= must be a scalar"):
        opt.update(params, opt.init(params), params, value=jnp.ones(3))


def test_update_without_params_works_and_weight_decay_then_refuses() -> None:
    params = problems.tree()
    opt = mnemosyne.from_meta_params(THETA)
    updates, _ = opt.update(params, opt.init(params))
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    decayed = mnemosyne.from_meta_params(THETA, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        decayed.update(params, decayed.init(params))


def test_weight_decay_matches_adamw_on_the_untrained_network() -> None:
    theta = mnemosyne.init_meta_params(jax.random.key(0))
    mask = {name: name == "matrix" for name in problems.SHAPES}
    ours = mnemosyne.from_meta_params(theta, weight_decay=0.3, mask=mask)
    theirs = optax.adamw(1e-3, b1=0.9, b2=0.99, eps=1e-16, weight_decay=0.3, mask=mask)
    a, _, _ = problems.trajectory(ours, problems.tree(), 20)
    b, _, _ = problems.trajectory(theirs, problems.tree(), 20)
    assert _gap(a, b) < 1e-6


def test_learning_rate_multiplies_and_accepts_a_schedule() -> None:
    params = problems.tree()
    base, half, scheduled = (
        mnemosyne.from_meta_params(THETA, learning_rate=rate)
        for rate in (1.0, 0.5, optax.constant_schedule(0.5))
    )
    one, two, three = (problems.trajectory(opt, params, 1)[2] for opt in (base, half, scheduled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(0.5 * a, b, rtol=1e-6), one, two)
    assert _gap(two, three) == 0


def test_total_steps_fills_in_progress_and_yields_to_the_host() -> None:
    known = mnemosyne.from_meta_params(THETA, total_steps=4)
    plain = mnemosyne.from_meta_params(THETA)
    params = problems.tree()
    _, _, a = problems.trajectory(known, params, 1)
    _, _, b = problems.trajectory(plain, params, 1, progress=0.0)
    assert _gap(a, b) == 0
    _, _, c = problems.trajectory(known, params, 2, progress=0.9)
    _, _, d = problems.trajectory(plain, params, 2, progress=0.9)
    assert _gap(c, d) == 0


@pytest.mark.parametrize("arguments", [{"total_steps": 0}, {"weight_decay": -1.0}])
def test_from_meta_params_refuses_impossible_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        mnemosyne.from_meta_params(THETA, **arguments)


@pytest.mark.parametrize("coordinate", [False, True])
def test_paper_modes_start_still_and_then_move(coordinate: bool) -> None:
    config = mnemosyne.paper_config(coordinate)
    still = mnemosyne.scale_by_mnemosyne(
        mnemosyne.init_meta_params(jax.random.key(0), config), config
    )
    _, state, updates = problems.trajectory(still, problems.tree(), 3)
    assert float(optax.tree.norm(updates)) == 0
    weights = sum(leaf.size for leaf in jax.tree.leaves(problems.tree()))
    if coordinate:
        assert state.memory.mass.shape[0] == weights
    moving = mnemosyne.scale_by_mnemosyne(problems.meta_params(config), config)
    _, _, updates = problems.trajectory(moving, problems.tree(), 3)
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))
    assert float(optax.tree.norm(updates)) > 0


def test_paper_mode_padding_does_not_change_other_tensors() -> None:
    config = mnemosyne.MnemosyneConfig("paper", chunk=(4, 4))
    opt = mnemosyne.scale_by_mnemosyne(problems.meta_params(config), config)
    one, two = {"a": jnp.ones(5)}, {"a": jnp.ones(5), "b": jnp.ones((7, 3))}
    alone, _ = opt.update(one, opt.init(one))
    together, _ = opt.update(two, opt.init(two))
    np.testing.assert_allclose(alone["a"], together["a"], rtol=1e-5)


def test_shared_memory_slots_still_train() -> None:
    params = [jnp.full((4,), 0.1 * (1 + index)) for index in range(150)]
    opt = mnemosyne.scale_by_mnemosyne(THETA)
    state = opt.init(params)
    assert state.memory.matrix.shape[0] == 1
    updates, state = jax.jit(opt.update)(params, state, params)
    assert bool(jnp.all(jnp.isfinite(jnp.concatenate(updates))))
    assert float(jnp.max(jnp.abs(state.memory.matrix))) > 0


def test_telemetry_reports_the_optimizer_and_its_memory() -> None:
    theta = mnemosyne.init_meta_params(jax.random.key(0))
    opt = optax.chain(optax.clip_by_global_norm(1e9), mnemosyne.scale_by_mnemosyne(theta))
    params, state, updates = problems.trajectory(opt, problems.tree(), 5)
    last = jax.tree.map(lambda u: u[-1], updates)
    scalars = telemetry(state, last, params)
    np.testing.assert_allclose(scalars["optimizer/cosine_to_adam"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(scalars["optimizer/effective_step_size"], 1e-3, rtol=1e-3)
    assert {"memory/norm", "memory/effective_rank", "memory/saturation"} <= set(scalars)
    assert all(jnp.shape(value) == () for value in scalars.values())
    adam = optax.adam(1e-3)
    plain = telemetry(adam.init(params), last, params)
    assert set(plain) == {"optimizer/update_rms", "optimizer/update_to_param_ratio"}
