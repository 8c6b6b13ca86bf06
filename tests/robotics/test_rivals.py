# SPDX-License-Identifier: Apache-2.0
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.api import EpisodeWrapper
from envs.registry import make
from mnemosyne.cli.main import main
from robotics.es import ESConfig, list_rivals, make_rival
from robotics.es.rivals import _costs
from robotics.networks import NetworkConfig

_CONFIG = ESConfig(
    num_timesteps=20_000,
    num_evaluations=1,
    population_size=16,
    episodes_per_member=4,
    perturbation_std=0.3,
    normalize_observations=False,
    network=NetworkConfig(policy_hidden=(8,), noise="none"),
)


@pytest.mark.parametrize("name", ["CMA_ES", "SNES"])
def test_rival_solves_the_probe_with_two_seeds_side_by_side(name):
    pytest.importorskip("evosax", reason="the extra [evo] is not installed")
    probe = make("probe:observation-action")
    algorithm = make_rival(EpisodeWrapper(probe, episode_length=1), _CONFIG, name)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    whole = jax.vmap(lambda key: algorithm.epoch(algorithm.init(key)))
    state, metrics = jax.jit(whole)(keys)
    obs = jnp.asarray(probe.observations)[:, None]
    for seed in range(2):
        params = jax.tree.map(lambda leaf, i=seed: leaf[i], algorithm.inference_params(state))
        action = algorithm.policy.act(params, obs, jax.random.key(1), True)[:, 0]
        np.testing.assert_allclose(action, probe.answer(obs[:, 0], 1.0), atol=0.1)
    assert metrics["env_steps"].tolist() == [312 * 64] * 2
    # A checkpoint brings back what a loop carries: no leaf may have a type that only Python has.
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state.opt_state))


def test_unknown_rival_and_foreign_settings_are_refused():
    pytest.importorskip("evosax", reason="the extra [evo] is not installed")
    env = EpisodeWrapper(make("probe:action"), episode_length=1)
    assert {"CMA_ES", "SNES", "Sep_CMA_ES", "Open_ES"} <= set(list_rivals())
    assert "SV_CMA_ES" not in list_rivals()  # wants a number of populations
    with pytest.raises(ValueError, match="nearest one is 'CMA_ES'"):
        make_rival(env, _CONFIG, "CMA-ES")
    with pytest.raises(ValueError, match="CMA_ES of evosax has no learning rate"):
        make_rival(env, _CONFIG, "CMA_ES", learning_rate=0.1)


def test_missing_evosax_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "evosax", None)
    monkeypatch.delitem(sys.modules, "evosax.algorithms", raising=False)
    flags = ["--env", "probe:action", "--algo", "es", "--optimizer", "evosax:SNES", "--quiet"]
    assert main(["train", *flags, "--logdir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said == (
        "mnemosyne: the package 'evosax' is missing: pip install 'mnemosyne-optimizer[evo]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_costs_are_minus_fitness_and_non_finite_ones_the_worst_of_the_others():
    fitness = jnp.array([[1.0, jnp.nan], [-3.0, jnp.inf]])
    np.testing.assert_allclose(_costs(fitness), [-1.0, 3.0, 3.0, 3.0])
