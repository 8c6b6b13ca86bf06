# SPDX-License-Identifier: Apache-2.0
"""Draws what :mod:`.study` has seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from experiments import plots
from experiments.understanding.study import Watched, standard_error
from experiments.understanding.watch import KL_EDGES

ROLES = (("policy", "#1b6ca8"), ("value", "#d1495b"))
"""Parts of PPO's parameters, and their colours."""


def draw(found: Sequence[Watched], title: str, path: Path) -> Path:
    """Four panels: step sizes over the run, within a rollout, by KL divergence; and returns.

    Args:
      found: of :func:`experiments.understanding.study.study`; the first three panels are its first.
      title: of the figure.
      path: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.0), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, panel in zip(figure.subplots(2, 2).ravel(), PANELS, strict=True):
        panel(axes, found)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=7)
    return plots.save(figure, path, dpi=120)


def _of_role(one: Watched, role: str) -> Bool[np.ndarray, " tensors"]:
    return np.asarray([name.split("/")[0] == role for name in one.tensors])


def _lines(axes: Any, x: np.ndarray, one: Watched, sizes: Float[np.ndarray, "x tensors"]) -> None:
    """A thin line for each tensor, a thick one for the geometric mean of each role."""
    for role, color in ROLES:
        mine = sizes[:, _of_role(one, role)]
        axes.plot(x, mine, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(x, np.exp(np.log(mine).mean(1)), "o-", color=color, markersize=3, label=role)
    axes.set_yscale("log")
    axes.set_ylabel("step, in Adam's learning rate", fontsize=8)


def _over_time(axes: Any, found: Sequence[Watched]) -> None:
    _lines(axes, found[0].env_steps, found[0], found[0].step)
    axes.set_xlabel("env steps", fontsize=8)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))


def _within_rollout(axes: Any, found: Sequence[Watched]) -> None:
    places = np.arange(1, len(found[0].by_place) + 1)
    _lines(axes, places, found[0], found[0].by_place)
    axes.set_xlabel("update after the rollout", fontsize=8)


def _by_kl(axes: Any, found: Sequence[Watched]) -> None:
    """Open bins are drawn half a bin beyond the outermost edges."""
    factor = np.sqrt(KL_EDGES[1] / KL_EDGES[0])
    centres = np.append(KL_EDGES / factor, KL_EDGES[-1] * factor)
    seen = found[0].kl_share > 0
    _lines(axes, centres[seen], found[0], found[0].by_kl[seen])
    axes.set_xscale("log")
    axes.set_xlabel("KL divergence that the optimizer was told", fontsize=8)


def _returns(axes: Any, found: Sequence[Watched]) -> None:
    for one in found:
        mean, error = one.returns.mean(0), standard_error(one.returns)
        line = axes.plot(one.env_steps, mean, label=one.name, linewidth=1.2)[0]
        axes.fill_between(
            one.env_steps, mean - error, mean + error, alpha=0.15, color=line.get_color()
        )
    axes.set_xlabel("env steps", fontsize=8)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
    axes.set_ylabel("training return, mean and standard error", fontsize=8)


PANELS = (_over_time, _within_rollout, _by_kl, _returns)
