"""Shares in a report: what training as a whole did, and each stage's fair part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from stagelens import charts
from stagelens.analyses.shares.mean_table import mean_table
from stagelens.analyses.shares.pairs import Pair, pairs_of
from stagelens.analyses.shares.sentences import (
    cautions,
    pair_rule,
    pair_sentences,
    share_sentence,
    total_sentence,
)
from stagelens.analyses.shares.share_table import SHARE, Shares, shares_of
from stagelens.analyses.shares.stored import best_coalitions
from stagelens.contracts import Behaviour
from stagelens.effects.coalition_results import CoalitionResult
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.wording.numbers import phrase
from stagelens.wording.sentences import slice_parts
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

    Args:
        run: The run.
        set_name: The evaluation set.
        noun: What an example is called.
        behaviours: Which.
        finding: Makes a finding on this set of this run.
        chart: Makes one of a chart.
    """
    measured = best_coalitions(run, set_name)
    if measured is None:
        return []
    made = []
    for behaviour in behaviours:
        if behaviour.name in measured.behaviours:
            made += _of_behaviour(measured, behaviour, noun, finding, chart)
    return made


def _of_behaviour(
    measured: CoalitionResult,
    behaviour: Behaviour,
    noun: str,
    finding: Callable[..., Finding],
    chart: Callable[..., Finding],
) -> list[Finding]:
    found = shares_of(measured, behaviour.name)
    means, about = found.means(SHARE), f"all {noun}s"
    common = {"behaviour": behaviour.name, "estimator": f"shares by {found.estimator}"}
    known = tuple(one.trust for one in means)
    ends = found.level(0), found.level(found.full)
    drawn = charts.waterfall(means, *ends, behaviour, charts.EITHER, about)
    sentences = [share_sentence(one, behaviour, slice_parts(noun), noun) for one in means]
    made = [
        chart(
            drawn,
            title=f"Share of each stage in the {phrase(behaviour)} on {about}",
            sentences=(total_sentence(found, noun), *sentences),
            trust=known,
            **common,
        )
    ]
    if pairs := pairs_of(found):
        made.append(
            chart(
                charts.pair_matrix(pairs, behaviour, charts.EITHER, about),
                title=f"What pairs of stages do to the {phrase(behaviour)} only together",
                sentences=tuple(pair_sentences(pairs, behaviour, noun)),
                trust=_trusts(pairs),
                **common,
            )
        )
    made.append(
        finding(
            kind="table",
            title=f"What is read of each stage, for the {phrase(behaviour)}",
            said=" ".join([*cautions(found), *([pair_rule(pairs, noun)] if pairs else [])]),
            rows=Rows.of(_rows(found)),
            trust=known,
            **common,
        )
    )
    return made


def _trusts(pairs: Sequence[Pair]) -> tuple[StageTrust, ...]:
    return tuple(pair.given_all.trust for pair in pairs)


def _rows(found: Shares) -> pd.DataFrame:
    rows = mean_table(found).drop(columns="behaviour")
    words = [trust_word(one.trust, found.behaviour.name) for one in found.means(SHARE)]
    return rows.assign(trust=words).rename(columns=lambda name: name.replace("_", " "))
