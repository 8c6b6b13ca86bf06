# SPDX-License-Identifier: Apache-2.0
"""A plain PPO: the settings of ours and nothing else in common.

Networks, advantages (Schulman et al. 2016, arXiv 1506.02438, eq. 16), statistics, the clipped loss
(Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9) and the loop are written here once more, from
the papers and as plainly as they can be. Arrays are time-major, [T, envs, ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Key, PyTree

from envs.api import EpisodeWrapper, State
from robotics.networks import NetworkConfig
from robotics.ppo.config import PPOConfig

_ACTIVATIONS = {"tanh": jnp.tanh, "swish": jax.nn.swish, "relu": jax.nn.relu, "elu": jax.nn.elu}


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of all samples so far (Chan et al. 1979)."""

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    m2: Float[Array, "*shape"]


class Learner(NamedTuple):
    """One seed; ``returns`` are the discounted returns of the running episodes."""

    params: PyTree
    opt_state: PyTree
    obs: Moments
    reward: Moments
    returns: Float[Array, " envs"]


Run = tuple[Learner, State, Key[Array, ""]]
"""What an iteration changes: the learner, its environments, the key of all that is drawn."""


class Batch(NamedTuple):
    """T steps of B environments; ``next_obs`` is what a step led to, before a restart."""

    obs: Float[Array, "T envs obs"]
    raw_action: Float[Array, "T envs action"]
    log_prob: Float[Array, "T envs"]
    reward: Float[Array, "T envs"]
    termination: Float[Array, "T envs"]
    truncation: Float[Array, "T envs"]
    next_obs: Float[Array, "T envs obs"]


def init(
    config: PPOConfig, sizes: tuple[int, int], adam: optax.GradientTransformation, key: Array
) -> Learner:
    """The learner before its first step; ``sizes`` of observation and action."""
    obs_size, action_size = sizes
    key_policy, key_value = jax.random.split(key)
    net, spread = config.network, jnp.full(action_size, jnp.log(config.network.init_std))
    in_network = net.noise == "network"
    widths = (obs_size, *net.policy_hidden, action_size * (1 + in_network))
    policy = _layers(key_policy, widths, last=0.01)
    if in_network:
        policy[-1]["b"] = policy[-1]["b"].at[action_size:].set(spread)
    params: dict[str, Any] = {
        "policy": policy,
        "value": _layers(key_value, (obs_size, *net.value_hidden, 1)),
    }
    if not in_network:
        params["log_std"] = spread
    nothing = jnp.zeros(obs_size), jnp.zeros(())
    obs, reward = (Moments(jnp.zeros(()), zero, zero) for zero in nothing)
    return Learner(params, adam.init(params), obs, reward, jnp.zeros(config.num_envs))


def _layers(key: Key[Array, ""], widths: Sequence[int], last: float = 1.0) -> list[PyTree]:
    """Dense layers with He's uniform start."""
    found = []
    for i, (key_layer, a, b) in enumerate(
        zip(jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True)
    ):
        bound = (6.0 / a) ** 0.5 * (last if i == len(widths) - 2 else 1.0)
        weights = jax.random.uniform(key_layer, (a, b), minval=-bound, maxval=bound)
        found.append({"w": weights, "b": jnp.zeros(b)})
    return found


