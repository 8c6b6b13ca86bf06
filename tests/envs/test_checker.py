# SPDX-License-Identifier: Apache-2.0
"""The checker accepts sound environments and names what is wrong with each broken one."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.api import EpisodeWrapper, State
from envs.checker import RESERVED, check, problems
from envs.registry import list_envs, make

ZERO = np.float32(0.0)


@dataclasses.dataclass(frozen=True)
class Sound:
    """A cursor on a line that ends its episode beyond 3; the broken ones below change one thing."""

    name: str = "test:sound"
    observation_size: int = 2
    action_size: int = 1
    episode_length: int = 20
    dt: float = 0.1

    def reset(self, key: jax.Array) -> State:
        position = jax.random.uniform(key, ())
        zero = jnp.zeros(())
        obs = jnp.stack([position, zero])
        return State({"position": position}, obs, zero, zero, {"x_position": position}, {})

    def step(self, state: State, action: jax.Array) -> State:
        position = state.physics["position"] + 0.5 * action[0]
        done = (jnp.abs(position) > 3.0).astype(jnp.float32)
        obs = jnp.concatenate([position[None], action])
        metrics = {"x_position": position}
        return State({"position": position}, obs, -position, done, metrics, {})


def _forced(state: State, **fields: object) -> State:
    """A state with fields that the annotations forbid; they are not checked outside of tests."""
    state = copy.copy(state)
    for name, value in fields.items():
        object.__setattr__(state, name, value)
    return state


class RawKey(Sound):
    def reset(self, key):
        return super().reset(jax.random.wrap_key_data(key))


class NoState(Sound):
    def reset(self, key):
        return super().reset(key).obs


class IntegerMetric(Sound):
    def reset(self, key):
        return _forced(super().reset(key), metrics={"x_position": jnp.int32(0)})


class WrongObservation(Sound):
    def reset(self, key):
        return super().reset(key).replace(obs=jnp.zeros(5))


class PythonReward(Sound):
    def step(self, state, action):
        return _forced(super().step(state, action), reward=1.0)


class BoolDone(Sound):
    def step(self, state, action):
        after = super().step(state, action)
        return _forced(after, done=after.done > 0)


class Reserved(Sound):
    def reset(self, key):
        return super().reset(key).replace(info={"steps": jnp.zeros(())})


@dataclasses.dataclass(frozen=True)
class Critic(Sound):
    """Shows the critic what it is told to, and says so."""

    privileged_observation_size: int = 2
    shown: object = dataclasses.field(default_factory=lambda: np.zeros(2, np.float32))

    def reset(self, key):
        return self._show(super().reset(key))

    def step(self, state, action):
        return self._show(super().step(state, action))

    def _show(self, state):
        info = {} if self.shown is None else {"privileged_obs": jnp.asarray(self.shown)}
        return state.replace(info=info)


class NewInfo(Sound):
    def step(self, state, action):
        return super().step(state, action).replace(info={"late": jnp.zeros(())})


class LostMetric(Sound):
    def step(self, state, action):
        return super().step(state, action).replace(metrics={})


class Integer(Sound):
    def step(self, state, action):
        after = super().step(state, action)
        return after.replace(physics={"position": jnp.round(after.obs[0]).astype(jnp.int32)})


class Weak(Sound):
    def step(self, state, action):
        return super().step(state, action).replace(physics={"position": jnp.asarray(1.0)})


class TupleInfo(Sound):
    def step(self, state, action):
        after = super().step(state, action)
        return after.replace(physics=_Renamed(after.physics["position"]))


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class _Renamed:
    """Another container whose only leaf has the same path as in the dict."""

    position: jax.Array

    def __getitem__(self, name):
        return self.position

    def tree_flatten_with_keys(self):
        return ((jax.tree_util.DictKey("position"), self.position),), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


class InPlace(Sound):
    def step(self, state, action):
        state.metrics["x_position"] = state.obs[0] + action[0]
        return super().step(state, action)


class NeedsTwoActions(Sound):
    def step(self, state, action):
        return super().step(state, action[:1] * jnp.ones(1) + jnp.dot(action, jnp.ones(2)))


class ClosedInfo(Sound):
    """Knows only the entries of ``info`` that it made itself, as an adapter easily does."""

    def step(self, state, action):
        jax.tree.map(jnp.add, {}, state.info)
        return super().step(state, action)


class StaleDone(Sound):
    def step(self, state, action):
        return super().step(state, action).replace(done=state.done)


class StaleReward(Sound):
    def step(self, state, action):
        after = super().step(state, action)
        return after.replace(reward=state.reward + after.reward)


class DoneAtReset(Sound):
    def reset(self, key):
        return super().reset(key).replace(done=jnp.ones(()))


class HalfDone(Sound):
    def step(self, state, action):
        after = super().step(state, action)
        return after.replace(done=0.5 * after.done)


class DivergesAtExtremes(Sound):
    def step(self, state, action):
        after = super().step(state, action)
        position = jnp.where(jnp.abs(action[0]) == 1.0, jnp.inf, after.physics["position"])
        return after.replace(physics={"position": position})


class NumpyNoise(Sound):
    def reset(self, key):
        start = super().reset(key)
        return start.replace(obs=start.obs + np.float32(1e4 * np.random.default_rng().uniform()))


class HostNoise(Sound):
    counter = itertools.count()

    def step(self, state, action):
        after = super().step(state, action)
        draw = jax.pure_callback(
            lambda _: np.float32(next(self.counter)), ZERO, action, vmap_method="sequential"
        )
        return after.replace(reward=draw)


class BatchBlind(Sound):
    """Differs under vmap because its rule for batches is wrong."""

    def step(self, state, action):
        after = super().step(state, action)
        return after.replace(reward=_blind(after.reward))


@jax.custom_batching.custom_vmap
def _blind(reward):
    return reward + 1.0


@_blind.def_vmap
def _blind_batched(axis_size, in_batched, rewards):
    return jnp.full((axis_size,), 5.0), True


class OwnTimeLimit(Sound):
    def reset(self, key):
        start = super().reset(key)
        return start.replace(physics={"position": start.obs[0], "t": jnp.int32(0)})

    def step(self, state, action):
        after = super().step(state, 0.0 * action)
        t = state.physics["t"] + 1
        physics = {"position": after.physics["position"], "t": t}
        return after.replace(physics=physics, done=(t >= 20).astype(jnp.float32))


OWN = [name for name in list_envs() if name.startswith(("control:", "probe:"))]


def test_check_sound_environment_passes():
    check(Sound())
    assert problems(Sound()) == []
    assert problems(Critic()) == problems(Critic(privileged_observation_size=0, shown=None)) == []


@pytest.mark.parametrize("name", OWN)
def test_check_own_environments_pass(name):
    check(make(name), num_steps=8)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        (Sound(observation_size=0), "observation_size is 0; it must be a Python int"),
        (Sound(dt=-1.0), "dt is -1.0; it must be a Python float above 0"),
        (Sound(name=""), "name is ''; it must be a text"),
        (RawKey(), "reset fails under jit with a typed key: "),
        (NoState(), "reset returns a .* instead of an envs.api.State"),
        (
            IntegerMetric(),
            r"metrics\['x_position'\] after reset has dtype int32; it must be float32",
        ),
        (WrongObservation(), r"obs after reset has shape \(5,\); it must be \(2,\)"),
        (PythonReward(), "reward after step is a float, not a JAX array"),
        (BoolDone(), "done after step has dtype bool; it must be float32"),
        (Reserved(), r"info\['steps'\] is reserved for the episode wrapper"),
        (
            Critic(privileged_observation_size=-1),
            "privileged_observation_size is -1; it must be a Python int of at least 0",
        ),
        (
            Critic(privileged_observation_size=3),
            r"info\['privileged_obs'\] after reset has shape \(2,\); it must be \(3,\)",
        ),
        (
            Critic(shown=np.zeros(2, np.int32)),
            r"info\['privileged_obs'\] after reset has dtype int32; it must be float32",
        ),
        (
            Critic(shown=None),
            r"info\['privileged_obs'\] is missing after reset, but privileged_.*_size is 2\.",
        ),
        (
            Critic(privileged_observation_size=0),
            r"info\['privileged_obs'\] is there after reset, but privileged_.*_size is 0\.",
        ),
        (NewInfo(), r"info\['late'\] appears only after step"),
        (LostMetric(), r"metrics\['x_position'\] is there after reset but missing after step"),
        (Integer(), r"dtype of physics\['position'\] changes from float32 .* to int32"),
        (Weak(), r"weak_type of physics\['position'\] changes from False .* to True"),
        (TupleInfo(), "the pytree structure of the state changes"),
        (InPlace(), r"step writes into the state it is given \(metrics\['x_position'\]\)"),
        (NeedsTwoActions(), "step fails under jit with 1 float32 actions: "),
        (ClosedInfo(), "step fails where a wrapper has added entries to info: "),
        (DoneAtReset(), "done after reset is 1.0; it must be 0"),
        (StaleDone(), "done after step depends on the done of the state before"),
        (StaleReward(), "reward after step depends on the reward of the state before"),
        (HalfDone(), "done takes the value 0.5; it must be 0.0 or 1.0"),
        (DivergesAtExtremes(), r"physics\['position'\] is not finite after 1 steps of extreme"),
        (NumpyNoise(), "different numbers each time it is traced; does it draw from NumPy"),
        (HostNoise(), "the same key and actions give different numbers in a second run"),
        (BatchBlind(), "other numbers under vmap than alone"),
        (OwnTimeLimit(), "done is 1 after exactly episode_length = 20 steps"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sound) else "",
)
def test_check_broken_environment_is_named(env, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        check(env)
    assert "\n" not in str(caught.value)


def test_check_missing_attribute_is_named():
    class NoName:
        observation_size = action_size = episode_length = 1
        dt = 1.0

    assert problems(NoName()) == ["the attribute 'name' is missing."]


def test_problems_without_steps_is_refused():
    with pytest.raises(ValueError, match="num_steps is 0; it must be at least 1"):
        problems(Sound(), num_steps=0)


def test_reserved_names_are_those_of_the_wrapper():
    info = EpisodeWrapper(Critic()).reset(jax.random.key(0)).info
    assert set(info) == RESERVED | {"privileged_obs"}
    plain = EpisodeWrapper(Sound()).reset(jax.random.key(0)).info
    assert set(plain) == RESERVED - {"final_privileged_obs"}
