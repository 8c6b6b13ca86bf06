# SPDX-License-Identifier: Apache-2.0
"""Shipped weights against tuned Adam on the hold-out vision transformer: accuracy on unseen images.

    python -m experiments.vit_accuracy [--weights W] [--data-dir D] [--seeds 5] [--json F]

The weights were meta-trained on dense networks only and get no tuning. Adam gets nine rates, half
a decade apart, with and without a cosine, and is judged by the best of the eighteen on the very
images and seeds of the comparison.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

import mnemosyne
from experiments import data, rivals
from experiments.statistics import bootstrap
from experiments.tasks import vit
from mnemosyne.meta import validate
from mnemosyne.meta.session import write_json
from mnemosyne.meta.tasks import ClassifyTask

SEED = 4321
"""Of the judged runs."""
BAR = -1.5
"""Points of accuracy that the lower bound of the paired difference has to exceed."""


def accuracy(
    task: ClassifyTask,
    images: data.Images,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """Trains one seed and returns the share of right answers on ``images``, in percent."""
    transform = optax.with_extra_args_support(optimizer)
    key_init, key_data = jax.random.split(key)
    params = task.init(key_init)

    def step(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        params, state = carry
        batch = task.sample(jax.random.fold_in(key_data, index))
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = transform.update(grads, state, params, value=loss, progress=index / steps)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, steps, step, (params, transform.init(params)))
    return 100.0 * task.accuracy(params, images.inputs, images.labels)


def judge(artifact: mnemosyne.Artifact, folder: Path | None, num_seeds: int) -> dict[str, Any]:
    """Accuracies of ours and of every Adam, and the paired difference to the best one."""
    benchmark, images = vit.HOLD_OUT["vit/cifar10-16"](folder), vit.held_out_images(folder)
    keys = validate.seeds(SEED, num_seeds)

    @functools.partial(jax.jit, static_argnums=0)
    def run(make: Callable[[Array], optax.GradientTransformation], rate: Array) -> Array:
        one = functools.partial(accuracy, vit.make_task(folder), images, make(rate))
        return jax.lax.map(functools.partial(one, benchmark.steps), keys)

    rule = mnemosyne.scale_by_mnemosyne(artifact.meta_params, artifact.config)
    ours = np.asarray(run(lambda rate: rule, jnp.ones(())))
    adams: dict[str, np.ndarray] = {}
    for line in rivals.hand_designed(rivals.SHORT_RATES, rivals.SHORT_RATES)[:2]:
        # A traced rate: one compilation serves the whole grid.
        def make(rate: Array, line: rivals.Line = line) -> optax.GradientTransformation:
            return line.make(None, rate, benchmark.steps)

        rates = {f"{line.name} {rate:g}": jnp.float32(rate) for rate in line.rates}
        adams |= {name: np.asarray(run(make, rate)) for name, rate in rates.items()}
    best = max(adams, key=lambda name: adams[name].mean())
    low, high = bootstrap(ours - adams[best], lambda x: float(np.mean(x)))
    return {
        "task": benchmark.name,
        "steps": benchmark.steps,
        "seeds": num_seeds,
        "accuracy": ours.tolist(),
        "accuracy_adam": adams[best].tolist(),
        "best_adam": best,
        "grid": {name: values.tolist() for name, values in adams.items()},
        "difference": float(np.mean(ours - adams[best])),
        "difference_ci95": [low, high],
        "bar": BAR,
        "met": bool(low > BAR),
    }


def main() -> None:
    """Prints the row; writes it with ``--json``."""
    parser = argparse.ArgumentParser(description="Accuracy of a vision transformer.")
    parser.add_argument("--weights", default="mnemosyne-base")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    artifact = mnemosyne.load(arguments.weights)
    row = judge(artifact, data.data_dir(arguments.data_dir), arguments.seeds)
    ours, adam = (np.round(row[name], 1).tolist() for name in ("accuracy", "accuracy_adam"))
    print(
        f"{row['task']}, {row['steps']} steps, test accuracy of {row['seeds']} paired seeds: ours "
        f"{ours} | {row['best_adam']} {adam} | difference {row['difference']:+.2f} points "
        f"[{row['difference_ci95'][0]:+.2f}, {row['difference_ci95'][1]:+.2f}], bar {BAR}: "
        f"{'met' if row['met'] else 'missed'}"
    )
    if arguments.json:
        write_json(arguments.json, {"weights": artifact.tensor_sha256, "rows": [row]})


if __name__ == "__main__":
    main()
