"""What leaving training examples out takes away to first order, of some or group by group.

Let l_i be what example i adds up to in its micro-batch m, over its n_i terms (tokens, or 1), so
that a mean over the T_m terms of the micro-batch is ``sum_i l_i / T_m``, and let s_m be 1 over what
the training loop divided it by. Contributions hold, for every use, the derivative of the behaviour
in the example's weight with the divisor kept, ``d_i = lambda_g . s_m grad l_i / T_m``, and for
every micro-batch their sum D_m; ``lambda_g`` pulls the behaviour's gradient back through all later
steps, the optimiser's denominators and clipping. With the weight w for examples of which a
micro-batch has O terms, its gradient in the mean over the rest is, by the same lambda_g::

    N_m(w) = T_m / (T_m - (1 - w) O) (D_m - (1 - w) sum_out d_i)      where it has others,
    N_m(w) = w D_m                                                    where it has none;

and the step's is ``c(w) sum_m N_m(w)`` with ``c(w) = S / (S - (1 - w) S_out)``: S sums all s_m,
and S_out those of micro-batches without others, which the mean over micro-batches loses. Losses
that are divided by one count have the sums over their micro-batches in place of those of one (T, O
and D, and for s the mean by terms): those of the whole step, so that c = 1, or those of each
process that counts for itself. A plain sum has ``D_m - (1 - w) sum_out d_i``. A step that loses all
its examples loses all their parts. These are the factors of
:func:`stagelens.replaying.batch_parts.weighed`, so that ``sum_m D_m - c(0) sum_m N_m(0)`` is the
exact change of the step's gradient, taken to the behaviour to first order. Its derivative in the
weight at w = 1, of one example of a mean, is::

    d_i - n_i / T_m D_m   =   lambda_g . s_m (grad l_i - n_i grad L_m) / T_m
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from stagelens.analyses.contributions.contribution_table import Stored
from stagelens.contracts import Behaviour

from .chosen import Chosen, Divisor
from .sentences import mean_effect
from .stored import WithoutData

_NOTHING = 1e-9
"""Part of a micro-batch's terms that rounding leaves where none is left."""


def first_order(
    contributions: Stored, chosen: Chosen, divisor: Divisor, weight: float = 0.0
) -> tuple[float, int]:
    """What leaving these examples out takes away to first order, and how many of them are known.

    Args:
        contributions: To the behaviour and the examples that are asked about.
        chosen: Training examples of one of its stages.
        divisor: What losses are divided by.
        weight: See :func:`first_order_of_groups`.

    Returns:
        final - without, in the behaviour's unit; NaN as of :func:`first_order_of_groups`.
    """
    together = pd.Series("", index=list(chosen.ids))
    parts = first_order_of_groups(contributions, chosen.stage, together, divisor, weight)
    return float(parts.sum(skipna=False)), len(parts)


def against_replays(
    contributions: Stored,
    replays: Iterable[WithoutData],
    behaviour: Behaviour,
    ids: frozenset[str] | None = None,
) -> list[tuple[float, float]]:
    """What choices of examples took away to first order and by replay, both final - without.

    Args:
        contributions: To the behaviour and the examples that are asked about.
        replays: Each without a choice of one stage's examples.
        behaviour: Whose effects.
        ids: The evaluation examples that are asked about; None for all.

    Returns:
        In the behaviour's unit, of those replays that have it and all of whose examples are known.
    """
    pairs = []
    for one in replays:
        if behaviour.name not in one.behaviours:
            continue
        estimate, told_of = first_order(contributions, one.chosen, one.facts.divisor)
        if told_of == len(one.facts.ids):
            pairs.append((estimate, mean_effect(one, behaviour, ids)))
    return pairs


