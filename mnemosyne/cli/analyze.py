# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne analyze``: theory of the memory, chaos in meta-training, weights at their work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

SUBJECTS = ("capacity", "lyapunov", "policy")


@dataclasses.dataclass(frozen=True)
class Analyze:
    """Check the theory of the memory, measure chaos of meta-training, or watch weights at work."""

    subject: tyro.conf.Positional[str] = ""
    """capacity, lyapunov or policy."""
    artifact: tyro.conf.Positional[str] = ""
    """lyapunov, policy: name of shipped weights, or a file; default: mnemosyne-base, for policy
    mnemosyne-rl."""
    out: Path | None = None
    """capacity, policy: folder for the figures; without it none are drawn."""
    env: str = "brax:inverted_pendulum"
    """policy: where to train by PPO; not an environment of the hold-out."""
    without: tuple[str, ...] = ()
    """policy: parts that fall silent in further runs, such as actions progress memory attention."""
    num_seeds: int = 4
    """policy: runs of every optimizer, at least 1."""
    draws: int = 20_000
    """capacity: draws of the random features, at least 100; fewer are faster and noisier."""
    recipe: Literal["base", "rl"] = "base"
    """lyapunov: whose inner problems."""
    family: str | None = None
    """lyapunov: only families whose name contains this."""
    truncations: int = 10
    """lyapunov: length of the unroll, in truncations, at least 2."""
    problems: int = 4
    """lyapunov: inner problems a family, at least 1."""
    data_dir: str | None = None
    """lyapunov: folder with mnist.npz; default: MNEMOSYNE_DATA_DIR, else the bundled digits."""
    seed: int = 0
    """Of everything that is drawn."""
    json: Path | None = None
    """File for the numbers that are printed."""


def run(config: Analyze) -> dict[str, Any]:
    """Prints and returns the numbers.

    Raises:
      ValueError: no subject, an unknown one, or a setting out of range.
    """
    _check(config)
    subjects = {"capacity": _capacity, "lyapunov": _lyapunov, "policy": _policy}
    return subjects[config.subject](config)


def _check(config: Analyze) -> None:
    """Refuses what cannot be, before anything is computed."""
    from mnemosyne.cli.parse import nearest

    if config.subject not in SUBJECTS:
        hint = f"; did you mean {nearest(config.subject, SUBJECTS)!r}?" if config.subject else "."
        raise ValueError(
            f"name what to analyze, one of {', '.join(SUBJECTS)}, not {config.subject!r}{hint}"
        )
    bounds = {"draws": 100, "truncations": 2, "problems": 1, "seed": 0, "num_seeds": 1}
    for name, least in bounds.items():
        if getattr(config, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least {least}, got {getattr(config, name)}.")


def _capacity(config: Analyze) -> dict[str, Any]:
    """Measures, prints, and draws if asked to."""
    from mnemosyne.cli import capacity_figures, capacity_report
    from robotics.run_folder import check_writable

    if config.out is not None:
        check_writable(config.out)
    result = capacity_report.measure(config.seed, config.draws)
    print(capacity_report.text(result))
    if config.out is not None:
        result["figures"] = capacity_figures.draw(result, config.out)
        print("\n".join(f"figure: {path}" for path in result["figures"]))
    return result


def _lyapunov(config: Analyze) -> dict[str, Any]:
    """The exponent of every family under the artifact, and what follows from it."""
    import mnemosyne
    from mnemosyne import artifacts
    from mnemosyne.analysis import lyapunov

    name = config.artifact or "mnemosyne-base"
    artifact = mnemosyne.load(name)
    sizes = [array.size for array in artifacts.flatten(artifact.meta_params).values()]
    rows = []
    print(f"{'median exponent':>15}  {'range':<18} use   family")
    for name, (system, steps) in _families(config, artifact.config).items():
        exponents = _exponents(config, system, artifact.meta_params, steps)
        median = exponents[len(exponents) // 2]
        row = {
            "family": name,
            "exponents": exponents,
            "median": median,
            "recommended": lyapunov.recommend(median),
            "steps_per_truncation": steps,
            "variance_threshold": lyapunov.variance_threshold(steps, sum(sizes), 8),
        }
        rows.append(row)
        spread = f"{exponents[0]:+.4f} .. {exponents[-1]:+.4f}"
        print(f"{median:>+15.4f}  {spread:<18} {row['recommended']:<5} {name}", flush=True)
    print(f"per inner step, in nats; above {lyapunov.THRESHOLD} gradients through the unroll are")
    print("too noisy and evolution strategies are recommended")
    return {"artifact": name, "threshold": lyapunov.THRESHOLD, "families": rows}


def _policy(config: Analyze) -> dict[str, Any]:
    """Trains under watch, prints what was seen, draws if asked to."""
    import mnemosyne
    from experiments.benchmarks.options import Options
    from experiments.benchmarks.policies import suites
    from experiments.understanding import figures, study
    from robotics.run_folder import check_writable

    name = config.artifact or "mnemosyne-rl"
    artifact = mnemosyne.load(name)
    cell = suites.cell_of(Options(size="small"), config.env)
    if config.out is not None:
        check_writable(config.out)
    seeds = range(config.seed, config.seed + config.num_seeds)
    found = study.study(name, artifact, cell, config.without, seeds)
    print(study.table(found))
    result = {"artifact": name, "env": config.env, "optimizers": study.rows(found)}
    if config.out is not None:
        file = config.out / f"{config.env.replace(':', '-')}.png"
        title = f"{name} on {config.env}, PPO, {config.num_seeds} seeds"
        result["figures"] = [figures.draw(found, title, file)]
        print(f"figure: {file}")
    return result


def _families(config: Analyze, network: Any) -> dict[str, tuple[Any, int]]:
    """Systems by name, with the inner steps of a truncation."""
    from experiments import data, policies, recipes, splits, variety
    from mnemosyne.cli.parse import nearest
    from mnemosyne.learned import mnemosyne_rule

    rule = mnemosyne_rule(network)
    if config.recipe == "rl":
        found = {
            problem.name: (
                policies.make_system(problem, rule, variety.NONE),
                problem.config.rollouts_per_epoch * problem.config.updates_per_rollout,
            )
            for problem in splits.meta_train_problems()
        }
    else:
        families = splits.meta_train_families(data.data_dir(config.data_dir))
        systems = recipes.base_systems(rule, families)
        found = {name: (system, recipes.WINDOWS.truncation) for name, system in systems.items()}
    if config.family is None:
        return found
    chosen = {name: value for name, value in found.items() if config.family in name}
    if not chosen:
        best = nearest(config.family, list(found))
        raise ValueError(f"no family is named like {config.family!r}; the nearest is {best!r}.")
    return chosen


def _exponents(config: Analyze, system: Any, theta: Any, steps: int) -> list[float]:
    """Sorted exponents per inner step, one a problem; what is not finite comes last."""
    import jax
    import numpy as np

    from mnemosyne.analysis import lyapunov

    def measure(key: Any) -> Any:
        return lyapunov.unroll_ftle(system, theta, key, config.truncations, steps)

    keys = jax.random.split(jax.random.key(config.seed), config.problems)
    return [float(x) for x in np.sort(jax.jit(jax.vmap(measure))(keys))]
