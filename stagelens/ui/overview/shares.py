"""Credit that adds up, on the Overview: shares, what is seen after stages, and pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.analyses.shares import sentences
from stagelens.analyses.shares.bridge import bridges
from stagelens.analyses.shares.means import Mean
from stagelens.analyses.shares.pairs import Pair
from stagelens.analyses.shares.share_table import (
    ALONE,
    SEEN_AFTER,
    SHARE,
    WITHOUT,
    Shares,
)
from stagelens.analyses.shares.share_trust import RULE
from stagelens.analyses.shares.together import apart_sentence
from stagelens.contracts import Behaviour
from stagelens.report.provenance import RECORDED
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, readings
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_badges, trust_legend
from stagelens.ui.reading import loaders
from stagelens.ui.reading import shares as reading_shares
from stagelens.wording.numbers import axis_unit, is_share
from stagelens.wording.sentences import slice_parts
from stagelens.wording.signs import POSITIVE_IS, gain
from stagelens.wording.trust_words import trust_word

from . import halves, share_jobs

_ESTIMATE = "shares"

NONE_OF_SCORES = (
    "Of scores there are no shares: they would need the answers of every model in which only some "
    "of the stages happened, and these models are measured for likelihoods alone. What the scores "
    "rest on, such as the log-likelihood, has shares."
)
"""Said where a score is chosen, in the place of the ways to give credit."""


def left_unsaid(
    workspace: Workspace, behaviour: Behaviour, by: str | None, group: str | None
) -> None:
    """Below the effects of leaving out single stages: how much of it all they say together."""
    found = reading_shares.shares(workspace.at, workspace.examples.name, behaviour.name)
    if found is None:
        return
    chosen = reading_shares.chosen(workspace.at, workspace.examples.name, by, group)
    components.text_block(sentences.rest_sentence(found, chosen), muted=True)
    if opposed := bridges(found, chosen):
        components.sentences(opposed)


def adding_up(
    workspace: Workspace, behaviour: Behaviour, by: str | None, group: str | None, reading: str
) -> None:
    """The waterfall of shares or of what is seen after stages, with all that belongs to it."""
    column = None if group is None else by
    if reading == SEEN_AFTER:
        _seen_after(workspace, behaviour, column, group)
        return
    # What is taken as one is chosen below the numbers, because few people need it.
    body = st.container()
    together = _together(workspace)
    found = reading_shares.shares(workspace.at, workspace.examples.name, behaviour.name, together)
    with body:
        if found is None:
            share_jobs.offer(workspace, together)
        else:
            chosen_pairs = reading_shares.pairs(
                *(workspace.at, workspace.examples.name, behaviour.name, together, column, group)
            )
            waterfall(workspace, found, chosen_pairs, column, group)
            if together:
                chosen = reading_shares.chosen(workspace.at, workspace.examples.name, column, group)
                _when_apart(workspace, found, chosen, together)
    if found is not None:
        for text in sentences.cautions(found):
            components.text_block(text, muted=True)
        if not together:
            halves.section(workspace, found, column, group)
        trust_legend()
        with st.expander("The same numbers as a table"):
            table(workspace, found, column, group)
        share_jobs.offer_better(workspace, together, found.estimator)


def waterfall(
    workspace: Workspace,
    found: Shares,
    pairs: Sequence[Pair],
    column: str | None,
    group: str | None,
) -> None:
    """From base to final model by shares, beside the pairs of stages, with what they say."""
    chosen = reading_shares.chosen(workspace.at, workspace.examples.name, column, group)
    noun, behaviour = workspace.noun, found.behaviour
    about = slice_parts(noun, column, group)
    # Groups chosen by effects or answers stand out by that choice, which is not a finding.
    by_choice = workspace.chosen_by_outcome(column)
    told = [] if by_choice else sentences.pair_sentences(pairs, behaviour, noun, column, group)
    with st.container(border=True):
        total = sentences.total_sentence(found, noun, column, group, chosen)
        components.sentences([total, *told, *bridges(found, chosen)], size="1.05rem")
        if pairs and not by_choice:
            components.text_block(sentences.pair_rule(pairs, noun), muted=True)
    means = found.means(SHARE, chosen)
    known = [one.trust for one in means]
    filters = _filters(column, group)
    ends = found.level(0, chosen), found.level(found.full, chosen)
    words = "".join(part.text for part in about)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        components.show(
            drawing.chart(charts.waterfall, means, *ends, behaviour, charts.EITHER, words),
            "waterfall",
            About(
                behaviour=behaviour.name,
                sentences=lambda: [
                    sentences.share_sentence(one, behaviour, about, noun) for one in means
                ],
                estimator=_made(found),
                trust=known,
                filters=filters,
            ),
        )
    with right:
        if pairs:
            st.html(components.heading_html("Only together"))
            components.show(
                drawing.chart(charts.pair_matrix, pairs, behaviour, charts.EITHER, words),
                "pairs",
                About(
                    behaviour=behaviour.name,
                    sentences=lambda: told,
                    estimator=_made(found),
                    trust=[pair.given_all.trust for pair in pairs],
                    filters=filters,
                ),
            )
            unit = axis_unit(behaviour)
            components.text_block(
                "How much of what leaving out the stage of a row changes is there only because the "
                f"stage of the column came before{f', in {unit}' if unit else ''}. Blue makes the "
                "behaviour better, vermilion worse; in brackets and without colour where the "
                "interval includes zero.",
                muted=True,
            )
    trust_badges(known, behaviour.name)


def _together(workspace: Workspace) -> tuple[str, ...]:
    """The stages that are taken as one; none where there are fewer than two of them."""
    if len(workspace.stages) < 3:
        return ()
    picked = st.multiselect(
        "Take as one",
        workspace.stages,
        key="together",
        bind="query-params",
        placeholder="Every stage by itself",
        help="Stages that belong to one party, so that its share does not depend on how its "
        "training was cut into stages.",
    )
    named = tuple(stage for stage in workspace.stages if stage in picked)
    return named if 1 < len(named) < len(workspace.stages) else ()


def _when_apart(
    workspace: Workspace, found: Shares, chosen: np.ndarray | None, together: tuple[str, ...]
) -> None:
    """By how much the share of what is taken as one differs from the sum of its parts."""
    apart = reading_shares.shares(workspace.at, workspace.examples.name, found.behaviour.name)
    if apart is None or not apart.complete:
        return
    joined = [apart.names.index(name) for name in together]
    components.sentences([apart_sentence(apart, joined, chosen)])


def _seen_after(
    workspace: Workspace, behaviour: Behaviour, column: str | None, group: str | None
) -> None:
    at, name = workspace.at, workspace.examples.name
    found = reading_shares.seen_after(at, name, behaviour)
    observed = found is not None
    if found is None:
        found = reading_shares.shares(at, name, behaviour.name)
    if found is None:
        st.info(
            "What is seen after each stage is not known: the model after some boundary does not "
            "answer as the final model does, and no coalitions have been measured.",
            icon=":material/info:",
        )
        return
    differences(workspace, found, column, group, observed)


def differences(
    workspace: Workspace, found: Shares, column: str | None, group: str | None, observed: bool
) -> None:
    """From base to final model by what is seen after each stage.

    Args:
        workspace: The page's.
        found: Boundaries, or coalitions of whoever happened first.
        column: Of the group; None for all examples.
        group: Which.
        observed: Whether they are recorded models.
    """
    behaviour = found.behaviour
    chosen = reading_shares.chosen(workspace.at, workspace.examples.name, column, group)
    means = found.means(SEEN_AFTER, chosen)
    ends = found.level(0, chosen), found.level(found.full, chosen)
    about = "".join(part.text for part in slice_parts(workspace.noun, column, group))
    components.show(
        drawing.chart(
            charts.waterfall, means, *ends, behaviour, charts.EITHER, about, readings.DIFFERENCE
        ),
        "seen-after",
        About(
            behaviour=behaviour.name,
            observed=RECORDED if observed else "",
            filters=_filters(column, group),
            trust=[] if observed else [one.trust for one in means],
        ),
    )
    components.text_block(
        "Differences between boundaries: what later stages undo or finish is not in them.",
        muted=True,
    )


def table(workspace: Workspace, found: Shares, column: str | None, group: str | None) -> None:
    """Every reading of every stage, with the share's interval."""
    chosen = reading_shares.chosen(workspace.at, workspace.examples.name, column, group)
    behaviour, scale = found.behaviour, 100 if is_share(found.behaviour) else 1
    unit = "points" if is_share(found.behaviour) else axis_unit(found.behaviour) or "its unit"
    means: dict[str, Sequence[Mean]] = {
        each: found.means(each, chosen) for each in (SHARE, WITHOUT, SEEN_AFTER, ALONE)
    }
    share = means[SHARE]
    ends = [_ends(one, behaviour) for one in share]
    frame = pd.DataFrame(
        {
            "stage": [one.name for one in share],
            "trust": [trust_word(one.trust, found.behaviour.name) for one in share],
            "examples": [one.n for one in share],
            "share": [scale * gain(one.mean, behaviour) for one in share],
            "low": [scale * low for low, _ in ends],
            "high": [scale * high for _, high in ends],
            **{
                name: [scale * gain(one.mean, behaviour) for one in means[each]]
                for name, each in (
                    ("without it", WITHOUT),
                    ("seen after", SEEN_AFTER),
                    ("alone", ALONE),
                )
            },
        }
    )
    digits = "%.1f" if is_share(found.behaviour) else "%.3f"
    components.table(
        frame,
        "share-table",
        f"Share of each stage, with its interval, beside what else is read of it, in {unit}. "
        f"{POSITIVE_IS}",
        About(
            behaviour=found.behaviour.name,
            estimator=_made(found),
            trust=[one.trust for one in share],
            filters=_filters(column, group),
        ),
        column_config={
            name: st.column_config.NumberColumn(name, format=digits, help=f"In {unit}.")
            for name in ("share", "low", "high", "without it", "seen after", "alone")
        },
    )
    if found.over:
        over = f"Intervals are over {found.over} of the recipe (95 %)."
        components.text_block(f"{over} How the set was sampled is not in them.", muted=True)
        return
    sharing = loaders.clustered(workspace.at, workspace.examples.name, workspace.noun)
    components.text_block(
        f"{RULE} Intervals are over the choice of examples (95 %), with the errors of models. "
        f"{sharing}",
        muted=True,
    )


def _made(found: Shares) -> str:
    """How shares were had, for whoever pins them."""
    if found.over:
        return f"{_ESTIMATE} over {found.over} of the recipe"
    return f"{_ESTIMATE} by {found.estimator}"


def _filters(column: str | None, group: str | None) -> dict[str, str]:
    return {column: group} if column is not None and group is not None else {}


def _ends(one: Mean, behaviour: Behaviour) -> tuple[float, float]:
    """Of the interval on the credit scale, the lower one first."""
    return (nan, nan) if one.interval is None else one.interval.gains(behaviour)
