"""What leaving training examples out takes away to first order, of some or group by group."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stagelens.analyses.contributions.contribution_table import Stored

from .chosen import Chosen, Divisor


def first_order(contributions: Stored, chosen: Chosen, divisor: Divisor) -> tuple[float, int]:
    """What leaving these examples out takes away to first order, and how many of them are known.

    Args:
        contributions: To the behaviour and the examples that are asked about.
        chosen: Training examples of one of its stages.
        divisor: What losses are divided by.

    Returns:
        final - without, in the behaviour's unit; NaN where the answer was stored by a version that
        did not have these derivatives, or examples do not count alike.
    """
    together = pd.Series("", index=list(chosen.ids))
    parts = first_order_of_groups(contributions, chosen.stage, together, divisor)
    return float(parts.sum(skipna=False)), len(parts)


def first_order_of_groups(
    contributions: Stored, stage: str, groups: pd.Series, divisor: Divisor
) -> pd.Series:
    """Each example's part of what leaving its whole group out takes away to first order.

    Each use's part is the derivative in the weight of the example's loss at that step. With the
    divisor kept, these add up. With the mean over the rest, of a batch of B examples of which k
    leave, the rest counts B / (B - k) times as much: of a use with derivative d, in a batch whose
    derivatives add up to S, that makes ``(B d - S) / (B - k)``; a batch that loses all loses all
    its parts. That is so where examples count alike in what losses are divided by; of a mean over
    tokens, how many tokens leave is not known here.

    Args:
        contributions: To the behaviour and the examples that are asked about.
        stage: Whose examples.
        groups: The group of each, by its id; each group leaves by itself.
        divisor: What losses are divided by.

    Returns:
        By id, those that are known only: final - without, to be added up over a group, in the
        behaviour's unit; NaN as of :func:`first_order`.
    """
    rows = contributions.part("example", stage)
    names = rows["step"].astype(str) + "-" + rows["position"].astype(str)
    own = rows.assign(name=names)[names.isin(groups.index)].set_index("name")
    slopes = own["slope"].astype(float)
    if divisor == "kept" or slopes.isna().any():
        return slopes
    if not contributions.counts_alike(stage):
        return pd.Series(np.nan, index=slopes.index)
    uses = own[["steps", "slopes"]].explode(["steps", "slopes"])
    uses = uses.assign(group=groups.reindex(uses.index).to_numpy())
    gone = uses.groupby(["group", "steps"])["slopes"].transform("size").to_numpy(float)
    steps = contributions.part("step", stage).set_index("step").loc[uses["steps"].tolist()]
    size, sums = steps["uses"].to_numpy(float), steps["slope"].to_numpy(float)
    slope, left = uses["slopes"].to_numpy(float), size - gone
    parts = np.where(left > 0, (size * slope - sums) / np.maximum(left, 1.0), slope)
    return pd.Series(parts, index=uses.index).groupby(level=0, sort=False).sum()
