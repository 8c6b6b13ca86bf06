# SPDX-License-Identifier: Apache-2.0
"""The first theta of the policy recipe: a controller of the KL divergence, written into weights.

Matrices are seen in the eigenbasis of their gradients (:mod:`mnemosyne.eigenbasis`). The policy's
step is multiplied, before every update, by up to :data:`MAX_GAIN_CHANGE`, so that its KL divergence
from the policy that acted goes to a target, which is lower the noisier its gradients are. The value
network has a step of its own, which falls over the run and over the passes of a rollout. A network
of which the host says nothing is the one Adam that a search on M found best, annealed. The numbers
were chosen on M and V, see ``docs/decisions.md``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.readout import BETA1, BETA2, NESTEROV, PACE, STEP, TURN
from mnemosyne import MnemosyneConfig, features
from mnemosyne.learned import Theta

MAX_GAIN_CHANGE = 0.35
"""Of the policy's step in an update, as a logarithm."""
USUAL_ACTIONS = 3
"""Entries of an action, as on the hopper; also taken where the host does not say."""
NETWORK = MnemosyneConfig(
    polar=False,
    residual=False,
    adaptive=False,
    encoder=False,
    cross_token=False,
    eigenbasis=True,
    max_gain_change=MAX_GAIN_CHANGE,
)
"""Without what would be silent: on networks as small as policies, every part costs time."""


class Numbers(NamedTuple):
    """What the controller consists of; steps are logarithms relative to 1e-3.

    Attributes:
      policy: the policy's step at the start.
      value: the value network's.
      unknown: that of a network of which nothing is known.
      anneal: all but the policy's step shrink like ``(1 - progress)`` to this power.
      passes: by how much the value network's step falls from the first pass over a rollout to the
        last, as a logarithm.
      target: KL divergence that the policy is kept at, where it has :data:`USUAL_ACTIONS` and the
        ratio of its momentum to its gradients is exp(-1).
      actions: power of the number of action entries which the target follows.
      noise: power of that ratio which the target follows.
      slope: of the change of the step by the logarithm of divergence over target, as a fraction of
        the largest change.
      nesterov: weight of the fresh gradient in the value network's direction.
      largest: gain of the policy's step that is not exceeded, as a logarithm.
      lost: gain below which it also follows divergences that are next to nothing.
    """

    policy: float = 0.0
    value: float = 1.3
    unknown: float = 0.215
    anneal: float = 0.75
    passes: float = 0.4
    target: float = 0.012
    actions: float = 0.5
    noise: float = 1.0
    slope: float = 2.0
    nesterov: float = 0.25
    largest: float = 2.3
    lost: float = -4.0


_ONE, _ROLE, _PROGRESS, _EPOCH, _GAIN, _HIDDEN = range(6)
"""Coordinates of a token in the network: a constant, what is known of it, and hidden units."""
_CONSTANT = 30.0
"""So large beside the other coordinates that normalising a token is dividing by a constant."""
_GATE = 2.0
"""Closes a hidden unit, all of which are within 1."""


def controller(theta: Theta, numbers: Numbers = Numbers()) -> Theta:  # noqa: B008
    """Writes the controller into fresh meta-parameters.

    Args:
      theta: of :data:`NETWORK`; its directions are kept.
      numbers: what to write; they may be traced.
    """
    theta = jax.tree.map(jnp.zeros_like, theta) | {"directions": theta["directions"]}
    theta["memory"]["log_tau"] = jnp.log(jnp.asarray(NETWORK.taus))
    row = features.input_row
    inputs = {
        _ROLE: row("kl", 0),
        _PROGRESS: row("progress", 2),
        _EPOCH: row("epoch", 1),
        _GAIN: row("gain", 0),
    }
    for coordinate, source in inputs.items():
        theta["embed"] = theta["embed"].at[source, coordinate].set(1.0)
    theta["bias"] = theta["bias"].at[_ONE].set(_CONSTANT)
    scale = _CONSTANT / math.sqrt(theta["bias"].size)
    theta["ffn"], hidden = _hidden_units(theta["ffn"], scale, numbers)
    heads, skip = _steps(theta["heads"], theta["skip"], hidden, numbers)
    heads, skip = _feedback(heads, skip, hidden, numbers)
    heads = heads.at[_ONE].multiply(1.0 / _CONSTANT)
    return theta | {"heads": scale * heads, "skip": skip}


def _hidden_units(ffn: Any, scale: float, numbers: Numbers) -> tuple[Any, dict[str, int]]:
    """Rectified units of one coordinate each, open for tokens of one role only.

    The role is 1 for a policy, -1 for a value network, 0 for what is unknown.
    """
    units = {
        "is_value": ({_ROLE: -1.0}, 0.0),
        "annealed_policy": ({_PROGRESS: -1.0, _ROLE: _GATE}, -_GATE),
        "later_value": ({_EPOCH: 1.0, _ROLE: -_GATE}, -_GATE),
        "above_largest": ({_GAIN: 1.0}, -numbers.largest / 7.0),
        "lost": (
            {_GAIN: -1.0, _ROLE: _GATE, _ONE: (numbers.lost / 7.0 - _GATE) / _CONSTANT},
            0.0,
        ),
    }
    weights, bias, out = ffn["in"], ffn["bias"], ffn["out"]
    for unit, (sources, threshold) in enumerate(units.values()):
        for coordinate, weight in sources.items():
            weights = weights.at[coordinate, unit].set(scale * weight)
        bias = bias.at[unit].set(threshold)
        out = out.at[unit, _HIDDEN + unit].set(1.0)
    return {"in": weights, "bias": bias, "out": out}, {
        name: _HIDDEN + unit for unit, name in enumerate(units)
    }


