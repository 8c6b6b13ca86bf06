# SPDX-License-Identifier: Apache-2.0
"""Which environments, for how long, with how many seeds: by size, split and algorithm."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from experiments import splits
from experiments.benchmarks.options import Options
from experiments.benchmarks.policies.cells import Algo, Cell, make_cell
from robotics.networks import NetworkConfig

Split = Literal["meta-train", "validation", "hold-out"]
JUDGED_SEED = 1000
"""First seed of the judged runs: no search, no weights and no demonstration has used it."""


class Thoroughness(NamedTuple):
    """What a size means.

    Attributes:
      rival_seeds: judged runs of rules by hand.
      seeds: judged runs of ours and of learned rivals.
      trials: of a search.
      trial_seeds: runs a trial.
    """

    rival_seeds: int
    seeds: int
    trials: int
    trial_seeds: int


SIZES = {
    "smoke": Thoroughness(2, 2, 2, 1),
    "small": Thoroughness(8, 8, 12, 2),
    "full": Thoroughness(20, 20, 32, 3),
}

# Rollouts (generations of full episodes under ES) between two of the 25 evaluations. One rollout
# of PPO is 64 environments x 32 steps, so 20 of them are a run of 1,024,000 env steps.
_SMALL: dict[tuple[Algo, Split], dict[str, int]] = {
    ("ppo", "meta-train"): {
        "brax:inverted_pendulum": 16,
        "brax:inverted_double_pendulum": 6,
        "brax:reacher": 8,
        "control:cartpole-swingup": 16,
        "control:pendulum": 8,
        "control:pointmass": 8,
    },
    ("ppo", "validation"): {"brax:hopper": 20, "brax:halfcheetah": 10},
    ("ppo", "hold-out"): {"brax:walker2d": 20, "brax:ant": 10, "brax:swimmer": 10},
    ("es", "meta-train"): {"brax:inverted_pendulum": 4, "control:cartpole-swingup": 4},
    ("es", "validation"): {"brax:hopper": 4},
    ("es", "hold-out"): {"brax:walker2d": 4, "brax:swimmer": 4},
}
SWEEP = ("brax:hopper", 8)
"""What a sweep varies by default: a run of 409,600 env steps."""
_DEFAULT_ROLLOUTS: dict[Algo, int] = {"ppo": 10, "es": 2}
"""Of an environment that is named by ``--envs`` and not part of the suite."""
_FULL_PPO: dict[str, Any] = {"num_envs": 1024, "unroll_length": 16, "num_minibatches": 32}
_FULL = {"brax:walker2d": 25, "brax:ant": 25, "brax:humanoid": 50, "brax:swimmer": 25}
_SMOKE_PPO: dict[str, Any] = {
    "num_evaluations": 2,
    "num_envs": 4,
    "unroll_length": 8,
    "normalize_rewards": True,
    "network": NetworkConfig(policy_hidden=(8,), value_hidden=(8,)),
}
_SMOKE_ES: dict[str, Any] = {
    "num_evaluations": 2,
    "population_size": 4,
    "network": NetworkConfig(policy_hidden=(8,), noise="none"),
}


def thoroughness(options: Options) -> Thoroughness:
    """The size, with the seeds of the command line for whatever is judged as it is.

    Raises:
      ValueError: for a number of seeds below 1.
    """
    size = SIZES[options.size]
    if options.seeds is None:
        return size
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}.")
    return size._replace(seeds=options.seeds)


def judged_seeds(count: int) -> range:
    """Seeds of judged runs: paired over all rules, disjoint from those of searches."""
    return range(JUDGED_SEED, JUDGED_SEED + count)


def split(options: Options) -> Split:
    """The split of the command line; at ``smoke`` always M.

    Raises:
      ValueError: if another one is asked for at ``smoke``.
    """
    if options.size != "smoke":
        return options.split or "hold-out"
    if options.split not in (None, "meta-train"):
        raise ValueError(
            "--size smoke only runs control tasks of meta-training: leave out --split, or take "
            "--size small."
        )
    return "meta-train"


def judged_cells(options: Options) -> list[Cell]:
    """The cells of the command line.

    Raises:
      ValueError: if ``--envs`` fits nothing.
    """
    where = split(options)
    lengths = _lengths(options.size, options.algo, where)
    names = _chosen(options.envs, lengths, where)
    rollouts = {name: lengths.get(name, _DEFAULT_ROLLOUTS[options.algo]) for name in names}
    return [_cell(name, options.size, options.algo, rollouts[name]) for name in names]


def search_cells(options: Options) -> list[Cell]:
    """Where the one setting of Adam is searched: M, whatever is judged; never anything else.

    Raises:
      ValueError: if an environment of another split has got into M's suite.
    """
    size = "smoke" if options.size == "smoke" else "small"
    lengths = _lengths(size, options.algo, "meta-train")
    for name in lengths:
        if splits.env_split(name) != "meta-train":
            raise ValueError(f"{name} is not in M, so nothing may be tuned on it.")
    return [_cell(name, size, options.algo, rollouts) for name, rollouts in lengths.items()]


def sweep_cells(options: Options) -> list[Cell]:
    """The base cells of a sweep: at ``small`` the hopper for half of its usual run.

    Raises:
      ValueError: if ``--envs`` fits nothing.
    """
    if options.envs or options.size == "smoke":
        return judged_cells(options)
    name, rollouts = SWEEP
    if split(options) != splits.env_split(name):
        raise ValueError(f"--sweep varies {name} unless --envs names environments of the split.")
    return [_cell(name, options.size, options.algo, rollouts)]


def cell_of(options: Options, name: str) -> Cell:
    """The cell of one environment by its full name, as long as in the suite of its split.

    Raises:
      ValueError: for an environment of the hold-out, which is judged and nothing else, of no split,
        or outside JAX.
    """
    where: Any = splits.env_split(name)
    if where == "hold-out":
        raise ValueError(f"{name} is of the hold-out split, which only `policies` may run.")
    lengths = _lengths(options.size, options.algo, where)
    _check_inside_jax(name, lengths)
    rollouts = lengths.get(name)
    return _cell(name, options.size, options.algo, rollouts or _DEFAULT_ROLLOUTS[options.algo])


def _lengths(size: str, algo: Algo, where: Split) -> dict[str, int]:
    if size == "smoke":
        return {"control:pointmass": 1}
    if size == "full" and (algo, where) == ("ppo", "hold-out"):
        return _FULL
    return _SMALL[algo, where]


def _chosen(words: tuple[str, ...], lengths: dict[str, int], where: Split) -> list[str]:
    """Environments of the suite whose names contain a word, and others of the split by name."""
    found = [name for name in lengths if not words or any(word in name for word in words)]
    for word in words:
        if any(word in name for name in found):
            continue
        if ":" not in word or splits.env_split(word) != where:
            raise ValueError(
                f"--envs {word}: no environment of the {where} split's suite has such a name; "
                f"there are {', '.join(lengths)}."
            )
        _check_inside_jax(word, lengths)
        found.append(word)
    return found


def _check_inside_jax(name: str, lengths: dict[str, int]) -> None:
    """Refuses environments of a host: all seeds of a run are one compiled program."""
    if name.startswith("gym:"):
        raise ValueError(
            f"{name}: this takes environments that run inside JAX; there are {', '.join(lengths)}."
        )


def _cell(name: str, size: str, algo: Algo, rollouts: int) -> Cell:
    if size == "smoke":
        return make_cell(name, algo, rollouts, **(_SMOKE_PPO if algo == "ppo" else _SMOKE_ES))
    changes = _FULL_PPO if (size, algo) == ("full", "ppo") else {}
    return make_cell(name, algo, rollouts, **changes)
