"""How many examples would be learned or forgotten had no answer been right by luck.

An example whose answer the model does not know is right by chance now and then, so it seems to be
learned and forgotten from boundary to boundary. The model of guessing: at every boundary an example
is known, and answered rightly, or is not known, and answered rightly with probability 1/K, each
time anew. Observed paths are then a known linear mixture of true ones, which is inverted exactly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stagelens.effects.contrasts import mean_spread, share_interval
from stagelens.wording.numbers import count_text
from stagelens.wording.quantiles import t_quantile

from .answers import ENDS, KINDS, LOST, RIGHT, WRONG, Paths, ended, kind_of

_FAR = 4.0
"""Standard errors by which a number may be impossible by chance."""

_UNSEEN = 3.0
"""How many sources may have a path that none of those sampled had (95 %): J. A. Hanley and
A. Lippman-Hand, If nothing goes wrong, is everything all right?, JAMA 249, 1983."""

MISFIT = (
    "Nothing is taken out for guessing: answers to examples that the model does not know are not "
    "guessed anew at every boundary here, because that would make some of these numbers impossible."
)
"""What is said where the answers contradict the model of guessing."""


@dataclass(frozen=True)
class Counted:
    """How many examples took paths of one kind.

    Attributes:
        kind: Of the paths: one of :data:`~.answers.KINDS`, or of :data:`~.answers.ENDS`.
        count: As observed.
        corrected: Estimate of how many there would be had no answer been right by luck. Luck hides
            paths (what was right by luck before it was learned seems always right) as well as
            making them up, so it may be higher or lower than ``count``, and below zero where
            guessing alone would give more than was observed. The numbers of all kinds sum to the
            number of examples.
        low: Lower end of its interval (95 %), over how the examples, or their sources, were
            sampled; NaN where all share one source.
        high: Upper end.
        error: Standard error of ``corrected``; NaN where all share one source.
        total: How many examples there are of all kinds.
    """

    kind: str
    count: int
    corrected: float
    low: float
    high: float
    error: float
    total: int

    def shown(self) -> tuple[float, float, float]:
        """``corrected``, ``low`` and ``high``, as far as there can be so many examples."""
        least, most, own = 0.0, float(self.total), (self.corrected, self.low, self.high)
        return tuple(min(max(number, least), most) for number in own)  # type: ignore[return-value]

    def interval_text(self) -> str:
        """``3 to 12``, of what is shown."""
        _, low, high = self.shown()
        return "not known" if np.isnan(low) else f"{low:,.0f} to {high:,.0f}"


def fits(counted: Sequence[Counted]) -> bool:
    """Whether the answers can come from the model of guessing.

    Models often answer an example alike at several boundaries, rightly or wrongly, although they do
    not know it. The corrected numbers are then far below zero, or above the number of examples. Of
    one source alone, nothing says how far is far.

    Args:
        counted: From :func:`without_lucky_guesses`.
    """
    return not any(
        one.corrected + _FAR * one.error < -1e-9
        or one.corrected - _FAR * one.error > one.total + 1e-9
        for one in counted
    )


def without_lucky_guesses(paths: Paths) -> list[Counted]:
    """The counts of all kinds of paths, as observed and corrected for guessing.

    Args:
        paths: Their ``choices`` say how probable a right guess is.

    Returns:
        One for each of :data:`~.answers.KINDS`, in that order.
    """
    return _counted(paths, KINDS, kind_of)


def flipped_by_end(paths: Paths) -> list[Counted]:
    """The same of flipped paths by how they end; the numbers of both sum to those of all flipped.

    What ends wrong was learned, then forgotten.

    Args:
        paths: The same.

    Returns:
        One for each of :data:`~.answers.ENDS`, in that order.
    """
    return _counted(paths, ENDS, ended)


def _counted(paths: Paths, names: Sequence[str], named: Callable[[str], str]) -> list[Counted]:
    counts = paths.counts()
    total = sum(counts.values())
    guess = 1.0 / paths.choices if paths.choices > 1 else 0.0
    observed = np.array(list(counts.values()), dtype=float)
    # The corrected numbers are weighted sums of observed ones; (paths, kinds).
    weights = np.array(
        [[_weights(code, guess, named).get(n, 0.0) for n in names] for code in counts]
    )
    corrected_each = observed @ weights
    taken = pd.Index(list(counts)).get_indexer(paths.codes[paths.known])
    clusters = None if paths.clusters is None else paths.clusters[paths.known]
    found = []
    for place, name in enumerate(names):
        corrected, adds = float(corrected_each[place]), weights[taken, place]
        own = sum(count for code, count in counts.items() if named(code) == name)
        spread = mean_spread(adds, clusters)
        if guess:
            reach = t_quantile(spread.freedom) * spread.error * total
            unseen = _UNSEEN * total / (spread.freedom + 1)  # of fewer sources, more
            half = math.hypot(reach, unseen) if math.isfinite(reach) else math.nan
            ends = corrected - half, corrected + half
        else:
            low, high = share_interval(adds, clusters)
            ends = low * total, high * total
        found.append(Counted(name, own, corrected, *ends, spread.error * total, total))
    return found


def _weights(code: str, guess: float, named: Callable[[str], str] = kind_of) -> Mapping[str, float]:
    """How much one example on an observed path adds to the corrected number of every kind.

    The inverse of the mixture at one boundary: a wrong answer is not known for certain, with weight
    1 / (1 - g) on "not known" and -g / (1 - g) on "known"; a right one counts as known with weight
    1. Over boundaries weights multiply.
    """
    # Only what tells kinds apart is carried along: first state, last state, changes so far (0, 1, 2
    # for more), so that the work grows with the number of boundaries and not with that of paths.
    states: dict[tuple[str, str, int], float] = {}
    for answer in code:
        now = (
            {RIGHT: 1.0}
            if answer == RIGHT
            else {WRONG: 1.0 / (1.0 - guess), RIGHT: -guess / (1.0 - guess)}
        )
        if not states:
            states = {(state, state, 0): weight for state, weight in now.items()}
            continue
        following: dict[tuple[str, str, int], float] = {}
        for (first, last, changes), weight in states.items():
            for state, own in now.items():
                key = first, state, min(changes + (state != last), 2)
                following[key] = following.get(key, 0.0) + weight * own
        states = following
    weights: dict[str, float] = defaultdict(float)
    for (first, last, changes), weight in states.items():
        # Any path with the same ends and changes is of the same kind, whatever lies between.
        between = "" if changes < 2 else RIGHT + WRONG + RIGHT + WRONG
        weights[named(first + between + last)] += weight
    return weights


def lost_words(paths: Paths, noun: str) -> str:
    """How many were learned and then forgotten, as observed and had no answer been lucky.

    Args:
        paths: Of a set's examples.
        noun: What an example is called.
    """
    _, lost = flipped_by_end(paths)
    said = f"{LOST.capitalize()} (wrong, later right, wrong in the end): "
    said += count_text(lost.count, noun)
    if fits(without_lucky_guesses(paths)):
        said += (
            f"; had no answer been right by luck, an estimated {lost.shown()[0]:,.0f} (95 %: "
            f"{lost.interval_text()})"
        )
    return f"{said}. What is called forgotten was right to begin with, and is not among them."