def _forward(layers: list[PyTree], x: Array, net: NetworkConfig) -> Array:
    for layer in layers[:-1]:
        x = _ACTIVATIONS[net.activation](x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def policy(params: PyTree, obs: Array, net: NetworkConfig) -> tuple[Array, Array]:
    """Mean and standard deviation before tanh, for a normalized observation."""
    outputs = _forward(params["policy"], obs, net)
    if "log_std" in params:
        return outputs, jnp.exp(params["log_std"])
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    return mean, jnp.exp(log_std)


def value(params: PyTree, obs: Array, net: NetworkConfig) -> Array:
    """The value of a normalized observation."""
    return _forward(params["value"], obs, net)[..., 0]


def log_prob(mean: Array, std: Array, raw: Array) -> Array:
    """Log-density of the action ``tanh(raw)``."""
    squash = jnp.log(1.0 - jnp.tanh(raw) ** 2 + 1e-6)
    return jnp.sum(norm.logpdf(raw, mean, std) - squash, axis=-1)


def normalize(moments: Moments, obs: Array) -> Array:
    """Observations in standard deviations, at most 10; as they are before the first sample."""
    variance = jnp.where(moments.count > 0, moments.m2 / jnp.maximum(moments.count, 1.0), 1.0)
    return jnp.clip((obs - moments.mean) / jnp.maximum(jnp.sqrt(variance), 1e-4), -10.0, 10.0)


def take_in(moments: Moments, x: Array) -> Moments:
    """All samples of ``x`` [T, envs, ...] added."""
    n, mean = x.shape[0] * x.shape[1], jnp.mean(x, (0, 1))
    total, delta = moments.count + n, mean - moments.mean
    m2 = moments.m2 + jnp.sum((x - mean) ** 2, (0, 1)) + delta**2 * moments.count * n / total
    return Moments(total, moments.mean + delta * n / total, m2)


def act(config: PPOConfig, learner: Learner, obs: Array, key: Key[Array, ""]) -> tuple[Array, ...]:
    """Action, raw action and its log-density."""
    mean, std = policy(learner.params, normalize(learner.obs, obs), config.network)
    raw = mean + std * jax.random.normal(key, mean.shape)
    return jnp.tanh(raw), raw, log_prob(mean, std, raw)


def collect(
    config: PPOConfig, env: EpisodeWrapper, learner: Learner, state: State, key: Key[Array, ""]
) -> tuple[State, Batch]:
    """A rollout; an environment restarts from a start of its own, drawn once a rollout."""
    key_start, key_act = jax.random.split(key)
    starts = jax.vmap(env.reset)(jax.random.split(key_start, config.num_envs))

    def step(state: State, key: Array) -> tuple[State, Batch]:
        action, raw, density = act(config, learner, state.obs, key)
        after = jax.vmap(env.step)(state, action, starts)
        ends = after.info["termination"], after.info["truncation"]
        kept = Batch(state.obs, raw, density, after.reward, *ends, after.info["final_obs"])
        return after, kept

    return jax.lax.scan(step, state, jax.random.split(key_act, config.unroll_length))


def advantages(config: PPOConfig, batch: Batch, reward: Array, now: Array, after: Array) -> Array:
    """Backwards through time: a termination ends value and sum, a truncation the sum only."""

    def step(later: Array, here: tuple[Array, ...]) -> tuple[Array, Array]:
        r, v, v_next, ended, cut = here
        delta = r + config.discount * (1 - ended) * v_next - v
        sum_ = delta + config.discount * config.gae_lambda * (1 - ended) * (1 - cut) * later
        return sum_, sum_

    inputs = (reward, now, after, batch.termination, batch.truncation)
    return jax.lax.scan(step, jnp.zeros_like(now[0]), inputs, reverse=True)[1]


def loss(
    params: PyTree, config: PPOConfig, rows: tuple[Array, ...], key: Key[Array, ""]
) -> Float[Array, ""]:
    """Clipped surrogate, squared value error, entropy by one sample."""
    obs, raw, old, advantage, target = rows
    mean, std = policy(params, obs, config.network)
    ratio = jnp.exp(log_prob(mean, std, raw) - old)
    clipped = jnp.clip(ratio, 1 - config.clipping_epsilon, 1 + config.clipping_epsilon)
    gain = jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))
    fresh = mean + std * jax.random.normal(key, mean.shape)
    entropy = -jnp.mean(log_prob(mean, std, fresh))
    error = jnp.mean((value(params, obs, config.network) - target) ** 2)
    return -gain + config.value_cost * error - config.entropy_cost * entropy


