"""How well scores of training examples predict what leaving groups of them out does.

Effects have the sign of a stage effect, final minus without: positive where the group helped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from stagelens.replaying.left_out import Divisor


@dataclass(frozen=True)
class UseScores:
    """What every use of a training example did for each question, as some method has it.

    Attributes:
        steps: (U,) the step of every use.
        values: (K, U) per question, in the behaviour's unit, positive where the use raised it.
    """

    steps: np.ndarray
    values: np.ndarray


def predicted(scores: UseScores, left_out: np.ndarray, divisor: Divisor) -> np.ndarray:
    """The effects of groups as the sums of what their uses did; (K, S).

    Leaving out k of a batch's B examples takes their parts away. With the divisor kept that is all;
    with the mean over the rest, each of those that are left counts B / (B - k) times as much, so
    the rest's parts grow by k / (B - k). Of a batch that loses all, all of it goes.

    Args:
        scores: Of every use.
        left_out: (S, U) whether a group has the use.
        divisor: What losses are divided by.
    """
    own = scores.values @ left_out.T.astype(float)
    if divisor == "kept":
        return np.asarray(own)
    for step in np.unique(scores.steps):
        uses = scores.steps == step
        gone = left_out[:, uses].astype(float)  # (S, B)
        size, count = gone.shape[1], gone.sum(1)
        grown = np.where(count < size, count / np.maximum(size - count, 1), 0.0)
        own -= (scores.values[:, uses] @ (1 - gone).T) * grown
    return np.asarray(own)


def rank_correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation over groups per question: linear datamodelling scores; (K,).

    NaN for a question whose effects are all equal.

    Args:
        first: (K, S) effects.
        second: (K, S) other effects of the same groups.
    """
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    a, b = (values - values.mean(1, keepdims=True) for values in ranks)
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.asarray(np.where(size > 0, (a * b).sum(1) / np.where(size > 0, size, 1), np.nan))


def between(effects: np.ndarray) -> np.ndarray:
    """Without what all groups have in common for a question; (K, S)."""
    return np.asarray(effects - effects.mean(1, keepdims=True))


def slope_between(effects: np.ndarray, prediction: np.ndarray) -> float:
    """How much more, or less, one group does than another, over what was predicted.

    Least squares of replayed on predicted differences from each question's mean over groups, all
    questions together; NaN where nothing is predicted. Above 1: predictions are too small.

    Args:
        effects: (K, S) by replay.
        prediction: (K, S).
    """
    return _slope(between(effects), between(prediction))


def slope_of_sizes(effects: np.ndarray, prediction: np.ndarray) -> float:
    """How large effects are over what was predicted, by least squares through the origin.

    See :func:`slope_between`; this one counts what all groups of a size have in common.
    """
    return _slope(effects, prediction)


def _slope(effects: np.ndarray, prediction: np.ndarray) -> float:
    size = float((prediction**2).sum())
    return float((effects * prediction).sum()) / size if size > 0 else float("nan")


def slopes_between(effects: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """:func:`slope_between` of each question by itself; (K,)."""
    pairs = zip(effects, prediction, strict=True)
    return np.array([slope_between(a[None], b[None]) for a, b in pairs])


def relative_error(effects: np.ndarray, prediction: np.ndarray) -> float:
    """||predicted - replayed|| / ||replayed|| over all groups and questions."""
    return float(np.linalg.norm(prediction - effects) / np.linalg.norm(effects))


def shifted(
    effects: np.ndarray, prediction: np.ndarray, replayed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Effects of the groups that were not replayed, and what is predicted of them then; (K, R).

    Groups of a size have in common what first order leaves out. Where some were replayed, the mean
    of what their replays say beyond first order is added to the rest, question by question.

    Args:
        effects: (K, S) by replay.
        prediction: (K, S).
        replayed: Of the S groups, those whose replay is known.
    """
    rest = np.setdiff1d(np.arange(effects.shape[1]), replayed)
    beyond = (effects - prediction)[:, list(replayed)].mean(1, keepdims=True)
    return effects[:, rest], prediction[:, rest] + beyond


def membership(groups: Sequence[frozenset[int]], rows: np.ndarray) -> np.ndarray:
    """(S, U) whether each group has the example of each use.

    Args:
        groups: Numbers of training examples.
        rows: (U,) the number of the example of each use.
    """
    return np.stack([np.isin(rows, list(group)) for group in groups])
