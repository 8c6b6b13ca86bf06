# SPDX-License-Identifier: Apache-2.0
"""Tiny environments with known answers, each of which isolates one part of a learning algorithm.

====================  =========================================  ========================
probe:                episode                                    answer
====================  =========================================  ========================
value                 one step, observation 0, reward 1          value 1
observation           one step, observation -1 or +1,            value = observation
                      reward = observation
discount              two steps, observation 0 then 1,           value = discount, then 1
                      reward 1 at the end
action                one step, observation 0,                   action 0.5
                      reward -(action - 0.5)^2
observation-action    one step, observation -1 or +1,            action = 0.5 observation
                      reward -(action - 0.5 observation)^2
truncation            observation 0, reward 1 for ever,          value = 1 / (1 - discount)
                      time limit of 10 steps
privileged            one step, observation 0, privileged        value = privileged observation
                      observation -1 or +1 = reward
====================  =========================================  ========================

A failure points at its cause: ``value`` at the value loss and its optimizer, ``observation`` at how
the observation reaches the value network, ``discount`` at the advantage estimator, ``action`` at
the policy loss, ``observation-action`` at the batching of observations with actions, ``truncation``
at a time limit that is taken for a termination, ``privileged`` at how what only the critic sees
reaches the value network. The one-step probes never meet their time limit: they end by termination.
The idea is Andy Jones's ("Debugging RL, without the agonizing pain", 2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from envs._errors import check_episode_length, refuse, unknown
from envs.api import PRIVILEGED, State

Observations = Literal["zero", "sign", "count", "hidden"]
Reward = Callable[[Array, Array, Array], Array]  # (observation, action, terminal) -> reward
Answer = Callable[[Array, float], Array]  # (observation, discount) -> value or action


class ProbePhysics(NamedTuple):
    """Steps taken in this episode, and the sign drawn for it (used by the +-1 observations)."""

    count: Int[Array, ""]
    sign: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Probe:
    """An environment with one observation entry, one action entry and a known answer.

    Where the observation is hidden, the policy sees 0 instead, and answer and reward go by what
    only the critic sees.

    Attributes:
      name: the registry name.
      asks: whether ``answer`` gives the ``"value"`` of an observation or the best ``"action"`` for
        it.
      answer: ``answer(observation, discount)``, elementwise in the observation; actions ignore the
        discount. The value is that of the best policy, and of any policy where the action does not
        matter.
      observations: the different observations of an episode, in which the answer can be checked.
      horizon: steps after which the environment terminates; 0 means never.
      episode_length: default time limit in steps. Only ``probe:truncation`` ever reaches it.
    """

    name: str
    asks: Literal["value", "action"]
    answer: Answer
    observations: tuple[float, ...]
    horizon: int
    episode_length: int
    _kind: Observations
    _reward: Reward
    observation_size: int = 1
    action_size: int = 1
    dt: float = 1.0
    privileged_observation_size: int = 0

    def reset(self, key: Key[Array, ""]) -> State:
        """The first state; only the +-1 observation is random."""
        sign = jax.random.rademacher(key, (), jnp.float32)
        physics = ProbePhysics(count=jnp.zeros((), jnp.int32), sign=sign)
        zero = jnp.zeros((), jnp.float32)
        return self._state(physics, zero, zero)

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """The reward of the table above; ``done`` after ``horizon`` steps."""
        count = state.physics.count + 1
        physics = ProbePhysics(count=count, sign=state.physics.sign)
        terminal = (count == self.horizon).astype(jnp.float32)
        reward = self._reward(self._observe(state.physics)[0], action[0], terminal)
        return self._state(physics, jnp.asarray(reward, jnp.float32), terminal)

    def _state(self, physics: ProbePhysics, reward: Array, done: Array) -> State:
        """What is seen of the physics, by whom it is to be seen."""
        obs = self._observe(physics)
        info = {PRIVILEGED: obs} if self.privileged_observation_size else {}
        if self._kind == "hidden":
            obs = jnp.zeros_like(obs)
        return State(physics, obs, reward=reward, done=done, metrics={}, info=info)

    def _observe(self, physics: ProbePhysics) -> Float[Array, "1"]:
        """The observation that this probe makes of its state."""
        if self._kind in ("sign", "hidden"):
            return physics.sign[None]
        if self._kind == "count":
            # The observation after the last step repeats 1, so that bootstrapping across a
            # termination shows.
            return jnp.minimum(physics.count, 1).astype(jnp.float32)[None]
        return jnp.zeros((1,), jnp.float32)


def _constant_reward(observation: Array, action: Array, terminal: Array) -> Array:
    return jnp.ones_like(observation)


def _observation_reward(observation: Array, action: Array, terminal: Array) -> Array:
    return observation


def _final_reward(observation: Array, action: Array, terminal: Array) -> Array:
    return terminal


def _half_reward(observation: Array, action: Array, terminal: Array) -> Array:
    return -jnp.square(action - 0.5)


def _half_observation_reward(observation: Array, action: Array, terminal: Array) -> Array:
    return -jnp.square(action - 0.5 * observation)


def _one(observation: Array, discount: float) -> Array:
    return jnp.ones_like(observation)


def _observation(observation: Array, discount: float) -> Array:
    return jnp.asarray(observation)


def _discounted(observation: Array, discount: float) -> Array:
    return jnp.where(jnp.asarray(observation) < 0.5, discount, 1.0)


def _half(observation: Array, discount: float) -> Array:
    return jnp.full_like(observation, 0.5)


def _half_observation(observation: Array, discount: float) -> Array:
    return 0.5 * jnp.asarray(observation)


def _forever(observation: Array, discount: float) -> Array:
    return jnp.full_like(observation, 1.0 / (1.0 - discount))


_TIME_LIMIT = 10


def _probe(
    task: str,
    asks: Literal["value", "action"],
    answer: Answer,
    horizon: int,
    kind: Observations,
    reward: Reward,
) -> Probe:
    """One row of the table in the module docstring."""
    observations = {"zero": (0.0,), "count": (0.0, 1.0)}.get(kind, (-1.0, 1.0))
    fields = f"probe:{task}", asks, answer, observations, horizon, _TIME_LIMIT, kind, reward
    return Probe(*fields, privileged_observation_size=int(kind == "hidden"))


_PROBES = {
    probe.name.removeprefix("probe:"): probe
    for probe in (
        _probe("value", "value", _one, 1, "zero", _constant_reward),
        _probe("observation", "value", _observation, 1, "sign", _observation_reward),
        _probe("discount", "value", _discounted, 2, "count", _final_reward),
        _probe("action", "action", _half, 1, "zero", _half_reward),
        _probe(
            "observation-action", "action", _half_observation, 1, "sign", _half_observation_reward
        ),
        _probe("truncation", "value", _forever, 0, "zero", _constant_reward),
        _probe("privileged", "value", _observation, 1, "hidden", _observation_reward),
    )
}


def make(task: str, episode_length: int | None = None, **options: object) -> Probe:
    """The probe called ``probe:<task>``.

    Args:
      task: a name of the table in the module docstring.
      episode_length: default time limit in steps, at least 1; ``None`` takes 10.
      **options: none; refused with a sentence.

    Raises:
      ValueError: unknown task or option, or a time limit below 1.
    """
    if task not in _PROBES:
        raise unknown("probe", task, list(_PROBES))
    probe = _PROBES[task]
    refuse(options, ["episode_length"], probe.name)
    if episode_length is None:
        return probe
    check_episode_length(episode_length, probe.name)
    return dataclasses.replace(probe, episode_length=episode_length)