def improve(
    config: PPOConfig,
    adam: optax.GradientTransformation,
    learner: Learner,
    batch: Batch,
    key: Key[Array, ""],
) -> Learner:
    """All updates made from a rollout, then the new statistics of observations."""
    learner, scale = _reward_scale(config, learner, batch)
    obs, next_obs = normalize(learner.obs, batch.obs), normalize(learner.obs, batch.next_obs)
    now, after = (value(learner.params, x, config.network) for x in (obs, next_obs))
    advantage = advantages(config, batch, batch.reward * scale, now, after)
    target = advantage + now
    if config.normalize_advantages:
        advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
    columns = (obs, batch.raw_action, batch.log_prob, advantage, target)
    rows = jax.tree.map(lambda x: x.reshape(config.batch_size, *x.shape[2:]), columns)

    def update(carry: tuple[PyTree, PyTree], inputs: tuple[Array, Array]) -> Any:
        chosen, key = inputs
        params, opt_state = carry
        grads = jax.grad(loss)(params, config, jax.tree.map(lambda x: x[chosen], rows), key)
        updates, opt_state = adam.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    passes, parts = config.num_updates_per_batch, config.num_minibatches
    key_rows, key_loss = jax.random.split(key)
    order = jax.vmap(lambda k: jax.random.permutation(k, config.batch_size))(
        jax.random.split(key_rows, passes)
    )
    inputs = order.reshape(passes * parts, -1), jax.random.split(key_loss, passes * parts)
    (params, opt_state), _ = jax.lax.scan(update, (learner.params, learner.opt_state), inputs)
    seen = take_in(learner.obs, batch.obs) if config.normalize_observations else learner.obs
    return learner._replace(params=params, opt_state=opt_state, obs=seen)


def _reward_scale(
    config: PPOConfig, learner: Learner, batch: Batch
) -> tuple[Learner, Array | float]:
    """The factor on rewards, with the discounted returns up to the end of this rollout."""
    if not config.normalize_rewards:
        return learner, config.reward_scaling

    def step(running: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        running = config.discount * running + now[0]
        return running * (1 - now[1]), running

    ends = batch.termination + batch.truncation
    running, seen = jax.lax.scan(step, learner.returns, (batch.reward, ends))
    moments = take_in(learner.reward, seen)
    std = jnp.maximum(jnp.sqrt(moments.m2 / moments.count), 1e-4)
    return learner._replace(reward=moments, returns=running), config.reward_scaling / std


def start(
    env: EpisodeWrapper, config: PPOConfig, adam: optax.GradientTransformation, key: Key[Array, ""]
) -> Run:
    """What the first iteration begins with."""
    key_nets, key_envs, key = jax.random.split(key, 3)
    learner = init(config, (env.env.observation_size, env.env.action_size), adam, key_nets)
    return learner, jax.vmap(env.reset)(jax.random.split(key_envs, config.num_envs)), key


def iterate(
    env: EpisodeWrapper, config: PPOConfig, adam: optax.GradientTransformation, run: Run, count: int
) -> Run:
    """``count`` rollouts, each with its updates."""

    def iteration(run: Run, _: None) -> tuple[Run, None]:
        learner, state, key = run
        key, key_collect, key_improve = jax.random.split(key, 3)
        state, batch = collect(config, env, learner, state, key_collect)
        return (improve(config, adam, learner, batch, key_improve), state, key), None

    return jax.lax.scan(iteration, run, None, length=count)[0]


def train(
    env: EpisodeWrapper, config: PPOConfig, learning_rate: float, key: Key[Array, ""]
) -> Learner:
    """A run of ``config.total_env_steps`` env steps with ``optax.adam``; jittable, vmappable."""
    adam = optax.adam(learning_rate)
    count = config.num_epochs * config.rollouts_per_epoch
    return iterate(env, config, adam, start(env, config, adam, key), count)[0]
