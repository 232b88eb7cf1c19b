"""When a prediction came about: observed after stages and checkpoints, and step by step."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.analyses.contributions.contribution_table import Stored
from stagelens.analyses.contributions.observed import seen_words
from stagelens.charts.steps import observed_path, step_contributions
from stagelens.contracts import BASE
from stagelens.report.provenance import FIRST_ORDER, RECORDED
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import loaders
from stagelens.ui.reading.browse import Chosen
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.numbers import phrase

from . import contributions
from .contributions import Asked
from .expected_errors import expected_errors_section


def training_steps_tab(
    workspace: Workspace, effects: Effects, chosen: Chosen, example_id: str
) -> None:
    """The observed course, and below it the contributions of a stage's steps."""
    asked = contributions.choose(workspace, effects, chosen, example_id)
    st.subheader(f"{phrase(asked.behaviour).capitalize()} during training", anchor=False)
    # Filled last, because checkpoints come with the contributions that are found below it.
    course = st.container()
    st.subheader("What each step contributed", anchor=False)
    found = contributions.answer(workspace, asked)
    with course:
        _observed(workspace, asked, found)
    if found is None:
        return
    contributions.first_order(found, asked)
    number = workspace.stages.index(asked.stage)
    rates = loaders.rates(workspace.at)
    chart = drawing.chart(
        step_contributions,
        found.part("step", asked.stage)[["step", "value"]],
        rates[rates["stage"] == asked.stage],
        asked.behaviour,
        asked.stage,
        asked.effect,
        charts.stage_color(number),
        charts.EITHER,
        asked.trust,
    )
    about = About(
        title=f"Contributions of the steps of {asked.stage}, {asked.about}",
        behaviour=asked.behaviour.name,
        estimator=FIRST_ORDER,
        trust=(),
        filters=asked.filters,
    )
    components.show(chart, "step-contributions", about)
    components.text_block(
        "To first order: the derivative of the final behaviour along each recorded update, with "
        "all later steps carried through. Up and blue: better because of the step; down and "
        "orange: worse; grey where the steps add up to the opposite sign of the stage's effect.",
        muted=True,
    )
    expected_errors_section(workspace, asked)


def _observed(workspace: Workspace, asked: Asked, found: Stored | None) -> None:
    """The behaviour where it was measured; checkpoints come with the contributions."""
    # At least 1: the end of a stage without steps would otherwise fall on its beginning.
    counts = {stage.name: max(stage.updates, 1) for stage in workspace.run.stages}
    rows = _boundaries(workspace, asked, counts) if found is None else found.part("observed")
    if rows is None or rows.empty:
        components.text_block("The behaviour after each stage has not been measured.", muted=True)
        return
    chart = drawing.chart(observed_path, rows, asked.behaviour, counts, charts.EITHER)
    about = About(behaviour=asked.behaviour.name, observed=RECORDED, filters=asked.filters)
    components.show(chart, "observed-path", about)
    if said := seen_words(rows, asked.stage, asked.behaviour, counts[asked.stage]):
        components.text_block(said)
    elif found is None and contributions.impossible(workspace, asked) is None:
        components.text_block(
            "Measured at boundaries only: computing the contributions below also measures the "
            "checkpoints that were recorded within stages.",
            muted=True,
        )
    # Several examples have a mean behaviour, but no answer in common.
    if len(asked.ids) == 1:
        ends = rows[rows["step"].isin([0]) | (rows["step"] == rows["stage"].map(counts))]
        answers = [
            f"{BASE if row.step == 0 else f'after {row.stage}'}: {row.answer}"
            for row in ends.itertuples()
        ]
        components.text_block(f"Answers: {', '.join(answers)}.", muted=True)


def _boundaries(workspace: Workspace, asked: Asked, counts: dict[str, int]) -> pd.DataFrame | None:
    """The stored behaviours after each boundary as ``stage``, ``step``, ``value``, ``answer``."""
    parts = loaders.boundaries(workspace.at, workspace.examples.name, asked.behaviour.name)
    own = [part[part["example_id"].isin(asked.ids)] for part in parts]
    if not own:
        return None
    rows = pd.concat(own, ignore_index=True)
    means = rows.groupby("boundary", sort=False).agg(
        value=("value", "mean"), answer=("prediction", "first")
    )
    # The base is step 0 of the first stage, any other boundary the last step of its stage.
    places = {BASE: (workspace.stages[0], 0), **{name: (name, counts[name]) for name in counts}}
    # In training order; a boundary that was not measured has no point.
    known = [name for name in places if name in means.index]
    return pd.DataFrame(
        {
            "stage": [places[name][0] for name in known],
            "step": [places[name][1] for name in known],
            "value": means.loc[known, "value"].to_numpy(),
            "answer": means.loc[known, "answer"].to_numpy(),
        }
    )
