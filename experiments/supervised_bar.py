# SPDX-License-Identifier: Apache-2.0
"""Shipped weights against Adam's best fixed rate on the 64-32-10 network, on unseen seeds.

    python -m experiments.supervised_bar [--weights W] [--data-dir D] [--seeds 16] [--json F]

Nine Adam rates, half a decade apart; both judged by the training loss averaged over the run. The
learned optimizer is given the loss and nothing else, no progress and no length of the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mnemosyne
from experiments import data, splits
from experiments.statistics import bootstrap
from mnemosyne.meta import validate
from mnemosyne.meta.session import write_json

SEED = 1234
"""Of the judged runs; validation and meta-training use others."""


def judge(
    artifact: mnemosyne.Artifact, folder: Path | None, num_seeds: int, steps: int
) -> dict[str, Any]:
    """One row: losses of ours, of our untrained mode and of the best Adam rate, paired by seed."""
    task = splits.validation_tasks(folder)[0]
    keys = validate.seeds(SEED, num_seeds)
    untrained = mnemosyne.init_meta_params(jax.random.key(0), artifact.config)
    runs = {
        name: validate.curves(
            task, lambda t=theta: mnemosyne.scale_by_mnemosyne(t, artifact.config), keys, steps
        )
        for name, theta in {"ours": artifact.meta_params, "untrained": untrained}.items()
    }
    grid = validate.adam_grid(task, keys, steps)
    best = validate.envelope(grid)
    adam = np.asarray(grid.mean)[validate.ADAM_RATES.index(best.mean_rate)]
    ours = np.asarray(runs["ours"].mean)
    low, high = bootstrap(ours / adam, lambda x: float(np.mean(x)))
    return {
        "task": task.name,
        "steps": steps,
        "seeds": num_seeds,
        "mean_loss": float(ours.mean()),
        "mean_loss_untrained": float(np.asarray(runs["untrained"].mean).mean()),
        "mean_loss_adam": best.mean_loss,
        "adam_rate": best.mean_rate,
        "ratio": float(np.mean(ours / adam)),
        "ratio_ci95": [low, high],
        "final_loss": float(np.asarray(runs["ours"].final).mean()),
        "final_loss_adam": best.final_loss,
        "adam_rate_final": best.final_rate,
        "failures": int(np.sum(~np.isfinite(np.asarray(runs["ours"].loss)).all(axis=-1))),
    }


def main() -> None:
    """Prints the table; writes it with ``--json``."""
    parser = argparse.ArgumentParser(description="Shipped weights against tuned Adam.")
    parser.add_argument("--weights", default="mnemosyne-base")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    artifact = mnemosyne.load(arguments.weights)
    folder = data.data_dir(arguments.data_dir)
    rows = [judge(artifact, folder, arguments.seeds, steps) for steps in (200, 1000)]
    for row in rows:
        print(
            f"{row['task']}, {row['steps']} steps, {row['seeds']} seeds: mean loss "
            f"{row['mean_loss']:.4f} | Adam's best of nine rates ({row['adam_rate']:.3g}) "
            f"{row['mean_loss_adam']:.4f} | untrained {row['mean_loss_untrained']:.4f} | ratio "
            f"{row['ratio']:.3f} [{row['ratio_ci95'][0]:.3f}, {row['ratio_ci95'][1]:.3f}] | final "
            f"{row['final_loss']:.4f} against {row['final_loss_adam']:.4f}"
        )
    if arguments.json:
        write_json(arguments.json, {"weights": artifact.tensor_sha256, "rows": rows})


if __name__ == "__main__":
    main()
