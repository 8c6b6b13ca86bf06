# SPDX-License-Identifier: Apache-2.0
"""Multilayer perceptrons as plain functions on nested dicts, and the policies made of them.

Kernels start uniform with variance 2 / fan-in (He et al. 2015), biases at zero, the last layer of a
policy at a hundredth of that scale (Andrychowicz et al. 2021, arXiv 2006.05990). No orthogonal
start: two batched QR factorizations in one vmapped program hang for ever on the CPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from robotics import distributions
from robotics.algorithm import Action, Policy, PolicyParams, check_positive, nearest
from robotics.normalize import RunningStatistics, standard_deviation

Activation = Literal["tanh", "swish", "relu", "elu"]
Params = dict[str, Any]

_ACTIVATIONS = {"tanh": jnp.tanh, "swish": jax.nn.swish, "relu": jax.nn.relu, "elu": jax.nn.elu}
_OBS_CLIP = 10.0  # in standard deviations
_MIN_STD, _LOG_STD_RANGE = 1e-3, (-7.0, 2.0)


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Policy and value networks."""

    policy_hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the policy, each at least 1; empty for a linear policy. There
    are no recurrent policies."""
    value_hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the value network, each at least 1."""
    activation: Activation = "tanh"
    """Activation function of the hidden layers."""
    noise: Literal["parameter", "network", "none"] = "parameter"
    """Whence the action's standard deviation: free parameters, the policy network, or no noise."""
    init_std: float = 0.6
    """Standard deviation of the action before tanh at the start, above 0.001."""

    def __post_init__(self) -> None:
        for width in (*self.policy_hidden, *self.value_hidden):
            check_positive("network", width=width)
        if self.activation not in get_args(Activation):
            raise ValueError(
                f"Unknown activation {self.activation!r}; the nearest valid one is "
                f"{nearest(str(self.activation), get_args(Activation))!r}."
            )
        if self.noise not in ("parameter", "network", "none"):
            raise ValueError(
                f"Unknown noise {self.noise!r}; it is 'parameter', 'network' or 'none'."
            )
        if not self.init_std > _MIN_STD:
            raise ValueError(f"init_std is {self.init_std}, but it must be above {_MIN_STD}.")


def init_mlp(key: Key[Array, ""], sizes: Sequence[int], last_scale: float = 1.0) -> Params:
    """Parameters of an MLP.

    Args:
      key: typed PRNG key.
      sizes: widths from input to output, at least two.
      last_scale: factor on the last kernel.

    Returns:
      ``{"layer_0": {"bias": [out], "kernel": [in, out]}, ...}``, float32.
    """
    params = {}
    keys = jax.random.split(key, len(sizes) - 1)
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        bound = math.sqrt(6.0 / fan_in) * (last_scale if i == len(sizes) - 2 else 1.0)
        kernel = jax.random.uniform(keys[i], (fan_in, fan_out), jnp.float32, -bound, bound)
        params[f"layer_{i}"] = {"bias": jnp.zeros(fan_out, jnp.float32), "kernel": kernel}
    return params


