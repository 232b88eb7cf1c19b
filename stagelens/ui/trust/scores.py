"""Scores of answers on the Trust page: what is known of them, and how far scorers agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.contracts import SCORE, is_score
from stagelens.report.scores import ScoreRow, frame, known_of, takeaway
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import loaders, scored
from stagelens.wording.folding import MOST, listed
from stagelens.wording.numbers import count_text, scaled
from stagelens.wording.signs import CREDIT_OR_BLAME, POSITIVE_IS


def scores(workspace: Workspace) -> None:
    """What is known of the effects on scores; nothing where the set has none."""
    at, name = workspace.at, workspace.examples.name
    every = scored.scores(at, name)
    if not every:
        return
    chosen = workspace.bar.behaviour.name
    shown = [chosen] if chosen in every else list(every)
    rows = [row for each in shown if (row := _row(workspace, each)) is not None]
    if not rows:
        return
    st.header("Scores of the answers", anchor=False)
    _table(workspace, rows)
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        said = tuple(filter(None, scored.known(at, name, row.score.name)))
        alike.setdefault(said, []).append(row.called)
    # What is said of several scorers alike is said once.
    common = [each for each in next(iter(alike)) if all(each in said for said in alike)]
    for each in common if len(alike) > 1 else ():
        components.text_block(each)
    for said, names in list(alike.items())[:MOST]:
        own = [each for each in said if len(alike) == 1 or each not in common]
        if own:
            components.text_block(f"{listed(names)}: {' '.join(own)}")
    if len(every) > 1:
        when_opened(
            "kappa",
            "How far scorers agree on the same answers (Cohen's kappa)",
            lambda: _agreement(workspace, chosen if chosen in every else None),
        )


def _row(workspace: Workspace, name: str) -> ScoreRow | None:
    at, set_name = workspace.at, workspace.examples.name
    score = scored.scores(at, set_name)[name]
    found = loaders.effects(at, set_name, score.best)
    if found is None:
        return None
    means = loaders.stage_summary(at, set_name, score.best, name, None, None)
    return ScoreRow(score, set_name, score.best, score.behaviour, means, found.trust_of(name))


def _table(workspace: Workspace, rows: list[ScoreRow]) -> None:
    at, set_name = workspace.at, workspace.examples.name
    table = frame(rows).drop(columns="prompts")
    # What the page is about comes first, where all do not fit.
    first = ["score", "stage", CREDIT_OR_BLAME, "low", "high", "trust"]
    table = table[[*first, *table.columns.difference(first, sort=False)]]
    spreads = {row.called: scored.samples(at, set_name, row.score.name) for row in rows}
    sampled = any(len(each) for each in spreads.values())
    if sampled:
        kinds = {row.called: row.behaviour for row in rows}
        for column in ("final", "without"):
            table[f"sd of answers, {column}"] = [
                scaled(float(spreads[score][column].get(stage, np.nan)), kinds[score])
                for score, stage in zip(table["score"], table["stage"], strict=True)
            ]
    sharing = loaders.clustered(at, set_name, workspace.noun)
    components.text_block(
        "Mean effects with intervals over the choice of prompts and, where a model is an estimate, "
        f"its error (95 %). {POSITIVE_IS} {sharing} "
        + (
            "Answers to one prompt differ by their standard deviation (root mean square over "
            "prompts); that, too, is within the intervals. "
            if sampled
            else ""
        )
        + _trainings(rows)
    )
    trust, trust_of = known_of(rows)
    about = About(title=f"Trust in scores, set {set_name}", trust=trust, trust_of=trust_of)
    number = st.column_config.NumberColumn
    config = {
        name: number(name, format="%.2f")
        for name in table
        if name not in ("score", "better", "stage", "unit", "estimator", "trust")
    }
    components.table(table, "trusted-scores", takeaway(rows), about, column_config=config)


def _trainings(rows: list[ScoreRow]) -> str:
    """Whether it is known what other trainings of the recipe would do to scores."""
    drawn = [row.called for row in rows if row.means["drawn"].notna().any()]
    if len(drawn) == len(rows):
        return "What other trainings of the recipe do to them is below."
    others = listed([row.called for row in rows if row.called not in drawn])
    return (
        f"All of it is about this training: what another one would do to {others} is not known "
        "(see Would it happen again?, below)."
    )


def _agreement(workspace: Workspace, chosen: str | None) -> None:
    found = scored.alike(workspace.at, workspace.examples.name)
    # A score's page name says more than the scorer's, which both begin with.
    found = [each for each in found if chosen in (None, each.first, each.second)]
    components.text_block(
        "Kappa is the share of answers that two scorers give the same score, beyond what they "
        "would by chance: 1 is always, 0 as often as by chance. It is over the answers of all "
        "models that both have scored, with an interval over prompts (95 %). A judge's error is "
        "not known here, but its agreement with a second scorer of the same thing is. Scorers that "
        "ask different things need not agree."
    )
    if not found:
        components.text_block("No two scorers have scored the same answers.")
        return
    table = pd.DataFrame(
        [
            {
                "first": each.first.removeprefix(SCORE),
                "second": each.second.removeprefix(SCORE) + (" (turned)" if each.turned else ""),
                "answers": each.answers,
                "same score %": 100 * each.same,
                "kappa": each.kappa,
                "low": each.low,
                "high": each.high,
                "why there is no kappa": each.reason,
            }
            for each in found
        ]
    )
    if not table["why there is no kappa"].any():
        table = table.drop(columns="why there is no kappa")
    known = [each for each in found if not each.reason]
    least = min(known, key=lambda each: each.kappa, default=None)
    said = f"Agreement of {count_text(len(found), 'pair')} of scorers on the same answers."
    if least is not None:
        names = " and ".join(each.removeprefix(SCORE) for each in (least.first, least.second))
        said += f" Least: kappa {least.kappa:.2f}, of {names}."
    number = st.column_config.NumberColumn
    config = {name: number(name, format="%.2f") for name in ("kappa", "low", "high")}
    config["same score %"] = number("same score %", format="%.1f")
    about = About(
        title="How far scorers agree",
        observed="the answers of the models that were scored",
        estimator="",
    )
    components.table(table, "agreement-of-scorers", said, about, column_config=config)


def compared_on(workspace: Workspace, shown: str) -> str:
    """That estimates are compared on another behaviour where a score is chosen; else empty."""
    if not is_score(workspace.bar.behaviour):
        return ""
    return (
        f"Shown is the {shown}: estimates are compared with replay on what is measured, not on "
        "scores. An estimate of a score is rough, whatever is found here."
    )
