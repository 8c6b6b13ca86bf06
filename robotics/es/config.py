# SPDX-License-Identifier: Apache-2.0
"""Settings of the evolution strategy, and the counts that follow from them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from robotics.algorithm import check_positive, nearest
from robotics.networks import NetworkConfig


def _network() -> NetworkConfig:
    return NetworkConfig(policy_hidden=(32, 32), noise="none")


@dataclasses.dataclass(frozen=True)
class ESConfig:
    """OpenAI-ES, the optimizer aside.

    Episodes end when they end, so the number of generations in a budget is not known beforehand.
    Only steps of running episodes count; a generation starts only if the budget would cover
    episodes of full length. A run therefore takes at most ``num_timesteps`` and more than
    ``num_timesteps - steps_per_generation`` env steps, divided into chunks of about equal cost.
    """

    num_timesteps: int = 2_000_000
    """Budget in env steps of one seed, at least one generation of full episodes; never exceeded."""
    num_evaluations: int = 20
    """Chunks wanted, with an evaluation after each, at least 1; fewer if generations cost more."""
    population_size: int = 32
    """Perturbed policies in a generation, even and at least 2: they come in antithetic pairs."""
    episodes_per_member: int = 1
    """Episodes that a fitness is the mean of, at least 1."""
    perturbation_std: float = 0.05
    """Standard deviation of the perturbations of the parameters, above 0."""
    perturbation: Literal["full", "low-rank"] = "full"
    """What perturbs a matrix: a draw for every entry (full), or a product of two thin ones."""
    rank: int = 1
    """Rank of low-rank perturbations, at least 1."""
    shaping: Literal["ranks", "ars"] = "ranks"
    """How returns count: by their ranks, or as in augmented random search, where only the best
    directions do and differences are divided by the standard deviation of their returns."""
    top_directions: int | None = None
    """Pairs that count with shaping ars, from 1 to half the population; default: all."""
    normalize_observations: bool = True
    """Normalize observations by the statistics of earlier generations."""
    network: NetworkConfig = dataclasses.field(default_factory=_network)
    """Policy network; value network and action noise are not used."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def noise_rank(self) -> int | None:
        """Rank of the perturbation of a matrix; ``None`` where every entry is drawn."""
        return self.rank if self.perturbation == "low-rank" else None

    @property
    def num_top_directions(self) -> int:
        """Pairs that count with shaping ars."""
        return self.population_size // 2 if self.top_directions is None else self.top_directions

    @property
    def num_episodes(self) -> int:
        """Episodes in a generation."""
        return self.population_size * self.episodes_per_member

    def steps_per_generation(self, time_limit: int) -> int:
        """Env steps of a generation if all episodes reach the time limit."""
        return self.num_episodes * time_limit

    def step_limit(self, time_limit: int) -> int:
        """Generations start while fewer env steps than this have been taken.

        Raises:
          ValueError: if the budget does not cover one generation.
        """
        cost = self.steps_per_generation(time_limit)
        if self.num_timesteps < cost:
            raise ValueError(
                f"num_timesteps is {self.num_timesteps}, but one generation of "
                f"{self.num_episodes} episodes takes up to {cost} env steps; use at least {cost} "
                "or a smaller population."
            )
        return self.num_timesteps - cost + 1

    def num_epochs(self, time_limit: int) -> int:
        """Chunks in a run; each is long enough for at least one generation."""
        most = self.step_limit(time_limit) // self.steps_per_generation(time_limit)
        return max(1, min(self.num_evaluations, most))


def _check(config: ESConfig) -> None:
    """Raises ValueError, in one sentence, for the first setting that cannot be."""
    names = ("num_timesteps", "num_evaluations", "episodes_per_member", "perturbation_std", "rank")
    check_positive("ES", **{name: getattr(config, name) for name in names})
    for name, valid in (("perturbation", ("full", "low-rank")), ("shaping", ("ranks", "ars"))):
        if getattr(config, name) not in valid:
            value = getattr(config, name)
            raise ValueError(
                f"ES {name} is {value!r}; the nearest valid one is {nearest(str(value), valid)!r}."
            )
    population = config.population_size
    if population < 2 or population % 2:
        raise ValueError(
            f"ES population_size is {population}, but perturbations come in pairs; the nearest "
            f"size that fits is {max(2, population + population % 2)}."
        )
    if not 1 <= config.num_top_directions <= population // 2:
        raise ValueError(
            f"ES top_directions is {config.top_directions}, but a population of {population} has "
            f"1 to {population // 2} directions."
        )


_PRESETS: dict[str, dict[str, object]] = {
    "brax:inverted_pendulum": {"population_size": 16},
}


def presets(env_name: str, **changes: object) -> ESConfig:
    """Settings for an environment; the defaults where none were tuned for it.

    Args:
      env_name: registry name, such as ``"brax:hopper"``.
      **changes: fields to set otherwise.

    Example:
      >>> presets("brax:inverted_pendulum").population_size
      16
    """
    fields = _PRESETS.get(env_name, {}) | changes
    return ESConfig(**fields)  # pyright: ignore[reportArgumentType]
