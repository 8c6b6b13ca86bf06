# SPDX-License-Identifier: Apache-2.0
"""One-sentence errors that name the nearest valid value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def nearest(value: str, valid: Sequence[str]) -> str:
    """The entry of ``valid`` (not empty) that looks most like ``value``."""

    def likeness(candidate: str) -> float:
        return difflib.SequenceMatcher(None, value.lower(), candidate.lower()).ratio()

    return max(valid, key=likeness)


def unknown(kind: str, value: str, valid: Sequence[str], *, where: str = "") -> ValueError:
    """An error that says what is unknown and what was probably meant.

    Args:
      kind: what ``value`` should have been, such as ``"backend"``.
      value: what was given.
      valid: what would have been accepted.
      where: completes "Unknown backend 'sprng'", such as ``" for 'brax:ant'"``.
    """
    if not valid:
        return ValueError(f"Unknown {kind} {value!r}{where}; there is none to choose.")
    return ValueError(
        f"Unknown {kind} {value!r}{where}; the nearest valid one is {nearest(value, valid)!r}."
    )


def refuse(options: Iterable[str], valid: Sequence[str], name: str) -> None:
    """Raises ValueError if any option is left over, naming the nearest of the valid ones.

    Args:
      options: names that ``make`` was given and does not know.
      valid: names that it knows.
      name: the environment's name.
    """
    for option in options:
        raise unknown("option", option, valid, where=f" for {name!r}")


def check_episode_length(episode_length: object, name: str) -> int:
    """``episode_length`` if it is a positive whole number, else a ValueError."""
    if isinstance(episode_length, bool) or not isinstance(episode_length, int):
        raise ValueError(
            f"episode_length of {name!r} is {episode_length!r}; it must be a whole number of steps."
        )
    if episode_length < 1:
        raise ValueError(
            f"episode_length of {name!r} is {episode_length}; it must be at least 1 step."
        )
    return episode_length
