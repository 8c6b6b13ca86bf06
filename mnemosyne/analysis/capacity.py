# SPDX-License-Identifier: Apache-2.0
"""How many patterns the compact associative memory can tell apart: theory, checked by numbers.

Patterns ``xi`` and states ``sigma`` are sign vectors of length ``N``. The exact memory has the
energy ``E(sigma) = -sum_mu exp(beta sigma . xi_mu)`` (Demircigil et al. 2017); the compact one of
Mnemosyne (Jain et al. 2023) replaces the exponential by random features, ``-phi(sigma) . M`` with
``M = sum_mu phi(xi_mu)``, whose expectation is ``E``. Everything is NumPy in double precision,
except the features, which are those of :mod:`mnemosyne.kernels`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnemosyne import kernels

KernelName = Literal["exp", "cosh"]

CODES = ((16, 0.4, 0.1), (24, 0.35, 0.12), (32, 0.3, 0.1), (48, 0.3, 0.1))
"""Length, separation and radius (both as fractions of the length) of the codes that are tried."""
CROWDED = (200, 0.1, 0.045)
"""The same of the arrangement that refutes the bound with exponent ``tau - rho``."""


def storage_bound(dim: int, separation: float, radius: float, beta: float = 1.0) -> float:
    """Patterns that the storage theorem allows.

    ``exp(2 beta N (tau - 2 rho)) (1 - exp(-2 beta)) / (2 exp(2 beta))``: with at most so many
    patterns, pairwise ``tau N`` or more bits apart, a flip of one bit of any state within ``rho N``
    bits of a pattern raises the exact energy if it leads away from that pattern, and lowers it if
    it leads closer.

    Args:
      dim: ``N``.
      separation: ``tau``, in (0, 1].
      radius: ``rho``, in (0, tau / 2).
      beta: inverse temperature; 1 in the theorem.

    Example:
      >>> round(storage_bound(200, 0.1, 0.045), 2)
      3.19
    """
    margin = 2.0 * beta * dim * (separation - 2.0 * radius)
    return math.exp(margin) * -math.expm1(-2.0 * beta) / (2.0 * math.exp(2.0 * beta))


def sharp_storage_bound(dim: int, separation: float, radius: float, beta: float = 1.0) -> float:
    """The number that cannot be improved, ``1 + exp(-2 beta) exp(2 beta N (tau - 2 rho))``.

    Fewer patterns are safe; :func:`crowded_energy_change` turns negative exactly here.
    """
    return 1.0 + math.exp(2.0 * beta * (dim * (separation - 2.0 * radius) - 1.0))


def flip_changes(
    state: Float[np.ndarray, " N"], patterns: Float[np.ndarray, "M N"], beta: float = 1.0
) -> Float[np.ndarray, " N"]:
    """What a flip of each bit of ``state`` adds to the exact energy."""
    overlaps = patterns @ state
    flipped = overlaps[:, None] - 2.0 * patterns * state
    return np.sum(np.exp(beta * overlaps)[:, None] - np.exp(beta * flipped), axis=0)


def random_code(
    rng: np.random.Generator, num: int, dim: int, distance: float, tries: int = 4000
) -> Float[np.ndarray, "code N"]:
    """Up to ``num`` random sign vectors that differ pairwise in at least ``distance`` bits."""
    code = np.empty((0, dim))
    for candidate in rng.choice([-1.0, 1.0], (tries, dim)):
        if np.all(0.5 * (dim - code @ candidate) >= distance):
            code = np.vstack([code, candidate])
        if len(code) == num:
            break
    return code


def storage_violations(
    rng: np.random.Generator, dim: int, separation: float, radius: float, states: int = 100
) -> dict[str, Any]:
    """Counts flips that contradict the storage theorem, on one random code within its bound.

    Returns:
      ``patterns``, ``bound``, ``flips`` tried and ``violations``.
    """
    bound = storage_bound(dim, separation, radius)
    code = random_code(rng, min(300, int(bound)), dim, separation * dim)
    violations = 0
    for _ in range(states):
        pattern = code[rng.integers(len(code))]
        state = pattern.copy()
        state[rng.permutation(dim)[: rng.integers(int(radius * dim) + 1)]] *= -1.0
        leads_away = state == pattern
        violations += int(np.sum((flip_changes(state, code) > 0) != leads_away))
    return {
        "N": dim,
        "separation": separation,
        "radius": radius,
        "patterns": len(code),
        "bound": bound,
        "flips": states * dim,
        "violations": violations,
    }


def crowded_energy_change(num_patterns: int) -> float:
    """Energy added by a flip that leads away from the nearest pattern, in the worst arrangement.

    ``N = 200``; the state is all ones, the nearest pattern has 9 flips, every other one has 11, one
    of which all of them share. Distances are 20 bits or more, so ``tau = 0.1`` and ``rho = 0.045``.
    That shared bit is flipped.

    Args:
      num_patterns: between 1 and 20.

    Returns:
      The change in units of ``exp(180)``; negative contradicts what the theorem promises.
    """
    if not 1 <= num_patterns <= 20:
        raise ValueError(f"num_patterns must be between 1 and 20, got {num_patterns}.")
    dim = CROWDED[0]
    patterns = np.ones((num_patterns, dim))
    patterns[0, 1:10] = -1.0
    for index in range(1, num_patterns):
        patterns[index, [0, *range(10 * index, 10 * index + 10)]] = -1.0
    overlaps = patterns.sum(axis=1)
    return float(np.sum(np.exp(overlaps - 180.0) - np.exp(overlaps - 2.0 * patterns[:, 0] - 180.0)))


def compact_flip_moments(
    state: Float[np.ndarray, " N"],
    flipped: Float[np.ndarray, " N"],
    patterns: Float[np.ndarray, "M N"],
    num_directions: int,
    kernel: KernelName,
) -> tuple[float, float]:
    """Mean and variance of what a flip adds to the compact energy, in closed form.

    With ``n(z) = exp(|z|^2 / 2)``, ``S(a, b) = n(a + b)`` for exp features and
    ``(n(a + b) + n(a - b)) / 2`` for cosh features, ``s`` and ``s'`` the two states::

        m Var = e^(-|s|^2 - |xi|^2) sum_{mu, nu} [ S(s + mu, s + nu) + S(s' + mu, s' + nu)
                - S(s + mu, s' + nu) - S(s' + mu, s + nu) ] - (mean)^2

    Args:
      state: before the flip; any real numbers.
      flipped: after it, of the same norm.
      patterns: all of one norm.
      num_directions: ``m``, independent standard normal ones; cosh uses each of them twice.
      kernel: which features.
    """
    mean = float(np.sum(np.exp(patterns @ state) - np.exp(patterns @ flipped)))
    before, after = state + patterns, flipped + patterns

    def total(a: Float[np.ndarray, "M N"], b: Float[np.ndarray, "M N"]) -> float:
        plus = _bell(a[:, None] + b)
        return float(np.sum(plus if kernel == "exp" else 0.5 * (plus + _bell(a[:, None] - b))))

    spread = total(before, before) + total(after, after) - 2.0 * total(before, after)
    shrink = math.exp(-float(state @ state + patterns[0] @ patterns[0]))
    return mean, (shrink * spread - mean**2) / num_directions


def _bell(z: Float[np.ndarray, "*n N"]) -> Float[np.ndarray, "*n"]:
    return np.exp(0.5 * np.sum(np.square(z), axis=-1))


def compact_flip_samples(
    rng: np.random.Generator,
    state: Float[np.ndarray, " N"],
    flipped: Float[np.ndarray, "flips N"],
    patterns: Float[np.ndarray, "M N"],
    num_directions: int,
    kernel: KernelName,
    draws: int,
) -> Float[np.ndarray, "draws flips"]:
    """The same quantity measured: what each flip adds to the compact energy, a row a draw."""
    shape = (draws, num_directions, state.size)
    directions = rng.standard_normal(shape, np.float32)
    points = jnp.asarray(np.vstack([state[None], flipped, patterns]), jnp.float32)
    phi = np.asarray(_features(kernel, points, directions), np.float64)
    flips = len(flipped)
    stored = phi[:, 1 + flips :].sum(axis=1)
    energy = -np.einsum("dpr,dr->dp", phi[:, : 1 + flips], stored)
    return energy[:, 1:] - energy[:, :1]


@functools.partial(jax.jit, static_argnums=0)
def _features(
    kernel: KernelName, points: Float[Array, "points N"], directions: Any
) -> Float[Array, "draws points r"]:
    return jax.vmap(kernels.FEATURE_MAPS[kernel], in_axes=(None, 0))(points, directions)


def correct_flips(
    seed: int,
    strength: float,
    num_features: int,
    num_patterns: int = 4,
    dim: int = 16,
    codes: int = 20,
    draws: int = 10,
) -> tuple[float, float]:
    """Share of single-bit flips of stored patterns that raise the energy, as they should.

    Args:
      seed: of the codes, which differ in half of their bits or more, and of the directions.
      strength: ``beta N``.
      num_features: ``r`` of the cosh features.
      num_patterns: stored ones.
      dim: ``N``.
      codes: sets of patterns.
      draws: of the directions, for each set.

    Returns:
      The shares of the exact and of the compact energy; guessing gives 0.5.
    """
    rng, rng_code = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    root, exact, compact = math.sqrt(strength / dim), [], []
    for _ in range(codes):
        code = random_code(rng_code, num_patterns, dim, dim / 2)
        exact.append(np.mean(flip_changes(code[0], code, strength / dim) > 0))
        flipped = root * np.where(np.eye(dim) > 0, -code[0], code[0])
        changes = compact_flip_samples(
            rng, root * code[0], flipped, root * code, num_features // 2, "cosh", draws
        )
        compact.append(np.mean(changes > 0))
    return float(np.mean(exact)), float(np.mean(compact))


def required_features(strength: float) -> float:
    """Features at which the energy of a stored pattern has a relative deviation of 1.

    ``r = e^s - 2 + e^-s`` with ``s = 4 beta N``, because ``q = k`` of squared norm ``beta N`` gives
    ``|q + k|^2 = 4 beta N`` (see :func:`mnemosyne.kernels.relative_std`).

    Example:
      >>> [round(required_features(x)) for x in (1.0, 2.0)]
      [53, 2979]
    """
    return 4.0 * math.sinh(2.0 * strength) ** 2


def retrieval_error(
    rng: np.random.Generator, load: float, dim: int = 24, radius: float = 0.1, trials: int = 60
) -> float:
    """Share of wrong bits after one update of all bits, from ``radius * dim`` flips of a pattern.

    Demircigil et al. (2017): with ``exp(load * dim) + 1`` random patterns retrieval succeeds for
    long patterns if ``load < retrieval_limit(radius)``.

    Args:
      rng: draws patterns and flips.
      load: ``alpha``.
      dim: ``N``.
      radius: ``rho``.
      trials: states to retrieve from.
    """
    num = int(math.exp(load * dim)) + 1
    patterns = rng.choice([-1.0, 1.0], (num, dim))
    wrong = 0
    for index in rng.integers(num, size=trials):
        state = patterns[index].copy()
        state[rng.permutation(dim)[: round(radius * dim)]] *= -1.0
        # A bit becomes what lowers the energy, all others held.
        updated = np.where(flip_changes(state, patterns) > 0, state, -state)
        wrong += int(np.sum(updated != patterns[index]))
    return wrong / (trials * dim)


def retrieval_limit(radius: float) -> float:
    """``I(1 - 2 rho) / 2`` with ``I(x) = ((1 + x) log(1 + x) + (1 - x) log(1 - x)) / 2``.

    Args:
      radius: ``rho``, in [0, 1 / 2].

    Example:
      >>> round(retrieval_limit(0.1), 3)
      0.184
    """
    x = 1.0 - 2.0 * radius
    terms = [(1.0 + s * x) * math.log(1.0 + s * x) if 1.0 + s * x > 0 else 0.0 for s in (1, -1)]
    return sum(terms) / 4.0
