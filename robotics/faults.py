# SPDX-License-Identifier: Apache-2.0
"""What is not finite in a chunk of training, and where it began.

Two questions with two prices. *Is anything wrong?* is asked once a chunk about the state that came
out (:func:`health`), because what is not finite stays so in parameters, statistics and simulators.
*Where did it begin?* is asked only after a bad answer: the algorithm's ``locate`` does the chunk
once more and looks at every step and every update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

Fault = Int[Array, " 5"]
"""``[part, round, step, env, leaf]``, all counted from 0, -1 where it does not apply.

The part is a place in :data:`PARTS` (-1: nothing is wrong), the round a rollout or a generation of
the chunk, the step an env step or an update in it, the leaf an array of the part.
"""

PARTS = ("environment", "loss", "gradient", "parameters")
ENVIRONMENT, LOSS, GRADIENT, PARAMETERS = range(len(PARTS))
HUGE = 1e8  # float32 numbers are 8 apart there: no usual step would change such a parameter again
_NOT_TRAINING = ("metrics",)  # of an environment, for monitoring alone


class Found(NamedTuple):
    """A fault in words.

    Attributes:
      term: what is not finite, such as ``"reward"`` or ``"gradient policy/layer_0/kernel"``.
      where: a phrase, such as ``"of environment 3 at step 5 of rollout 0 of the chunk"``.
      env: which environment, ``None`` where it is not one of them.
      step: env step or update in its round, ``None`` if unknown.
      round: rollout or generation of the chunk, ``None`` if unknown.
    """

    term: str
    where: str
    env: int | None = None
    step: int | None = None
    round: int | None = None

    @property
    def may_be_environment(self) -> bool:
        """Whether it began, or may have begun, in an environment."""
        return self.env is not None or self.round is None


def none() -> Fault:
    """Nothing is wrong."""
    return jnp.full(5, -1, jnp.int32)


def _bad(leaf: Array, reference: Array | None, limit: float) -> Bool[Array, "..."]:
    """Entries that are not finite, or beyond the limit; not where the reference is not finite."""
    limit = min(limit, float(jnp.finfo(leaf.dtype).max))  # a half type could not hold it
    found = ~(jnp.abs(leaf) <= limit)  # this way round NaN is found too
    return found if reference is None else found & jnp.isfinite(reference)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)  # neither whole numbers nor keys


def bad_leaf(
    tree: PyTree, reference: PyTree | None = None, axes: int = 0, huge: bool = False
) -> Int[Array, "..."]:
    """The first leaf with an entry that is not finite, -1 where there is none.

    Args:
      tree: arrays whose first ``axes`` axes agree.
      reference: the same tree at a time when it was well; what is not finite there is meant so,
        as an unreached bound may be.
      axes: leading axes to keep, such as environments.
      huge: also find what is beyond :data:`HUGE`.

    Example:
      >>> int(bad_leaf({"a": jnp.zeros(2), "b": jnp.array([0.0, jnp.nan])}))
      1
    """
    leaves = jax.tree.leaves(tree)
    before = [None] * len(leaves) if reference is None else jax.tree.leaves(reference)
    limit = HUGE if huge else float(jnp.finfo(jnp.float32).max)
    index, flags = [], []
    for i, (leaf, old) in enumerate(zip(leaves, before, strict=True)):
        if _is_float(leaf) and leaf.size:
            bad = _bad(leaf, old, limit)
            index.append(i)
            flags.append(jnp.any(bad, axis=tuple(range(axes, bad.ndim))))
    stacked = jnp.stack(flags)
    first = jnp.asarray(index, jnp.int32)[jnp.argmax(stacked, axis=0)]
    return jnp.where(jnp.any(stacked, axis=0), first, -1)


def leaf_names(tree: PyTree) -> list[str]:
    """Paths of the leaves, in the order that :func:`bad_leaf` counts them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def training_part(state: PyTree) -> PyTree:
    """An environment's state without what is there for monitoring alone."""
    return state.replace(metrics={}) if hasattr(state, "metrics") else state


def health(state: PyTree, before: PyTree, metrics: Mapping[str, Array]) -> Int[Array, ""]:
    """Whether a chunk of one seed went well; runs on the device, once a chunk.

    Args:
      state: the training state after the chunk.
      before: the one before it.
      metrics: of the chunk; only those under ``training/`` must be finite, telemetry may be
        undefined where training is well.

    Returns:
      -1, or a place in :func:`health_names`.
    """
    trained = {name: value for name, value in metrics.items() if name.startswith("training/")}
    trees = (
        (_without_env(state), _without_env(before), False),
        (state.params, None, True),
        (training_part(getattr(state, "env_state", None)), training_part(_env(before)), False),
        (trained, None, False),
    )
    found, offset = jnp.asarray(-1, jnp.int32), 0
    for tree, reference, huge in trees:
        if any(_is_float(leaf) and leaf.size for leaf in jax.tree.leaves(tree)):
            code = bad_leaf(tree, reference, huge=huge)
            found = jnp.where((found < 0) & (code >= 0), code + offset, found)
        offset += len(jax.tree.leaves(tree))
    return found