def apply_mlp(
    params: Params, x: Float[Array, "*batch inputs"], activation: Activation
) -> Float[Array, "*batch outputs"]:
    """The MLP's output; the last layer is linear."""
    last = len(params) - 1
    for i in range(last + 1):
        layer = params[f"layer_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        if i < last:
            x = _ACTIVATIONS[activation](x)
    return x


def init_policy(
    key: Key[Array, ""],
    observation_size: int,
    action_size: int,
    config: NetworkConfig,
    discrete: bool = False,
) -> Params:
    """Parameters: ``{"mlp": ...}``, and ``"log_std": [action]`` if these are the noise.

    Where actions are choices, the MLP gives their logits and there is no noise to parametrize.
    """
    if discrete:
        config = dataclasses.replace(config, noise="none")
    outputs = action_size * (2 if config.noise == "network" else 1)
    params: Params = {
        "mlp": init_mlp(key, (observation_size, *config.policy_hidden, outputs), last_scale=0.01)
    }
    log_std = math.log(config.init_std - _MIN_STD)
    if config.noise == "parameter":
        params["log_std"] = jnp.full(action_size, log_std, jnp.float32)
    if config.noise == "network":
        last = params["mlp"][f"layer_{len(config.policy_hidden)}"]
        last["bias"] = last["bias"].at[action_size:].set(log_std)
    return params


def apply_policy(
    params: Params, obs: Float[Array, "*batch obs"], config: NetworkConfig
) -> tuple[Float[Array, "*batch action"], Float[Array, "*#batch action"]]:
    """Mean and standard deviation (at least 0.001; 0 without noise) of the action before tanh.

    Args:
      params: from :func:`init_policy`.
      obs: *normalized* observation.
      config: the network's.
    """
    outputs = apply_mlp(params["mlp"], obs, config.activation)
    if config.noise == "none":
        return outputs, jnp.zeros_like(outputs)
    if config.noise == "network":
        mean, log_std = jnp.split(outputs, 2, axis=-1)
    else:
        mean, log_std = outputs, params["log_std"]
    return mean, _MIN_STD + jnp.exp(jnp.clip(log_std, *_LOG_STD_RANGE))


def apply_distribution(
    params: Params, obs: Float[Array, "*batch obs"], config: NetworkConfig, discrete: bool
) -> distributions.Distribution:
    """The distribution of actions for a *normalized* observation."""
    if discrete:
        return distributions.Categorical(apply_mlp(params["mlp"], obs, config.activation))
    return distributions.TanhNormal(*apply_policy(params, obs, config))


def init_value(
    key: Key[Array, ""], observation_size: int, config: NetworkConfig, privileged_size: int = 0
) -> Params:
    """Parameters of the value network, which reads both observations: ``{"mlp": ...}``."""
    return {"mlp": init_mlp(key, (observation_size + privileged_size, *config.value_hidden, 1))}


def apply_value(
    params: Params,
    obs: Float[Array, "*batch obs"],
    config: NetworkConfig,
    privileged: Float[Array, "*batch privileged"] | None = None,
) -> Float[Array, "*batch"]:
    """The value of a *normalized* observation and, if there is one, a privileged one beside it."""
    if privileged is not None:
        obs = jnp.concatenate([obs, privileged], axis=-1)
    return apply_mlp(params["mlp"], obs, config.activation)[..., 0]


def normalize_obs(
    obs: Float[Array, "*batch obs"], mean: Float[Array, " obs"], std: Float[Array, " obs"]
) -> Float[Array, "*batch obs"]:
    """``(obs - mean) / std``, clipped to 10 standard deviations."""
    return jnp.clip((obs - mean) / std, -_OBS_CLIP, _OBS_CLIP)


def policy_params(policy: Params, statistics: RunningStatistics) -> PolicyParams:
    """What acting needs: ``{"normalizer": {"mean", "std"}, "policy": ...}``."""
    return {
        "normalizer": {"mean": statistics.mean, "std": standard_deviation(statistics)},
        "policy": policy,
    }


def policy_spec(
    observation_size: int, action_size: int, config: NetworkConfig, discrete: bool = False
) -> dict[str, Any]:
    """How to compute the deterministic action from :func:`policy_params`, as JSON can hold it.

    The action is ``tanh`` (``squash``; or ``argmax``, where actions are choices) of the first
    ``action_size`` outputs of the MLP ``policy/mlp`` (layers
    ``layer_0`` to ``layer_{n-1}``, ``x @ kernel + bias``, ``activation`` after all but the last),
    whose input is ``clip((obs - normalizer/mean) / normalizer/std, -obs_clip, obs_clip)``.
    """
    return {
        "kind": "mlp",
        "observation_size": observation_size,
        "action_size": action_size,
        "hidden": list(config.policy_hidden),
        "num_layers": len(config.policy_hidden) + 1,
        "activation": config.activation,
        "noise": "none" if discrete else config.noise,
        "obs_clip": _OBS_CLIP,
        "squash": "argmax" if discrete else "tanh",
    }


def make_policy(
    observation_size: int, action_size: int, config: NetworkConfig, discrete: bool = False
) -> Policy:
    """The policy as the host loop, evaluation and export see it."""

    def act(
        params: PolicyParams,
        obs: Float[Array, "*batch obs"],
        key: Key[Array, ""],
        deterministic: bool,
    ) -> Action:
        normalizer: PyTree = params["normalizer"]
        obs = normalize_obs(obs, normalizer["mean"], normalizer["std"])
        chances = apply_distribution(params["policy"], obs, config, discrete)
        if deterministic or (config.noise == "none" and not discrete):
            return chances.action(chances.mode())
        noise = distributions.draw_noise(key, (*obs.shape[:-1], action_size), discrete)
        return chances.action(chances.sample(noise))

    return Policy(act, policy_spec(observation_size, action_size, config, discrete))
