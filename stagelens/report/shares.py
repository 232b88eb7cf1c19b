"""Shares in a report: what training as a whole did, and each stage's fair part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from stagelens import charts
from stagelens.analyses.shares.bridge import bridges
from stagelens.analyses.shares.drawn_shares import drawn_shares_of
from stagelens.analyses.shares.mean_table import mean_table
from stagelens.analyses.shares.pairs import Pair, pairs_of
from stagelens.analyses.shares.sentences import (
    cautions,
    pair_rule,
    pair_sentences,
    share_sentence,
    total_sentence,
)
from stagelens.analyses.shares.share_table import READINGS, SHARE, Shares, shares_of
from stagelens.analyses.shares.stored import best_coalitions
from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.trust.drawn_coalitions import of_recipe
from stagelens.trust.draws import RECIPE
from stagelens.wording.numbers import axis_unit, phrase, scaled
from stagelens.wording.sentences import slice_parts
from stagelens.wording.signs import gain
from stagelens.wording.trust_words import trust_word

from .finding import Finding, Rows

ABOUT = (
    "Each stage's fair part (Shapley) of what training as a whole did: the mean, over all orders "
    "in which the stages could join, of what its joining changes. Shares add up."
)


def share_findings(
    run: Run,
    set_name: str,
    noun: str,
    behaviours: Sequence[Behaviour],
    finding: Callable[..., Finding],
    chart: Callable[..., Finding],
) -> list[Finding]:
    """The waterfall, the pairs and all readings for each behaviour; none where shares are unknown.

    Those of this run first, then those of its recipe where every set of stages was drawn.

    Args:
        run: The run.
        set_name: The evaluation set.
        noun: What an example is called.
        behaviours: Which.
        finding: Makes a finding on this set of this run.
        chart: Makes one of a chart.
    """
    measured, redrawn = best_coalitions(run, set_name), of_recipe(run, set_name)
    made = []
    for behaviour in behaviours:
        if measured is not None and behaviour.name in measured.behaviours:
            found = shares_of(measured, behaviour.name)
            made += _of_behaviour(found, noun, finding, chart)
        drawn = None if redrawn is None else drawn_shares_of(redrawn, behaviour.name)
        if drawn is not None and np.isfinite(drawn.final).any():
            made += _of_behaviour(drawn, noun, finding, chart, f", {RECIPE}")
    return made


def _of_behaviour(
    found: Shares,
    noun: str,
    finding: Callable[..., Finding],
    chart: Callable[..., Finding],
    whose: str = "",
) -> list[Finding]:
    behaviour = found.behaviour
    means, about = found.means(SHARE), f"all {noun}s"
    unit = axis_unit(behaviour)
    in_unit = f", in {unit}" if unit else ""
    how = f"over {found.over} of the recipe" if found.over else f"by {found.estimator}"
    common = {"behaviour": behaviour.name, "estimator": f"shares {how}"}
    known = tuple(one.trust for one in means)
    ends = found.level(0), found.level(found.full)
    drawn = charts.waterfall(means, *ends, behaviour, charts.EITHER, about)
    sentences = [share_sentence(one, behaviour, slice_parts(noun), noun) for one in means]
    made = [
        chart(
            drawn,
            title=f"Share of each stage in the {phrase(behaviour)} on {about}{whose}",
            sentences=(total_sentence(found, noun), *sentences, *bridges(found)),
            trust=known,
            **common,
        )
    ]
    if pairs := pairs_of(found):
        made.append(
            chart(
                charts.pair_matrix(pairs, behaviour, charts.EITHER, about),
                title=f"What pairs of stages do to the {phrase(behaviour)} only together{whose}",
                sentences=tuple(pair_sentences(pairs, behaviour, noun)),
                trust=_trusts(pairs),
                **common,
            )
        )
    made.append(
        finding(
            kind="table",
            title=f"Four readings of each stage, for the {phrase(behaviour)}{in_unit}{whose}",
            said=" ".join([*cautions(found), *([pair_rule(pairs, noun)] if pairs else [])]),
            rows=Rows.of(share_rows(found)),
            trust=known,
            **common,
        )
    )
    return made


def _trusts(pairs: Sequence[Pair]) -> tuple[StageTrust, ...]:
    return tuple(pair.given_all.trust for pair in pairs)


def share_rows(found: Shares) -> pd.DataFrame:
    """Every reading of each stage with the share's interval and trust, on the credit scale.

    In the unit that the dashboard prints: points where the behaviour is a share of examples.
    """
    rows = mean_table(found).drop(columns="behaviour")
    ends = gain(rows[["share_low", "share_high"]].to_numpy(float), found.behaviour)
    # Where lower is better, the ends change places.
    rows = rows.assign(share_low=ends.min(axis=1), share_high=ends.max(axis=1))
    rows[list(READINGS)] = gain(rows[list(READINGS)].to_numpy(float), found.behaviour)
    numbers = [*READINGS, "share_low", "share_high"]
    rows[numbers] *= scaled(1.0, found.behaviour)
    words = [trust_word(one.trust, found.behaviour.name) for one in found.means(SHARE)]
    return rows.assign(trust=words).rename(columns=lambda name: name.replace("_", " "))
