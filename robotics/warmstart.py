# SPDX-License-Identifier: Apache-2.0
"""What a new run takes over from an earlier one: policy, value network, normalizer, memory.

Arrays are taken over one by one, where their role (the path in the training state) and their shape
agree; everything else begins as in any new run. Heads, which say what to do and not what to look
at, are of use in the same environment only. The source is read from its checkpoint alone, so
neither its environment nor its optimizer have to be at hand. What is in an optimizer's memory only
its owner knows: it is passed on to a function ``warm_start(old_state, new_params) -> state``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from robotics import run_folder
from robotics.checkpoint import Checkpointer

Part = Literal["policy", "value", "heads", "normalizer", "memory"]
PARTS: tuple[Part, ...] = ("policy", "value", "heads", "normalizer", "memory")
"""``heads`` are the last layers of policy and value network, where these are taken over, and the
spread of actions."""
WarmStart = Callable[[Any, PyTree], Any]
"""``warm_start(old_state, new_params)``: a first state of the new optimizer."""

NORMALIZER_SHARE = 0.1
"""Share of the new run's budget that old statistics weigh at most: a new world has its say soon."""
_OPTIMIZER = "opt_state/"
_PRIVILEGED = "normalizer/privileged/"
_OF_VALUE = ("normalizer/return/", _PRIVILEGED)  # statistics without which values mean nothing
_LAYER = re.compile(r"(.*/)layer_(\d+)/")


