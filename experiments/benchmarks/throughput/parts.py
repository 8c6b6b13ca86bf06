# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark, each from its plan to its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import optax

import mnemosyne
from experiments.benchmarks.throughput import (
    brax_peers,
    evosax_peer,
    gym,
    ours,
    race,
    rows,
    shares,
)
from experiments.benchmarks.throughput.race import Entry, Run
from experiments.benchmarks.throughput.settings import Course, Plan

Row = dict[str, Any]
Part = Callable[[Plan, str], Iterator[list[Row]]]
"""``part(plan, weights)``: groups of rows that belong into one table."""


def ppo(plan: Plan, weights: str) -> Iterator[list[Row]]:
    """Ours with Adam and with Mnemosyne against Brax's own, to a return."""
    course = plan.ppo
    entries = {
        "ours": _ours(course, lambda: ours.adam(course)),
        "brax": Entry(lambda seed: brax_peers.ppo(course, True, seed), peer=True),
        "ours, mnemosyne": _ours(course, lambda: ours.learned(course, weights)),
    }
    yield _raced("ppo", course, entries, course.config.num_epochs)


def es(plan: Plan, weights: str) -> Iterator[list[Row]]:
    """Ours with Adam against Brax's own and evosax's."""
    for course in plan.es:
        entries = {
            "ours": _ours(course, lambda course=course: ours.adam(course)),
            "brax": Entry(lambda seed, course=course: brax_peers.es(course, seed), peer=True),
            "evosax": Entry(
                lambda seed, course=course: evosax_peer.EvosaxRun(course, seed), peer=True
            ),
        }
        yield _raced("es", course, entries, course.config.num_epochs(course.episode_length))


def on_host(plan: Plan, weights: str) -> Iterator[list[Row]]:
    """Our host path against a loop by hand, and against stepping alone."""
    where = gym.Where(plan.gym_id, plan.gym, 3e-4)
    entries = {
        "ours": Entry(lambda seed: gym.OursOnHost(where, seed), peer=False),
        "plain loop": Entry(lambda seed: gym.PlainLoop(where, seed), peer=True),
        "stepping alone": Entry(lambda seed: gym.SteppingAlone(where, seed), peer=True),
    }
    found = race.race(entries, plan.gym.num_epochs)
    name = f"gym:{plan.gym_id}, {plan.gym.num_envs} envs"
    yield rows.summarize("gym", name, {who: [run] for who, run in found.items()})


def time_shares(plan: Plan, weights: str) -> Iterator[list[Row]]:
    """Where the time of ours goes, with Adam and with Mnemosyne."""
    course = plan.ppo
    total = course.config.num_updates
    optimizers = {
        "adam": optax.adam(course.learning_rate),
        "mnemosyne": mnemosyne.mnemosyne(weights, total_steps=total),
    }
    found = shares.measure(course, optimizers, plan.rounds)
    yield [{"part": "shares", "where": _where(course), "skipped": None, **row} for row in found]


def num_envs(plan: Plan, weights: str) -> Iterator[list[Row]]:
    """Ours and Brax's own with more and more environments, without evaluations."""
    for count in plan.num_envs:
        config = dataclasses.replace(
            plan.scaling.config,
            num_envs=count,
            num_timesteps=plan.scaling.config.num_timesteps * count // plan.scaling.config.num_envs,
        )
        course = dataclasses.replace(plan.scaling, config=config)
        entries = {
            "ours": _ours(course, lambda course=course: ours.adam(course), judged=False),
            "brax": Entry(
                lambda seed, course=course: brax_peers.ppo(course, False, seed), peer=True
            ),
        }
        runs = race.race(entries, config.num_epochs)
        found = {name: [run] for name, run in runs.items()}
        yield rows.summarize("envs", _where(course), found)


def seeds(plan: Plan, weights: str) -> Iterator[list[Row]]:
    """Several seeds in one program against single runs, compilation included."""
    course, count = plan.lanes, plan.num_seeds
    algorithm = ours.adam(course)
    entries = {
        "1": Entry(lambda seed: ours.Ours(course, algorithm, [seed], False), peer=False),
        "all": Entry(lambda seed: ours.Ours(course, algorithm, range(count), False), peer=False),
    }
    found = race.race(entries, course.config.num_epochs)
    yield [lanes_row(_where(course), found, count, plan.ppo.config.num_timesteps)]


def lanes_row(where: str, found: Mapping[str, Run], count: int, env_steps: int) -> Row:
    """What ``count`` seeds of ``env_steps`` each take, side by side and one after another."""
    one, every = found["1"], found["all"]
    single, side_by_side = (np.median([t.seconds for t in run.turns]) for run in (one, every))
    chunks = env_steps / one.turns[0].env_steps
    whole = [run.compile_s + chunks * s for run, s in ((one, single), (every, side_by_side))]
    return {
        "part": "seeds",
        "where": where,
        "who": f"{count} seeds, {env_steps:,} env steps each",
        "skipped": None,
        "compile_s": [one.compile_s, every.compile_s],
        "chunk_s": [float(single), float(side_by_side)],
        "env_steps_per_s": [
            float(one.turns[0].env_steps / single),
            float(every.turns[0].env_steps / side_by_side),
        ],
        "ratio": float(whole[1] / (count * whole[0])),
        "ratio_without_compile": float(side_by_side / (count * single)),
    }


PARTS: Mapping[str, Part] = {
    "ppo": ppo,
    "es": es,
    "gym": on_host,
    "shares": time_shares,
    "envs": num_envs,
    "seeds": seeds,
}


def _ours(course: Course, make: Callable[[], Any], judged: bool = True) -> Entry:
    return Entry(lambda seed: ours.Ours(course, make(), [seed], judged), peer=False)


def _raced(part: str, course: Course, entries: Mapping[str, Entry], turns: int) -> list[Row]:
    """A race a seed."""
    runs = [race.race(entries, turns, seed) for seed in range(course.seeds)]
    found = {name: [run[name] for run in runs] for name in entries}
    return rows.summarize(part, _where(course), found, course.target)


def _where(course: Course) -> str:
    """The environment and how many there are of it."""
    config = course.config
    count = getattr(config, "num_envs", None)
    sizes = f"{count} envs" if count is not None else f"population {config.population_size}"
    backend = f" {course.backend}" if course.backend else ""
    return f"{course.env}{backend}, {sizes}"
