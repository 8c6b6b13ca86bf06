# SPDX-License-Identifier: Apache-2.0
"""Flags of all benchmarks; each reads some of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

Size = Literal["smoke", "small", "full"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, how thoroughly, and where results go."""

    size: Size = "smoke"
    """smoke: seconds, structure only; small: a processor's half hour; full: wants a GPU."""
    weights: str = ""
    """Name of shipped weights, a file, or a meta-training folder; default: mnemosyne-base, for
    policies trained by PPO mnemosyne-rl."""
    rival: tuple[str, ...] = ()
    """Learned rivals as NAME=FILE: a baseline such as lstm=lstm.safetensors, or any other name for
    more weights of our own."""
    tasks: tuple[str, ...] = ()
    """Only tasks whose names contain one of these."""
    stress: bool = False
    """The stress tasks instead of the hold-out ones."""
    validation: bool = False
    """The validation tasks instead: to choose among weights, which the hold-out ones must not."""
    seeds: int | None = None
    """Runs a task of whatever is not tuned; default: 2 at smoke, 8 at small, 20 at full."""
    horizon: float | None = None
    """Length of a run: multiples of the task's own (optimizers, default 1) or of the longest run of
    meta-training (stability, default 50)."""
    rivals_only: bool = False
    """Only compute what the cache lacks of the hand-designed rivals."""
    split: Literal["meta-train", "validation", "hold-out"] | None = None
    """Environments of policies; default: hold-out, at smoke control tasks of meta-training."""
    envs: tuple[str, ...] = ()
    """Only environments whose names contain one of these, or others of the split by full name."""
    algo: Literal["ppo", "es"] = "ppo"
    """How policies are trained."""
    sweep: bool = False
    """Vary the training of policies one setting at a time, on validation environments."""
    data_dir: str | None = None
    """Folder with data sets; default: MNEMOSYNE_DATA_DIR, else tasks without data."""
    cache: Path = Path(".cache/benchmarks")
    """Folder for results that are not committed; experiments/envelopes to commit them."""
    out: Path | None = None
    """Folder for the table and the picture of the learning curves."""
    params: str = "1e4,1e6,1e7"
    """Sizes of the networks to measure the cost on, separated by commas."""
    layout: tuple[Literal["mlp", "transformer", "many-small"], ...] = (
        "mlp",
        "transformer",
        "many-small",
    )
    """Kinds of those networks."""
    only: tuple[str, ...] = ()
    """Only these optimizers (cost; Adam is always among them) or parts (throughput: ppo, es, gym,
    shares, envs, seeds; warm-start: policy, value, heads, normalizer, memory)."""
    rounds: int = 7
    """Times that every optimizer takes its turn."""
    max_gib: float = 6.0
    """Rows that need more memory than this are left out, visibly."""
    json: Path | None = None
    """File for all rows."""