class Source(NamedTuple):
    """An earlier run, as its newest checkpoint has it.

    Attributes:
      folder: the run's.
      identity: its settings.
      env_steps: of one seed.
      seed: position of the best seed of its last evaluation.
      leaves: arrays of all seeds (a leading axis) by their path in the training state.
    """

    folder: Path
    identity: dict[str, Any]
    env_steps: int
    seed: int
    leaves: dict[str, np.ndarray]

    def of(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays of the best seed whose paths begin like this."""
        mine = {p: leaf for p, leaf in self.leaves.items() if p.startswith(prefix)}
        return {path: np.asarray(leaf[self.seed]) for path, leaf in mine.items()}

    def opt_leaves(self) -> dict[str, np.ndarray]:
        """The optimizer's state of all seeds, by its own paths."""
        mine = {p: leaf for p, leaf in self.leaves.items() if p.startswith(_OPTIMIZER)}
        return {path.removeprefix(_OPTIMIZER): leaf for path, leaf in mine.items()}


class Plan(NamedTuple):
    """What a new run takes over.

    Attributes:
      leaves: arrays by their path in the training state of one seed.
      lines: the same in words, by part.
      taken: parts of which there is anything.
    """

    leaves: dict[str, np.ndarray]
    lines: dict[str, str]
    taken: tuple[str, ...]


def read_source(folder: Path) -> Source:
    """Reads an earlier run.

    Args:
      folder: a run folder, or one with runs below it: then the newest.

    Raises:
      ValueError: if there is no run, it has no checkpoint or a damaged one, or no seed of it is
        finite.
    """
    folder = run_folder.find_run(folder)
    checkpointer = Checkpointer(folder / run_folder.CHECKPOINTS)
    if not checkpointer.steps():
        raise ValueError(f"{folder} has no checkpoint yet, so there is nothing to start from")
    leaves, record = checkpointer.leaves()
    history = record["host"].get("history") or [{"return": [0.0]}]
    seed = _best(np.asarray(history[-1]["return"], np.float64), leaves)
    if seed is None:
        raise ValueError(f"no seed of {folder} has finite parameters to start from")
    return Source(folder, record["identity"], checkpointer.steps()[-1], seed, leaves)


def _best(returns: np.ndarray, leaves: Mapping[str, np.ndarray]) -> int | None:
    """The seed with the highest return among those whose parameters are numbers."""
    params = [leaf for path, leaf in leaves.items() if path.startswith("params/")]
    finite = np.all([np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in params], 0)
    known = np.where(np.isfinite(returns), returns, -np.inf) if len(returns) == len(finite) else 0.0
    order = np.where(finite, known, -np.inf)
    return int(np.argmax(order)) if finite[np.argmax(order)] else None


def default_parts(same_env: bool) -> tuple[Part, ...]:
    """What a run takes over unless it is told: heads only from a run in the same environment.

    A policy that begins sure of another task's actions explores too little to unlearn them
    (``docs/decisions.md``, "Warm starts").
    """
    return PARTS if same_env else tuple(part for part in PARTS if part != "heads")


def head_paths(paths: Sequence[str]) -> set[str]:
    """Of the paths of parameters, those of the last layer of each network, and ``log_std``.

    Example:
      >>> sorted(head_paths(["params/mlp/layer_0/bias", "params/mlp/layer_1/bias"]))
      ['params/mlp/layer_1/bias']
    """
    layers = [match for path in paths if (match := _LAYER.match(path))]
    last: dict[str, int] = {}
    for layer in layers:
        last[layer[1]] = max(int(layer[2]), last.get(layer[1], 0))
    heads = {layer.string for layer in layers if int(layer[2]) == last[layer[1]]}
    return heads | {path for path in paths if path.endswith("/log_std")}


def prefixes(part: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Where a part lies in a training state; of evolution strategies, all parameters are policy."""
    apart = any(path.startswith("params/policy/") for path in paths)
    # The value network speaks in units of the rewards' scale and reads what only it is shown, so
    # the three belong together.
    known: dict[str, tuple[str, ...]] = {
        "policy": ("params/policy/" if apart else "params/",),
        "value": ("params/value/", *_OF_VALUE),
        "normalizer": ("normalizer/observation/",),
    }
    return known.get(part, ())


def make_plan(source: Source, template: PyTree, parts: Sequence[str], budget: int) -> Plan:
    """Decides what is taken over.

    Args:
      source: the earlier run.
      template: training state of one seed of the new run; shapes are enough.
      parts: of :data:`PARTS`; the memory is no concern of this function. Without ``"heads"`` those
        of policy and value network begin anew.
      budget: of the new run, env steps.
    """
    wanted = shapes_by_path(template)
    leaves: dict[str, np.ndarray] = {}
    lines: dict[str, str] = {}
    taken: list[str] = []
    heads = {path for tree in (wanted, source.leaves) for path in head_paths(_parameters(tree))}
    left = set() if "heads" in parts else heads
    for part in (part for part in parts if part not in ("heads", "memory")):
        starts = prefixes(part, list(wanted))
        mine = {p: s for p, s in wanted.items() if p.startswith(starts) and p not in left}
        found, lines[part] = _take(part, source, mine)
        leaves |= found
        taken += [part] if found else []
    if "heads" in parts:
        fits = sorted(heads & set(leaves))
        lines["heads"] = (
            f"{len(fits)} of these arrays" if fits else "begin anew, none fits what is taken over"
        )
        taken += ["heads"] if fits else []
    for path in [path for path in leaves if path.startswith("normalizer/")]:
        if path.endswith("/count"):
            most = np.asarray(NORMALIZER_SHARE * budget, leaves[path].dtype)
            leaves[path] = np.minimum(leaves[path], most)
    return Plan(leaves, lines, tuple(taken))


def shapes_by_path(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}


def _parameters(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.startswith("params/")]


def _take(
    part: str, source: Source, wanted: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of one part that fit, and a line about them."""
    if not wanted:
        return {}, "this run has none"
    old = {path: leaf for path, leaf in source.of("").items() if path in wanted}
    fits = {path: leaf for path, leaf in old.items() if leaf.shape == wanted[path]}
    # Statistics are taken as a whole, and a value network only with the scale of its rewards.
    scales = {path for path in wanted if path.startswith("normalizer/")}
    theirs = {p for name in _OF_VALUE for p in source.of(name)} if part == "value" else scales
    apart = (scales - set(fits)) | (theirs - scales)
    if part != "policy" and apart:
        why = "rewards are normalized in one of the runs only" if part == "value" else "other sizes"
        if any(path.startswith(_PRIVILEGED) for path in apart):
            why = "it reads another privileged observation"
        return {}, f"begins anew, {why}"
    anew = [_difference(p, old.get(p), shape) for p, shape in wanted.items() if p not in fits]
    words = f"{len(fits)} of {len(wanted)} arrays taken over"
    return fits, words + (f", anew: {'; '.join(anew)}" if anew else "")


def _difference(path: str, old: np.ndarray | None, shape: tuple[int, ...]) -> str:
    """What is different about an array that is not taken over."""
    name = path.partition("/")[2].partition("/")[2] or path
    there = "none" if old is None else "x".join(map(str, old.shape)) or "a number"
    return f"{name} ({'x'.join(map(str, shape)) or 'a number'}, there {there})"


def transfer(
    state: PyTree, leaves: Mapping[str, Any], warm_start: Callable[[PyTree], Any] | None = None
) -> PyTree:
    """The training state of one seed with what it takes over; legal under ``vmap`` and ``jit``.

    Args:
      state: before its first update.
      leaves: of :func:`make_plan`.
      warm_start: gives the optimizer's first state for the new parameters; ``None`` keeps what the
        optimizer began with (states of optimizers do not depend on the values of parameters).
    """

    def replace(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(leaves[name], leaf.dtype) if name in leaves else leaf

    state = jax.tree_util.tree_map_with_path(replace, state)
    if warm_start is None:
        return state
    return state._replace(opt_state=warm_start(state.params))
