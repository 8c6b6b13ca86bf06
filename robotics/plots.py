# SPDX-License-Identifier: Apache-2.0
"""Learning curves of one or more runs, drawn from ``metrics.jsonl`` and ``result.json`` alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from robotics import run_folder
from robotics.monitor import RETURN, read_metrics
from robotics.result import Z95

# Two-sided 95 % quantiles of Student's t for 1 .. 19 degrees of freedom; the normal one beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T95 += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)
_FIXED = {
    "mnemosyne": "#1b6ca8",
    "adam": "#808080",
}  # one color per optimizer in every figure; Adam is gray
_OTHERS = ("#d1495b", "#2e933c", "#edae49", "#8d5a97", "#00798c", "#5c4d3c")


class Curve(NamedTuple):
    """What is drawn of one run."""

    label: str
    optimizer: str
    steps: Float[np.ndarray, " evaluations"]
    returns: Float[np.ndarray, "evaluations seeds"]
    episode_std: Float[np.ndarray, "evaluations seeds"]
    episodes: int
    random_return: float | None


def interval95(
    returns: Float[np.ndarray, "evaluations seeds"],
) -> Float[np.ndarray, " evaluations"]:
    """Half width of the 95 % interval of the mean over seeds (Student's t).

    Example:
      >>> round(float(interval95(np.array([[0.0, 2.0]]))[0]), 2)
      12.71
    """
    seeds = returns.shape[1]
    quantile = _T95[seeds - 2] if seeds - 2 < len(_T95) else Z95
    return quantile * returns.std(axis=1, ddof=1) / np.sqrt(seeds)


def read_curve(folder: Path) -> Curve:
    """The learning curve of one run.

    Raises:
      ValueError: if the folder is no run, or has no evaluation yet.
    """
    config = run_folder.read_json(folder / run_folder.CONFIG)
    rows = [row for row in read_metrics(folder / run_folder.METRICS) if RETURN in row]
    if not rows:
        raise ValueError(f"{folder} holds no evaluation yet, so there is nothing to draw")
    result = folder / run_folder.RESULT
    random_return = run_folder.read_json(result).get("return_random") if result.is_file() else None
    return Curve(
        label=f"{config.get('env', '?')} {config.get('algo', '?')}",
        optimizer=str(config.get("optimizer", "?")),
        steps=np.array([row["env_steps"] for row in rows], np.float64),
        returns=np.array([row[RETURN] for row in rows], np.float64),
        episode_std=np.array([row[f"{RETURN}_std"] for row in rows], np.float64),
        episodes=int(config.get("eval_episodes", 64)),
        random_return=random_return,
    )


def plot_runs(folders: Sequence[Path], path: Path) -> Path:
    """Draws mean return over env steps with a 95 % band, seeds as thin lines, random as a level.

    The band is over seeds; with a single seed it is over that seed's evaluation episodes, and the
    legend says so.

    Args:
      folders: run folders, at least one.
      path: picture to write; its ending (``.png``, ``.svg``, ``.pdf``) chooses the format.

    Raises:
      ValueError: no run, or an unknown kind of picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not folders:
        raise ValueError("there is nothing to plot: name at least one run")
    curves = [read_curve(folder) for folder in folders]
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    valid = FigureCanvasAgg(figure).get_supported_filetypes()
    kind = path.suffix.removeprefix(".").lower()
    if kind not in valid:
        raise ValueError(f"cannot draw into {path}: the file name must end in .png, .svg or .pdf")
    axes = figure.subplots()
    _draw(axes, curves)
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=130)
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_atomic(path, picture.getvalue())
    return path


def _draw(axes: Any, curves: Sequence[Curve]) -> None:
    """All curves, the random policy once per environment, and the labels."""
    titles = list(dict.fromkeys(curve.label for curve in curves))
    colors = _colors([curve.optimizer for curve in curves])
    for curve in curves:
        _draw_curve(axes, curve, colors[curve.optimizer], len(titles) > 1)
    for level in dict.fromkeys(
        curve.random_return for curve in curves if curve.random_return is not None
    ):
        axes.axhline(
            level, color="black", linestyle=":", linewidth=1, label="uniform random actions"
        )
    axes.set_xlabel("environment steps (per seed)")
    axes.set_ylabel("episode return, deterministic policy")
    axes.set_title(", ".join(titles))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def _draw_curve(axes: Any, curve: Curve, color: str, with_env: bool) -> None:
    """One run: mean, band, and a thin line for every seed."""
    mean = curve.returns.mean(axis=1)
    seeds = curve.returns.shape[1]
    if seeds > 1:
        half, over = interval95(curve.returns), f"{seeds} seeds"
        axes.plot(curve.steps, curve.returns, color=color, linewidth=0.6, alpha=0.45)
    else:
        half = Z95 * curve.episode_std[:, 0] / np.sqrt(curve.episodes)
        over = f"{curve.episodes} episodes, 1 seed"
    name = f"{curve.optimizer}, {curve.label}" if with_env else curve.optimizer
    axes.fill_between(curve.steps, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
    axes.plot(curve.steps, mean, color=color, linewidth=2, label=f"{name} (95 % over {over})")


def _colors(optimizers: Sequence[str]) -> dict[str, str]:
    """A color for every optimizer; those with a color of their own keep it."""
    others = [name for name in dict.fromkeys(optimizers) if name not in _FIXED]
    return _FIXED | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)}
