# SPDX-License-Identifier: Apache-2.0
"""What differs from one policy run of meta-training to the next, besides its seed.

The bodies that an optimizer will meet are not those that it was trained on, and neither are the
hosts: some pass fewer extras. So runs of one compiled program differ in everything that needs no
other program: physics, rewards, time limits, lengths, and what the host tells.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from envs.api import EpisodeWrapper, State
from experiments.together import Together
from mnemosyne.features import EXTRAS


class Variety(NamedTuple):
    """How much varies.

    Attributes:
      physics: masses, lengths, gears and gravity are multiplied by up to ``exp`` of this either
        way, each by a factor of its own.
      reward: so are rewards, all by one.
      shortest_limit: time limits are this share of the environment's own, up to all of it.
      withheld: probability that an extra is not passed, of each.
    """

    physics: float = 0.4
    reward: float = 1.5
    shortest_limit: float = 0.5
    withheld: float = 0.1


NONE = Variety(0.0, 0.0, 1.0, 0.0)
"""Every run as the environment is."""


class Draw(NamedTuple):
    """One run's conditions.

    Attributes:
      physics: logarithms of the factors of the environment's parameters.
      reward: factor of the rewards that training sees.
      limit: longest episode, env steps.
      told: which of :data:`mnemosyne.features.EXTRAS` are passed.
    """

    physics: Float[Array, " params"]
    reward: Float[Array, ""]
    limit: Int[Array, ""]
    told: Bool[Array, " extras"]


def draw(key: Key[Array, ""], wrapper: EpisodeWrapper, variety: Variety) -> Draw:
    """Draws the conditions of a run.

    Args:
      key: of the run.
      wrapper: the environment with its longest episodes.
      variety: how much they differ.
    """
    key_physics, key_reward, key_limit, key_told = jax.random.split(key, 4)
    count = len(jax.tree.leaves(_params(wrapper.env)))
    share = variety.shortest_limit ** jax.random.uniform(key_limit)
    return Draw(
        physics=variety.physics * jax.random.uniform(key_physics, (count,), minval=-1.0),
        reward=jnp.exp(variety.reward * jax.random.uniform(key_reward, minval=-1.0)),
        limit=jnp.round(share * wrapper.time_limit).astype(jnp.int32),
        told=jax.random.uniform(key_told, (len(EXTRAS),)) >= variety.withheld,
    )


def varied_env(wrapper: EpisodeWrapper, drawn: Draw) -> EpisodeWrapper:
    """The environment under the conditions of one run."""
    env: Any = ScaledRewards(_with_physics(wrapper.env, drawn.physics), drawn.reward)
    return _Limited(env, wrapper.episode_length, drawn.limit)


def varied_host(
    optimizer: optax.GradientTransformation, drawn: Draw, share: Array | float
) -> optax.GradientTransformationExtraArgs:
    """The optimizer as a host calls it that passes only some extras.

    Args:
      optimizer: any.
      drawn: says which.
      share: of the run's full length after which it ends; ``progress`` is told accordingly.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extras: Any) -> Any:
        if "progress" in extras:
            extras |= {"progress": extras["progress"] / share}
        for name, told in zip(EXTRAS, drawn.told, strict=True):
            if name in extras:
                # What is not finite counts as not passed.
                extras |= {name: jnp.where(told, extras[name], jnp.nan)}
        return inner.update(updates, state, params, **extras)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _params(env: Any) -> Any:
    """Numbers of the environment that may differ; none where it does not say."""
    return _params(env.env) if isinstance(env, Together) else getattr(env, "params", ())


def _with_physics(env: Any, logs: Float[Array, " params"]) -> Any:
    if isinstance(env, Together):
        return dataclasses.replace(env, env=_with_physics(env.env, logs))
    leaves, treedef = jax.tree.flatten(_params(env))
    if not leaves:
        return env
    scaled = [leaf * factor for leaf, factor in zip(leaves, jnp.exp(logs), strict=True)]
    return dataclasses.replace(env, params=treedef.unflatten(scaled))


@dataclasses.dataclass(frozen=True)
class _Limited(EpisodeWrapper):
    """A time limit that is no part of the program."""

    limit: Any = None

    @property
    def time_limit(self) -> Any:
        """The drawn one, int32."""
        return self.limit


@dataclasses.dataclass(frozen=True)
class ScaledRewards:
    """An environment with its rewards multiplied; all else is the environment's own."""

    env: Any
    factor: float | Float[Array, ""]

    def __getattr__(self, name: str) -> Any:
        """What is not about rewards."""
        return getattr(self.env, name)

    def step(self, state: State, action: Float[Array, " action"]) -> State:
        """As the environment steps."""
        after = self.env.step(state, action)
        return after.replace(reward=self.factor * after.reward)


def weights(
    chunk: Int[Array, ""], chunks: Int[Array, ""] | int, late: float = 0.25
) -> Float[Array, ""]:
    """What a chunk's return counts in the objective; sums to ``chunks``.

    Half is the area under the curve, half the mean of the last chunks.

    Args:
      chunk: from 0 on.
      chunks: of the run.
      late: share of the last ones.

    Example:
      >>> [float(weights(jnp.asarray(i), jnp.asarray(4))) for i in range(4)]
      [0.5, 0.5, 0.5, 2.5]
    """
    first_late = jnp.floor((1.0 - late) * chunks)
    share = jnp.where(chunk >= first_late, chunks / (chunks - first_late), 0.0)
    return 0.5 + 0.5 * share