def first_order_of_groups(
    contributions: Stored, stage: str, groups: pd.Series, divisor: Divisor, weight: float = 0.0
) -> pd.Series:
    """Each example's part of what leaving its whole group out takes away to first order.

    Args:
        contributions: To the behaviour and the examples that are asked about.
        stage: Whose examples.
        groups: The group of each, by its id; each group leaves by itself.
        divisor: What losses are divided by.
        weight: What the losses of those that leave still count, from 0 to below 1.

    Returns:
        By id, those that are known only: final - without, to be added up over a group, in the
        behaviour's unit. NaN where the answer was stored by a version that did not keep what this
        takes, and of the mean over the rest where the loss is no sum over examples.
    """
    rows = contributions.part("example", stage)
    names = rows["step"].astype(str) + "-" + rows["position"].astype(str)
    own = rows.assign(name=names)[names.isin(groups.index)].set_index("name")
    slopes = own["slope"].astype(float)
    if divisor == "kept" or slopes.isna().any():
        return (1 - weight) * slopes
    batches = contributions.batches(stage)
    if batches.empty:
        return pd.Series(np.nan, index=slopes.index)
    lists = ["steps", "micros", "slopes", "counts"]
    uses = own[lists].explode(lists).set_axis(["step", "micro", "slope", "terms"], axis=1)
    uses = uses.assign(group=groups.reindex(uses.index).to_numpy())
    parts = parts_of_uses(uses, batches, weight)
    return pd.Series(parts, index=uses.index).groupby(level=0, sort=False).sum()


def parts_of_uses(uses: pd.DataFrame, batches: pd.DataFrame, weight: float = 0.0) -> np.ndarray:
    """Each use's part of what its group takes away with the mean over the rest; (U,).

    What a mean over micro-batches loses with those that have no others is the part of their
    examples, by their terms.

    Args:
        uses: U rows: ``group``, ``step``, the ``micro``-batch of the step, ``slope`` (d_i) and
            ``terms`` (n_i), of all uses of every group's examples.
        batches: All micro-batches of these steps: ``step``, ``micro``, ``kind`` (see
            :class:`stagelens.replaying.batch_parts.Cut`), ``terms`` (T_m), ``share`` (s_m),
            ``denominator`` (equal where losses of a step are divided by one number of terms) and
            ``slope`` (D_m).
        weight: Of those that leave, from 0 to below 1.
    """
    less = 1 - weight
    whole_of = ["step", "denominator"]
    of_batch = batches.set_index(["step", "micro"])[["kind", "denominator"]]
    own = batches.assign(share=batches["share"] * batches["terms"])
    of_whole = own.groupby(whole_of)[["terms", "share", "slope"]].sum()
    of_whole["share"] /= of_whole["terms"]
    of_step = of_whole.groupby("step")[["terms", "share"]].sum()
    # A factor of the step is for means alone, whatever they are over.
    averaged = batches[batches["kind"] != "sum"].groupby("step")["slope"].sum()
    of_step["slope"] = averaged.reindex(of_step.index, fill_value=0.0)
    kinds = {"step": int, "micro": int, "slope": float, "terms": float}
    at = uses.reset_index(drop=True).astype(kinds).join(of_batch, on=["step", "micro"])
    at = at.join(of_whole.add_suffix("_whole"), on=whole_of)
    at = at.join(of_step.add_suffix("_step"), on="step")
    of_group, mean = [at["group"], at["step"]], at["kind"] != "sum"
    out = at.groupby(["group", *whole_of], dropna=False)["terms"].transform("sum")
    gone = out >= at["terms_whole"] * (1 - _NOTHING)
    out_of_step = at["terms"].groupby(of_group, dropna=False).transform("sum")
    all_gone = out_of_step >= at["terms_step"] * (1 - _NOTHING)
    rest = at["terms_whole"] * at["slope"] - at["terms"] * at["slope_whole"]
    rest /= (at["terms_whole"] - less * out).where(~gone, 1.0)
    parts = less * at["slope"].mask(mean & ~gone, rest)
    # c(w): what the shares of means without others are lost with, by their uses' terms.
    lost = at["share_whole"] * at["terms"] / at["terms_whole"]
    lost = lost.where(gone & (at["terms"] > 0), 0.0)
    taken = parts.where(mean, 0.0).groupby(of_group, dropna=False).transform("sum")
    all_lost = lost.groupby(of_group, dropna=False).transform("sum")
    left = (at["share_step"] - less * all_lost).where(~all_gone, 1.0)
    grown = (less * lost / left * (at["slope_step"] - taken)).where(~all_gone, 0.0)
    return (parts - grown).to_numpy(float)
