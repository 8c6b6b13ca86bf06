# SPDX-License-Identifier: Apache-2.0
"""Settings of PPO, and the counts that follow from them."""

from __future__ import annotations

import dataclasses

from robotics.algorithm import check_positive, check_unit
from robotics.networks import NetworkConfig


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO, the optimizer aside: every optimizer is compared under the same of these.

    The number of rollouts is rounded *down*: a run takes at most ``num_timesteps`` env steps, in
    ``num_epochs`` chunks of equal length (they share one compiled program). What it loses is less
    than one chunk, below ``1 / num_evaluations`` of the budget (or one rollout, if that is more);
    ``total_env_steps`` is the exact number.
    """

    num_timesteps: int = 1_000_000
    """Budget in env steps of one seed, at least one rollout; never exceeded."""
    num_evaluations: int = 20
    """Chunks wanted, with an evaluation after each, at least 1; up to twice as many are made."""
    num_envs: int = 64
    """Environments stepped side by side, at least 1."""
    unroll_length: int = 32
    """Env steps of each environment in a rollout, at least 1."""
    num_minibatches: int = 4
    """Minibatches a rollout is cut into, at least 1; must divide num_envs * unroll_length."""
    num_updates_per_batch: int = 4
    """Passes over a rollout, at least 1."""
    discount: float = 0.99
    """Discount per env step, in [0, 1]."""
    gae_lambda: float = 0.95
    """Mix of the advantage estimator, in [0, 1]: 0 is one step, 1 the whole rollout."""
    clipping_epsilon: float = 0.2
    """Clipping range of the probability ratio, above 0."""
    value_cost: float = 0.5
    """Weight of the value loss, at least 0."""
    entropy_cost: float = 0.0
    """Weight of the entropy bonus, at least 0."""
    reward_scaling: float = 1.0
    """Constant factor on rewards during training, above 0; evaluations do not use it."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    normalize_observations: bool = True
    """Normalize observations by running statistics, which move after the updates of a rollout."""
    normalize_advantages: bool = True
    """Normalize advantages over each rollout."""
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    """Policy and value networks."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def batch_size(self) -> int:
        """Env steps in a rollout."""
        return self.num_envs * self.unroll_length

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer updates made from a rollout."""
        return self.num_minibatches * self.num_updates_per_batch

    @property
    def rollouts_per_epoch(self) -> int:
        """Rollouts in a chunk."""
        return max(1, self.num_timesteps // self.batch_size // self.num_evaluations)

    @property
    def num_epochs(self) -> int:
        """Chunks in a run."""
        return self.num_timesteps // self.batch_size // self.rollouts_per_epoch

    @property
    def env_steps_per_epoch(self) -> int:
        """Env steps in a chunk."""
        return self.rollouts_per_epoch * self.batch_size

    @property
    def total_env_steps(self) -> int:
        """Env steps that a run takes, exactly; at most ``num_timesteps``."""
        return self.num_epochs * self.env_steps_per_epoch

    @property
    def num_updates(self) -> int:
        """Optimizer updates in a run."""
        return self.num_epochs * self.rollouts_per_epoch * self.updates_per_rollout


def _check(config: PPOConfig) -> None:
    """Raises ValueError, in one sentence, for the first setting that cannot be."""
    counts = (
        "num_timesteps",
        "num_evaluations",
        "num_envs",
        "unroll_length",
        "num_minibatches",
        "num_updates_per_batch",
    )
    positive = (*counts, "clipping_epsilon", "reward_scaling")
    check_positive("PPO", **{name: getattr(config, name) for name in positive})
    check_unit("PPO", discount=config.discount, gae_lambda=config.gae_lambda)
    for name in ("value_cost", "entropy_cost"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"PPO {name} is {getattr(config, name)}, but it must not be negative.")
    if config.network.noise == "none":
        raise ValueError(
            "PPO needs action noise: network.noise is 'none', use 'parameter' or 'network'."
        )
    batch = config.batch_size
    if batch % config.num_minibatches:
        divisor = _nearest_divisor(batch, config.num_minibatches)
        raise ValueError(
            f"{config.num_envs} environments x {config.unroll_length} steps = {batch} do not "
            f"divide into {config.num_minibatches} minibatches; the nearest number that fits is "
            f"{divisor}."
        )
    if config.num_timesteps < batch:
        raise ValueError(
            f"num_timesteps is {config.num_timesteps}, but one rollout of "
            f"{config.num_envs} environments takes {batch} env steps; use at least {batch}."
        )


def _nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of ``number`` nearest to ``wanted``."""
    divisors = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return min({*divisors, *(number // d for d in divisors)}, key=lambda d: (abs(d - wanted), d))


_PRESETS: dict[str, dict[str, object]] = {
    # Updates are what a short run on this task lacks: at 200k steps and Adam 3e-4, 16 environments
    # reached 600-710 on four seeds, 64 of them 130-460.
    "brax:inverted_pendulum": {"reward_scaling": 0.1, "num_envs": 16},
    "brax:inverted_double_pendulum": {"reward_scaling": 0.1},
    # Returns near 300 are far from where a value network starts: at 300k steps and Adam 3e-4, two
    # seeds, 431 and 424 with normalized rewards, 365 and 361 without.
    "brax:hopper": {"normalize_rewards": True},
}

_FAMILY_PRESETS: dict[str, dict[str, object]] = {
    # The usual recipe for Gymnasium's bodies, where env steps are dear: many small updates of each
    # rollout of 2048 steps (Huang et al. 2022, "The 37 implementation details of PPO", ICLR blog).
    "gym": {
        "num_envs": 16,
        "unroll_length": 128,
        "num_minibatches": 32,
        "num_updates_per_batch": 10,
        "normalize_rewards": True,
    },
    # With the defaults the pole is balanced after 25k steps and let drift off the track afterwards.
    # Adam 3e-4, 200k steps (swingup 500k), means of six seeds with the defaults, with rewards
    # normalized, and with 16 environments as well: cartpole 183 232 478, swingup 153 170 243,
    # pendulum 112 139 180, pointmass 58 65 84.
    "control": {"num_envs": 16, "normalize_rewards": True},
    # Rewards are small and come for a thousand steps: CartpoleBalance at 1M steps and Adam 3e-4,
    # four seeds, 1000 742 1000 981; with the defaults 262 769 169 351, with those of "gym" 350 346
    # 220 1000, with their discount raised to this one 206 895 978 990.
    "playground": {
        "num_envs": 16,
        "unroll_length": 128,
        "num_minibatches": 8,
        "num_updates_per_batch": 8,
        "discount": 0.995,
        "normalize_rewards": True,
    },
}


def presets(env_name: str, **changes: object) -> PPOConfig:
    """Settings for an environment or its family; the defaults where there are none for either.

    Args:
      env_name: registry name, such as ``"brax:hopper"``.
      **changes: fields to set otherwise.

    Example:
      >>> presets("brax:hopper", num_timesteps=500_000).total_env_steps
      491520
    """
    family = env_name.partition(":")[0]
    fields = _PRESETS.get(env_name, _FAMILY_PRESETS.get(family, {})) | changes
    return PPOConfig(**fields)  # pyright: ignore[reportArgumentType]