def _steps(heads: Any, skip: Any, hidden: dict[str, int], n: Numbers) -> tuple[Any, Any]:
    """Step sizes of the three roles, the Nesterov weight and the second moment's decay."""
    told, progress = features.input_row("kl", 0), features.input_row("progress", 2)
    rise, half = n.policy - n.unknown, jnp.arctanh(n.nesterov) / 2.0
    heads = heads.at[_ONE, STEP].set(n.unknown).at[_ONE, NESTEROV].set(half)
    skip = skip.at[told, STEP].set(rise).at[told, NESTEROV].set(-half)
    heads = heads.at[hidden["is_value"], STEP].set(n.value - n.unknown + rise + n.passes / 2.0)
    heads = heads.at[hidden["later_value"], STEP].set(-n.passes)
    # log(1.01 - progress) is read in 4.7s. The policy's step, which the divergence decides, is
    # freed of it again.
    skip = skip.at[progress, STEP].set(4.7 * n.anneal)
    heads = heads.at[hidden["annealed_policy"], STEP].set(4.7 * n.anneal)
    # tanh(3) is the decay that is nearest to 0.999, 0 is 0.99.
    heads = heads.at[hidden["is_value"], BETA2].set(6.0)
    return heads, skip.at[told, BETA2].set(3.0)


def _feedback(heads: Any, skip: Any, hidden: dict[str, int], n: Numbers) -> tuple[Any, Any]:
    """Direction and pace of the change of the gain."""
    told, logarithm, size = (features.input_row("kl", index) for index in range(3))
    # log(kl / 0.01) is read in fives, the ratio of momentum to gradients in fours.
    skip = skip.at[told, TURN].set(n.slope * (jnp.log(n.target / 0.01) + n.noise))
    skip = skip.at[logarithm, TURN].set(-5.0 * n.slope)
    skip = skip.at[features.input_row("network", 1), TURN].set(4.0 * n.slope * n.noise)
    # The logarithm of the number of action entries is read in fives.
    present, entries = (features.input_row("action_size", index) for index in range(2))
    skip = skip.at[present, TURN].set(-n.slope * n.actions * math.log(USUAL_ACTIONS))
    skip = skip.at[entries, TURN].set(5.0 * n.slope * n.actions)
    heads = heads.at[hidden["above_largest"], TURN].set(-200.0)
    # Only policies, and not on the first update from a rollout: there the divergence is 0, which
    # is read as -1 and says nothing: the pace is one half at a divergence of 1e-4. But many updates
    # from one rollout end with tiny steps, and the next one has to begin with them: from below
    # ``lost`` any divergence counts, or the policy would stand still for the rest of the run.
    heads = heads.at[_ONE, PACE].set(-20.0)
    heads = heads.at[hidden["lost"], PACE].set(1e4)
    skip = skip.at[told, PACE].set(300.0)
    return heads, skip.at[logarithm, PACE].set(150.0).at[size, PACE].set(-150.0)


def readout_units(theta: Theta) -> Theta:
    """Units of what meta-training changes: what the controller consists of, and what it could use.

    A unit is about what halves or doubles a step, a target or the time that a moment reaches back;
    0 for all other weights.

    Args:
      theta: of :data:`NETWORK`.
    """
    units = jax.tree.map(jnp.zeros_like, theta)
    skip, heads = units["skip"], units["heads"]
    for (row, column), unit in _readout().items():
        skip = skip.at[row, column].set(unit)
    # The order is that of :func:`_hidden_units`, the scale that of :func:`controller`.
    scale = _CONSTANT / math.sqrt(theta["bias"].size)
    is_value, annealed_policy, later_value = range(_HIDDEN, _HIDDEN + 3)
    for row, column, unit in (
        (is_value, STEP, 0.7),
        (annealed_policy, STEP, 2.0),
        (later_value, STEP, 0.5),
        (is_value, BETA2, 2.0),
    ):
        heads = heads.at[row, column].set(scale * unit)
    return units | {"skip": skip, "heads": heads}


def _readout() -> dict[tuple[int, int], float]:
    """Unit by feature and control."""
    told, divergence = (features.input_row("kl", index) for index in (0, 1))
    times = [features.input_row("time", index) for index in range(4)]
    progress, log_left = (features.input_row("progress", index) for index in (1, 2))
    consistency = features.input_row("network", 1)
    found = {(row, STEP): 0.7 for row in (told, *times, progress)} | {(log_left, STEP): 2.0}
    found |= {(row, NESTEROV): 0.3 for row in (told, times[0])}
    found |= {(row, BETA1): 0.5 for row in (told, times[0])} | {(told, BETA2): 1.0}
    found |= {(row, TURN): 1.5 for row in (told, times[2], progress)}
    found |= {(divergence, TURN): 3.0, (consistency, TURN): 4.0}
    found[features.input_row("action_size", 1), TURN] = 5.0
    for name in ("value", "clip_fraction", "entropy", "explained_variance", "epoch"):
        found[features.input_row(name, 1), TURN] = 1.5
    return found
