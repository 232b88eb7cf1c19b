"""How long work still takes, from how far it was when."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_RECENT = 0.25
"""Share of the time worked so far whose speed is trusted most: what a machine does now says more of
what comes than what it did at first."""
_WEIGHT = 0.75
"""Of that speed; the rest is the mean over all of it, so that a pause is not taken for the end."""
_KNOWN = 0.05
"""Share of the work that has to be done before its speed says anything."""
_MARKS = 64

Mark = tuple[float, float]
"""Seconds, and the share that was done by then."""


def noted(marks: list[Mark], seconds: float, done: float) -> list[Mark]:
    """The marks with one more, as many as are needed to know the speed at any time.

    Args:
        marks: Of earlier times, in order.
        seconds: Now.
        done: The share that is done.
    """
    # As many again would make every report of a long job longer, and its speed no better known.
    if marks and done - marks[-1][1] < 1 / _MARKS:
        return marks
    return [*marks, (seconds, done)]


def seconds_left(marks: Sequence[Mark], now: float, done: float) -> float | None:
    """Seconds that work still takes, if it goes on as it has of late; None where nothing tells.

    Args:
        marks: How far it was when, in order; the first is where the work began, after everything
            that had to be loaded.
        now: On the clock of the marks.
        done: The share that is done by now.
    """
    if not marks:
        return None
    began, first = marks[0]
    worked, gained = now - began, done - first
    if gained < _KNOWN or worked <= 0:
        return None
    since = now - _RECENT * worked
    recent = (done - _at(marks, since)) / (now - since)
    speed = _WEIGHT * recent + (1 - _WEIGHT) * gained / worked
    return (1 - done) / speed


def _at(marks: Sequence[Mark], seconds: float) -> float:
    """The share that was done at a time, by a straight line between marks."""
    for (before, low), (after, high) in pairwise(marks):
        if before <= seconds <= after and after > before:
            return low + (high - low) * (seconds - before) / (after - before)
    return marks[-1][1]
