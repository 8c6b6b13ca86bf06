# SPDX-License-Identifier: Apache-2.0
"""``mnemosyne analyze capacity --out FOLDER``: four figures of what the report says."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Panel = Callable[[Any, dict[str, Any]], None]
COLORS = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#8d5a97")
GRAY = "#808080"


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draws all figures as PNG.

    Args:
      result: of :func:`mnemosyne.cli.capacity_report.measure`.
      folder: where to; made if it is not there.

    Returns:
      Their paths.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from robotics import run_folder

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, panels in FIGURES.items():
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(1, 2), panels, strict=True):
            panel(axes, result)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize=8, loc=LEGENDS.get(panel, "best"))
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
        paths.append(folder / f"{name}.png")
        run_folder.write_atomic(paths[-1], picture.getvalue())
    return paths


def _crowded(axes: Any, result: dict[str, Any]) -> None:
    """The worst arrangement: where the theorem's promise ends."""
    storage = result["storage"]
    changes = storage["crowded_change"]
    axes.plot(range(1, len(changes) + 1), changes, "o-", color=COLORS[0], label="measured")
    axes.axhline(0, color="black", linewidth=0.8)
    for bound, style, label in (
        (storage["crowded_bound"], ":", "theorem allows"),
        (storage["crowded_sharp_bound"], "--", "sharp bound"),
    ):
        axes.axvline(bound, color=GRAY, linestyle=style, label=f"{label}: {bound:.2f}")
    axes.set_xticks(range(2, 21, 2))
    axes.set_xlabel("stored patterns")
    axes.set_ylabel(r"energy added by a wrong flip ($e^{180}$)")
    axes.set_title("Exact energy, worst arrangement (N = 200)", fontsize=10)


def _price(axes: Any, result: dict[str, Any]) -> None:
    """What the theorem allows, beside what random features cost."""
    from mnemosyne.analysis import capacity

    del result
    strength = np.linspace(0.5, 12.0, 60)
    allowed = [capacity.sharp_storage_bound(100, 0.5, 0.1, x / 100) for x in strength]
    needed = [capacity.required_features(x) for x in strength]
    axes.semilogy(strength, allowed, color=COLORS[0], label="patterns that are safe (sharp bound)")
    axes.semilogy(strength, needed, color=COLORS[1], label="features for relative noise of 1")
    axes.axhspan(16, 128, color=GRAY, alpha=0.2, linewidth=0, label="16 to 128 features")
    axes.set_xlabel(r"strength $\beta N$ (N = 100, separation 0.5, radius 0.1)")
    axes.set_ylabel("number")
    axes.set_title("What capacity costs in random features", fontsize=10)


def _kernel(axes: Any, result: dict[str, Any]) -> None:
    """Noise of the kernel over the number of features."""
    rows = [row for row in result["kernel"] if row["norm"] == 0.7 and not row["aligned"]]
    for color, variant in zip(COLORS, dict.fromkeys(row["variant"] for row in rows), strict=False):
        chosen = [row for row in rows if row["variant"] == variant]
        widths = [row["width"] for row in chosen]
        measured = [row["measured"] for row in chosen]
        axes.loglog(widths, measured, "o", color=color, label=f"{variant}, measured")
        if "orthogonal" not in variant:
            predicted = [row["predicted"] for row in chosen]
            axes.loglog(widths, predicted, color=color, label=f"{variant}, formula")
    _plain_ticks(axes, sorted({row["width"] for row in rows}), (0.05, 0.1, 0.2, 0.3))
    axes.set_xlabel("features r")
    axes.set_ylabel("relative standard deviation")
    axes.set_title(r"Kernel estimate, $|q| = |k| = 0.7$, orthogonal", fontsize=10)


def _variance(axes: Any, result: dict[str, Any]) -> None:
    """Noise of an energy difference over the number of directions."""
    for color, kernel in zip(COLORS, ("exp", "cosh"), strict=False):
        rows = [row for row in result["variance"] if row["kernel"] == kernel]
        nums = [row["directions"] for row in rows]
        axes.loglog(
            nums,
            [row["std_measured"] for row in rows],
            "o",
            color=color,
            label=f"{kernel}, measured",
        )
        axes.loglog(nums, [row["std"] for row in rows], color=color, label=f"{kernel}, formula")
    mean = result["variance"][0]["mean"]
    axes.axhline(mean, color=GRAY, linestyle="--", label=f"expectation {mean:.3f}")
    _plain_ticks(axes, (16, 64, 256), (0.2, 0.5, 1.0, 1.5))
    axes.set_xlabel("directions m")
    axes.set_ylabel("standard deviation")
    axes.set_title("Energy of one flip (N = 6, 5 patterns)", fontsize=10)


