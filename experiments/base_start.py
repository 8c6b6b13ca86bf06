# SPDX-License-Identifier: Apache-2.0
"""Where the base recipe starts, and which of its weights it trains.

The start is what is known of optimizers by hand: orthogonalised momentum, annealing, and step sizes
that follow the turn of the path. All of it is a linear readout of the features, ``skip``, so
meta-training begins with that: evolution strategies over whole runs find 46 numbers within an
hour, and would not find thousands.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.readout import BETA1, NESTEROV, PACE, POLAR, STEP, TURN
from mnemosyne import features
from mnemosyne.learned import Theta


def write(theta: Theta, told_path: bool = True) -> Theta:
    """The start, written into fresh meta-parameters; without the path where none is told."""
    theta = orthogonal(anneal(theta))
    return adaptive(theta) if told_path else theta


def anneal(theta: Theta, power: float = 1.0) -> Theta:
    """Makes steps shrink like ``(1 - progress) ** power`` where ``progress`` is told.

    Its last feature is ``log(1.01 - progress) / 4.7``. The outer Adam would need hundreds of steps
    to move a weight so far.
    """
    skip = theta["skip"].at[features.input_row("progress", 2), STEP].add(4.7 * power)
    return theta | {"skip": skip}


def orthogonal(theta: Theta) -> Theta:
    """Makes matrices follow their orthogonalised momentum, at six times Adam's first step.

    With the annealing of :func:`anneal` this is what Muon does, tile by tile, but for the half of
    the fresh gradient that is added to the momentum. From Adam 1e-3 meta-training would have to
    find the way there first.
    """
    # The first time feature, t / (t + 3), is 1 after a few updates: it serves as a constant.
    constant = features.input_row("time", 0)
    skip = theta["skip"].at[constant, STEP].add(1.8).at[constant, NESTEROV].add(0.5)
    return theta | {"skip": skip.at[constant, POLAR].add(1.2)}


def adaptive(theta: Theta) -> Theta:
    """Makes all step sizes follow the turn of the path, and start from the size of the weights.

    An update changes the gain by up to a tenth, by less the longer a run lasts: in proportion to
    ``1 / (1 + t / 50)``. Up where the gradient points along the path, down where it points back;
    the threshold is a turn of +0.003, because a run pays for large first steps later.
    """
    turn, size = features.input_row("path", 0), features.NUM_TOKEN_FEATURES
    times = [features.input_row("time", index) for index in range(4)]
    skip = theta["skip"].at[turn, TURN].set(3.3).at[times[0], TURN].set(-0.1)
    for row, weight in zip(times[1:], (-1.0, -2.6, -3.0), strict=True):
        skip = skip.at[row, PACE].set(weight)
    # The first feature of the network is the size of its weights, in eights of a logarithm.
    return theta | {"skip": skip.at[size, STEP].set(8.0 * 0.7)}


# Rows of a token's own features.
_USUAL_SIZE, _RELATIVE_SIZE = 5, 6
_NUMBER, _FAN_IN, _IS_VECTOR = 12, 13, 14
_OWN_TURN, _OWN_STRAIGHTNESS = 17, 18


def readout_units(theta: Theta) -> Theta:
    """Units of the weights of the readout that are trained; 0 for all others.

    A unit is about what changes a run as much as half a unit of the logarithm of its step size: the
    gain adds up over updates, so what moves it counts more, and features that are small count less.
    """
    units = jax.tree.map(jnp.zeros_like, theta)
    table = units["skip"]
    for (row, column), unit in _readout().items():
        table = table.at[row, column].set(unit)
    return units | {"skip": table}


def _readout() -> dict[tuple[int, int], float]:
    """Unit by feature and control."""
    constant, *times = (features.input_row("time", index) for index in range(4))
    turn, straightness = (features.input_row("path", index) for index in range(2))
    progress, log_left = (features.input_row("progress", index) for index in (1, 2))
    trend = features.input_row("value", 2)
    size, consistency, _, agreement = (features.input_row("network", index) for index in range(4))
    found = {(constant, column): 1.0 for column in range(7)} | {(constant, TURN): 0.1}
    for time in times:
        found |= {(time, column): 1.0 for column in (STEP, BETA1, POLAR, PACE)}
        found[time, TURN] = 0.1
    found |= {(progress, column): 1.0 for column in (STEP, NESTEROV, BETA1)}
    found |= {(log_left, STEP): 3.0, (progress, TURN): 0.1}
    found |= {(turn, TURN): 3.0, (turn, STEP): 1.0, (_OWN_TURN, TURN): 2.0}
    found |= {(straightness, TURN): 0.3, (_OWN_STRAIGHTNESS, TURN): 0.3}
    found |= {(size, STEP): 5.0, (_USUAL_SIZE, STEP): 5.0, (_RELATIVE_SIZE, STEP): 3.0}
    found |= {(row, STEP): 1.0 for row in (_NUMBER, _FAN_IN, _IS_VECTOR)}
    found |= {(_NUMBER, POLAR): 1.0, (_FAN_IN, TURN): 0.1, (_IS_VECTOR, TURN): 0.1}
    found |= {(consistency, STEP): 2.0, (consistency, TURN): 0.2, (agreement, TURN): 0.3}
    return found | {(trend, STEP): 0.3, (trend, TURN): 0.1}
