"""Chosen training examples: what replays say of the choice, and the files that take it away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import streamlit as st

from stagelens.analyses.selection.exporting import row_numbers, snippet, with_places
from stagelens.analyses.selection.outcomes import Outcome, OutcomeFacts
from stagelens.analyses.selection.sentences import (
    FILLED_UP_BY_NOTHING,
    INTERVALS,
    chosen,
    rests_on,
    trained_on,
    verdict,
)
from stagelens.charts import EITHER, Chart
from stagelens.charts.selection import horizon_curve
from stagelens.contracts import ACCURACY, Behaviour, StageLensError
from stagelens.estimators.stage_trust import REPLAY
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, selection_bars
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import training_loaders
from stagelens.wording.numbers import count_text, phrase, value_text
from stagelens.wording.signs import gain_range_text, gain_text


def shown(workspace: Workspace, outcome: Outcome) -> None:
    """What was chosen, bars of what replays gave, the differences, the horizons, and the files.

    Args:
        workspace: What is open.
        outcome: Of :mod:`stagelens.analyses.selection`.
    """
    facts, kind = outcome.facts, outcome.behaviour
    components.text_block(f"{chosen(outcome)}.")
    if resting := rests_on(outcome):
        components.text_block(resting)
    kinds = [each.behaviour() for each in facts.behaviours]
    known = [each for each in kinds if each.name in (kind.name, ACCURACY.name)]
    for each in sorted(known, key=lambda one: one.name != kind.name):
        if said := verdict(outcome, each):
            components.text_block(said)
    about = About(
        title=f"What to train on next, {facts.wanted.stage}",
        behaviour=kind.name,
        estimator=REPLAY,
        trust=(),
        filters=asked_of(facts),
    )
    if selection_bars.shown(outcome, "train-next-bars", about):
        _differences(outcome, known, replace(about, title=f"{about.title}: differences"))
    if outcome.proof is not None:
        components.text_block(
            f"{facts.wanted.draws} draws of the order of batches, the same for all models of a "
            f"draw, measured on {facts.judged:,} examples of {facts.wanted.set_name} that had no "
            "part in the choice; the order itself is by first order. "
            f"{INTERVALS} {FILLED_UP_BY_NOTHING}",
            muted=True,
        )
    if len(facts.trials) > 1:
        when_opened(
            "horizons",
            f"Horizons that were tried ({len(facts.trials)})",
            lambda: _curve(outcome, about),
        )
    _export(workspace, outcome)


def asked_of(facts: OutcomeFacts) -> dict[str, str]:
    """What was asked, by name, for people."""
    wanted = facts.wanted
    target = " & ".join(f"{name}={value}" for name, value in wanted.question.groups.items())
    if wanted.slice_name:
        target = f"slice {wanted.slice_name}"
    elif wanted.question.ids:
        target = count_text(len(wanted.question.ids), "example")
    return {
        "target": f"{target} of {wanted.set_name}" if target else wanted.set_name,
        "kept": f"{100 * wanted.keep:.0f} %",
        **({} if wanted.per_label else {"labels": "compete"}),
        **({"by": wanted.by} if wanted.by else {}),
        **({"distinct": "yes"} if wanted.distinct else {}),
    }


def _differences(outcome: Outcome, kinds: Sequence[Behaviour], about: About) -> None:
    """By how much the chosen examples are better than others, draw by draw."""
    rows = []
    for kind in kinds:
        for part, size, _ in outcome.measured(kind.name):
            if part == "chosen" or outcome.proof is None:
                continue
            gain = outcome.proof.gain(part, kind.name)
            rows.append(
                {
                    "chosen against": trained_on(part, size),
                    "on": phrase(kind),
                    "better by": gain_text(gain.mean * kind.sign, kind),
                    "95 % interval": gain_range_text(
                        gain.low * kind.sign, gain.high * kind.sign, kind, unit=False
                    ),
                }
            )
    components.table(
        pd.DataFrame(rows),
        "train-next-table",
        "How much better training on the chosen examples is than on others, by replay, paired over "
        "draws; negative: worse.",
        about,
        height="content",
    )


def _curve(outcome: Outcome, about: About) -> None:
    rows = pd.DataFrame(
        [
            {"horizon": trial.horizon, "draw": draw, "value": value}
            for trial in outcome.facts.trials
            for draw, value in enumerate(trial.values)
        ]
    )
    best = outcome.facts.ranking.horizon
    chart: Chart = drawing.chart(horizon_curve, rows, best, outcome.behaviour, EITHER)
    components.show(chart, "train-next-horizons", replace(about, title=f"{about.title}: horizons"))
    components.text_block(
        f"{_judged_by(outcome)} A short horizon sees little but the next step; where first order "
        "breaks down, a long one says nothing.",
        muted=True,
    )


def _judged_by(outcome: Outcome) -> str:
    """Who judged the horizons, and what random examples gave in the same draws."""
    mean = sum(outcome.facts.random) / len(outcome.facts.random)
    return (
        "What each half of the ranking examples would choose was replayed in two draws and judged "
        f"by the other half; with random examples it was {value_text(mean, outcome.behaviour)}."
    )


def _export(workspace: Workspace, outcome: Outcome) -> None:
    """The chosen examples as files, and how others read them."""
    stage = outcome.facts.wanted.stage
    name = f"{workspace.run.name}-{stage}-kept"
    try:
        rows = row_numbers(outcome.kept, stage)
        why = ""
    except StageLensError as error:
        rows, why = [], str(error)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.download_button(
            "Chosen examples as CSV",
            data=lambda: (
                with_places(outcome.kept, training_loaders.listed(workspace.run, stage))
                .to_csv(index=False)
                .encode()
            ),
            file_name=f"{name}.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            key="export-kept",
            help="Best first: id, label, uses, rows in the data set, what one use contributes, and "
            "where each stands in the recorded batches (step and position, from 0).",
        )
        if rows:
            st.download_button(
                "Rows for datasets and PyTorch",
                data=lambda: json.dumps(rows).encode(),
                file_name=f"{name}.json",
                mime="application/json",
                icon=":material/download:",
                on_click="ignore",
                key="export-rows",
                help="Numbers of the chosen examples in the recorded data set, best first.",
            )
    if rows:
        st.code(snippet(f"{name}.json"), language="python")
    else:
        components.text_block(
            f"No row numbers: {why}. The CSV says at which steps and positions of the recorded "
            "batches each was used.",
            muted=True,
        )