def health_names(state: PyTree, metrics: Mapping[str, Any]) -> list[str]:
    """What the codes of :func:`health` mean."""
    names = leaf_names(_without_env(state))
    names += [f"params/{name}" for name in leaf_names(state.params)]
    names += [f"env_state/{name}" for name in leaf_names(training_part(_env(state)))]
    return names + sorted(name for name in metrics if name.startswith("training/"))


def _env(state: PyTree) -> PyTree:
    return getattr(state, "env_state", None)


def _without_env(state: PyTree) -> PyTree:
    """A training state without its environments, and without the key, which is no number."""
    return state._replace(env_state=None) if hasattr(state, "env_state") else state


def earliest(part: int, codes: Int[Array, "steps envs"]) -> Fault:
    """The first fault of a round among the codes of :func:`bad_leaf`, in the order of time."""
    flat = codes.reshape(-1)
    first = jnp.argmax(flat >= 0)
    step, env = jnp.divmod(first, codes.shape[1])
    fault = jnp.stack([jnp.asarray(part), jnp.asarray(0), step, env, flat[first]])
    return jnp.where(flat[first] >= 0, fault.astype(jnp.int32), none())


def of_update(part: int, code: Int[Array, ""], step: Array | int = 0) -> Fault:
    """A fault that is not of one environment."""
    parts = (part, 0, step, -1, code)
    fault = jnp.stack([jnp.asarray(value, jnp.int32) for value in parts])
    return jnp.where(code >= 0, fault, none())


def first_of(*candidates: Fault) -> Fault:
    """The first of these that is a fault."""
    found = none()
    for fault in candidates:
        found = jnp.where(found[0] >= 0, found, fault)
    return found


def first_row(table: Int[Array, "rows 5"], column: int) -> Fault:
    """The first row that is a fault, with its number written to ``column`` (1 round, 2 step)."""
    row = jnp.argmax(table[:, 0] >= 0)
    fault = table[row]
    return jnp.where(fault[0] >= 0, fault.at[column].set(row.astype(jnp.int32)), none())


def in_update(scalars: Mapping[str, Array], grads: PyTree | None, params: PyTree) -> Fault:
    """What is wrong with one update: its loss, its gradient, or the parameters after it.

    Args:
      scalars: loss and its parts.
      grads: its gradient, ``None`` if it comes from none.
      params: after the update.
    """
    return first_of(
        of_update(LOSS, bad_leaf(dict(scalars))),
        none() if grads is None else of_update(GRADIENT, bad_leaf(grads)),
        of_update(PARAMETERS, bad_leaf(params, huge=True)),
    )


def describe(fault: np.ndarray, names: Mapping[str, list[str]], rounds: str) -> Found | None:
    """A fault in words; ``None`` if it is none.

    Args:
      fault: on the host.
      names: of the leaves, by part.
      rounds: what a round of the chunk is, such as ``"rollout"``.

    Example:
      >>> names = {"environment": ["physics/qpos", "obs", "reward"]}
      >>> describe(np.array([0, 1, 5, 3, 2]), names, "rollout").where
      'of environment 3 at env step 5 of rollout 1 of the chunk'
    """
    part, number, step, env, leaf = (int(value) for value in fault)
    if part < 0:
        return None
    term = _term(part, names[PARTS[part]][leaf])
    where = f"of {rounds} {number} of the chunk"
    if part == ENVIRONMENT:
        return Found(term, f"of environment {env} at env step {step} {where}", env, step, number)
    return Found(term, f"at update {step} {where}", None, step, number)


def _term(part: int, name: str) -> str:
    """What users call a leaf."""
    if part == ENVIRONMENT:
        known = {
            "obs": "observation",
            "info/final_obs": "observation",
            "info/privileged_obs": "privileged observation",
            "info/final_privileged_obs": "privileged observation",
            "reward": "reward",
        }
        return known.get(name, f"env state {name}")
    return name if part == LOSS and name == "loss" else f"{PARTS[part]} {name}"


def scaled(
    optimizer: optax.GradientTransformation, step_scale: Float[Array, ""] | float
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its updates times ``step_scale``, which may be traced; 1.0 adds nothing.

    Its state is that of the optimizer alone, so that checkpoints do not change.
    """
    inner = optax.with_extra_args_support(optimizer)
    if isinstance(step_scale, float) and step_scale == 1.0:
        return inner

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extras: Any
    ) -> tuple[PyTree, PyTree]:
        updates, state = inner.update(updates, state, params, **extras)
        scale = jnp.asarray(step_scale)
        return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
