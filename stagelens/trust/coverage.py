"""How far estimates of the calibration bench kept what was promised of them without a replay.

Every promise was made without the estimate's own family, so it is what a family that was never seen
can expect. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stagelens.estimators.stage_trust import AGREES_ERROR, AGREES_R


@dataclass(frozen=True)
class Coverage:
    """Counts over the calibration bench.

    Attributes:
        families: How many kinds of recordings there are.
        estimates: How many estimates of which an error was promised.
        within: How many of these kept it.
        reliable: How many estimates were called reliable.
        close: How many of these were close enough to a replay.
        deserving: How many estimates were close enough, whatever they were called.
        worst: The family in which the smallest share of reliable ones was close enough; None where
            none was called reliable.
        worst_share: That share, 0 to 1.
        widest: The family in which the smallest share of all estimates kept what was promised; None
            where nothing was promised.
        widest_share: That share, 0 to 1.
    """

    families: int
    estimates: int
    within: int
    reliable: int
    close: int
    deserving: int
    worst: str | None
    worst_share: float
    widest: str | None
    widest_share: float


def close_enough(points: pd.DataFrame) -> pd.Series:
    """Which estimates of the bench agree with replay; see ``stage_trust.Agreement.agrees``."""
    return (points["r"] >= AGREES_R) & (points["error"] <= AGREES_ERROR)


def coverage(points: pd.DataFrame) -> Coverage:
    """Count what was promised and kept.

    Args:
        points: ``calibration.points()``.
    """
    close = close_enough(points)
    reliable = points["reliable"].astype(bool)
    promised = np.isfinite(points["promised"])
    kept = (points["error"] <= points["promised"])[promised]
    by_family = kept.groupby(points.loc[promised, "family"]).mean()
    shares = close[reliable].groupby(points.loc[reliable, "family"]).mean()
    return Coverage(
        families=int(points["family"].nunique()),
        estimates=int(promised.sum()),
        within=int(kept.sum()),
        reliable=int(reliable.sum()),
        close=int(close[reliable].sum()),
        deserving=int(close.sum()),
        worst=str(shares.idxmin()) if len(shares) else None,
        worst_share=float(shares.min()) if len(shares) else float("nan"),
        widest=str(by_family.idxmin()) if len(by_family) else None,
        widest_share=float(by_family.min()) if len(by_family) else float("nan"),
    )
