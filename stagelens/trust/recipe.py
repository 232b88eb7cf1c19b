"""What an estimate is nearer to: this run's effects, or those of its recipe on average.

A replay repeats the batches in their recorded order, so its effects are those of *this run*. The
mean effect over all orders of the same batches is that of *the recipe*. A cheap estimate can be far
from the former and close to the latter, where effects depend on the very order of the batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .noise import RECORDED

FEWEST_ORDERS = 4
"""Fewer other orders say too little of the mean over all."""


@dataclass(frozen=True)
class TwoErrors:
    """Relative errors of an estimate of one stage's effects.

    Attributes:
        of_run: Against the effects by replay in the recorded order.
        of_recipe: Against the mean effects over all orders, as far as those known tell it; NaN
            where their mean is nothing but noise.
        orders: How many other orders are known.
    """

    of_run: float
    of_recipe: float
    orders: int


def noise_of_mean(orders: np.ndarray) -> float:
    """Expected squared length of what the mean of (K, N) orders misses the mean of all by."""
    return float(orders.var(0, ddof=1).sum() / len(orders))


def error_of_mean(estimate: np.ndarray, orders: np.ndarray) -> float:
    """Relative error of an estimate against the mean effect over all orders.

    The mean of a few orders misses it by noise of its own, whose expected squared length is taken
    off the squares of both lengths.

    Args:
        estimate: (N,) effects; independent of ``orders``.
        orders: (K, N) effects in K >= 2 re-drawn orders.
    """
    mean, noise = orders.mean(0), noise_of_mean(orders)
    left = (mean**2).sum() - noise
    if left <= 0:
        return float("nan")
    return float(np.sqrt(max(((estimate - mean) ** 2).sum() - noise, 0.0) / left))


def two_errors(effects: pd.DataFrame, orders: pd.DataFrame) -> TwoErrors | None:
    """Both errors of an estimate; None where too few orders, or no replay, are known.

    Args:
        effects: ``example_id`` and ``effect`` of one stage and behaviour, by an estimate.
        orders: The same with ``order``, from :func:`~stagelens.trust.noise.load_orders`.
    """
    estimate = effects.set_index("example_id")["effect"].dropna()
    by_order = orders.pivot(index="order", columns="example_id", values="effect")
    shared = by_order.columns[by_order.notna().all()].intersection(estimate.index)
    by_order, own = by_order[shared], estimate[shared].to_numpy()
    others = by_order.drop(index=RECORDED, errors="ignore").to_numpy()
    if RECORDED not in by_order.index or len(others) < FEWEST_ORDERS or not len(shared):
        return None
    recorded = by_order.loc[RECORDED].to_numpy()
    size = float(np.linalg.norm(recorded))
    of_run = float(np.linalg.norm(own - recorded)) / size if size else float("nan")
    return TwoErrors(of_run, error_of_mean(own, others), len(others))
