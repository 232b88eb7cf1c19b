"""Means over examples of all that is read of each stage, as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stagelens.wording.intervals import Interval
from stagelens.wording.trust_words import trust_word

from .share_table import READINGS, SHARE, Shares


def mean_table(found: Shares, chosen: np.ndarray | None = None) -> pd.DataFrame:
    """Means over examples, a row per party: ``stage``, ``n``, each reading, the share's interval.

    Args:
        found: From :func:`~.share_table.shares_of`.
        chosen: (N,) which examples; None for all of them.
    """
    means = {reading: found.means(reading, chosen) for reading in READINGS}
    rows = []
    for party, name in enumerate(found.names):
        share = means[SHARE][party]
        ends = (np.nan, np.nan) if share.interval is None else _ends(share.interval)
        rows.append(
            {
                "stage": name,
                "behaviour": found.behaviour.name,
                "n": share.n,
                **{reading: means[reading][party].mean for reading in READINGS},
                "share_low": ends[0],
                "share_high": ends[1],
                "trust": trust_word(share.trust, found.behaviour.name),
                "expected_error": share.trust.expected_error,
            }
        )
    return pd.DataFrame(rows)


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high