def _read(axes: Any, result: dict[str, Any]) -> None:
    """Error of a read over the norm of keys and queries."""
    widths = sorted({row["width"] for row in result["read"]})
    for color, width in zip((GRAY, *COLORS), widths, strict=False):
        rows = [row for row in result["read"] if row["width"] == width]
        axes.errorbar(
            [row["norm"] for row in rows],
            [row["error"] for row in rows],
            yerr=[row["deviation"] for row in rows],
            color=color,
            linestyle="--" if width == 0 else "-",
            marker="o",
            markersize=3,
            label="moving average (keys ignored)" if width == 0 else f"r = {width}",
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("norm of keys and queries")
    axes.set_ylabel("relative error")
    axes.set_title("Read against exact discounted attention", fontsize=10)


def _streaming(axes: Any, result: dict[str, Any]) -> None:
    """Difference of the two forms over time."""
    streaming = result["streaming"]
    for color, tau, gap in zip(COLORS, streaming["taus"], streaming["gap"], strict=False):
        # An exact agreement has no logarithm.
        axes.semilogy(np.maximum(gap, 1e-9), color=color, linewidth=1, label=f"tau = {tau}")
    axes.axhline(
        float(np.finfo(np.float32).eps), color="black", linestyle=":", label="float32 rounding"
    )
    axes.set_ylim(1e-9, 1e-5)
    axes.set_xlabel("patterns written")
    axes.set_ylabel("difference / largest value")
    axes.set_title("Streaming memory against masked batch form", fontsize=10)


def _flips(axes: Any, result: dict[str, Any]) -> None:
    """How often one draw of the features judges a flip rightly."""
    rows = result["limits"]["flips"]
    widths = sorted({row["width"] for row in rows})
    first = [row for row in rows if row["width"] == widths[0]]
    strengths = [row["strength"] for row in first]
    axes.semilogx(
        strengths, [row["exact"] for row in first], "o-", color="black", label="exact energy"
    )
    for color, width in zip(COLORS, widths, strict=False):
        shares = [row["compact"] for row in rows if row["width"] == width]
        axes.semilogx(strengths, shares, "o-", color=color, label=f"r = {width}")
    axes.axhline(0.5, color=GRAY, linestyle=":", label="guessing")
    _plain_ticks(axes, strengths, None)
    axes.set_ylim(0.15, 1.02)
    axes.set_xlabel(r"strength $\beta N$")
    axes.set_ylabel("share of flips judged rightly")
    axes.set_title("Four stored patterns (N = 16)", fontsize=10)


def _retrieval(axes: Any, result: dict[str, Any]) -> None:
    """Random patterns in the exact memory."""
    limits = result["limits"]
    axes.plot(
        [row["load"] for row in limits["retrieval"]],
        [row["error"] for row in limits["retrieval"]],
        "o-",
        color=COLORS[0],
        label="exact energy, N = 24",
    )
    axes.axvline(
        limits["retrieval_limit"],
        color=GRAY,
        linestyle="--",
        label=f"limit, N large: {limits['retrieval_limit']:.3f}",
    )
    axes.set_xlabel(r"load $\alpha$: $e^{\alpha N} + 1$ random patterns")
    axes.set_ylabel("wrong bits after one update")
    axes.set_title("Retrieval from 10 % flipped bits", fontsize=10)


def _plain_ticks(axes: Any, x: Any, y: Any) -> None:
    """Numbers instead of powers of ten on logarithmic axes."""
    for axis, ticks in ((axes.xaxis, x), (axes.yaxis, y)):
        if ticks is not None:
            axis.set_major_locator(_fixed(ticks))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_locator(_fixed(()))


def _fixed(ticks: Any) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(ticks)


FIGURES: dict[str, tuple[Panel, ...]] = {
    "storage": (_crowded, _price),
    "noise": (_kernel, _variance),
    "recall": (_read, _streaming),
    "limits": (_flips, _retrieval),
}
LEGENDS: dict[Panel, str] = {_flips: "lower center", _retrieval: "upper center"}
"""Where a legend would otherwise lie on a line."""
