"""One training example: what it is, what became of it, and where else it occurs."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite

import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.analyses.training_data import tables
from stagelens.analyses.training_data.groups import CONTRIBUTION
from stagelens.analyses.training_data.marks import SUSPECT
from stagelens.charts.steps import observed_path
from stagelens.contracts import Behaviour
from stagelens.report.provenance import RECORDED
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, inputs, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import training_loaders
from stagelens.ui.reading.training_loaders import Loaded
from stagelens.wording.numbers import count_text
from stagelens.wording.signs import gain, gain_text

from .contributions import Asked

_PNG = b"\x89PNG"


def shown(workspace: Workspace, asked: Asked, loaded: Loaded, row: pd.Series) -> None:
    """A training example in a box of its own.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and of which stage.
        loaded: The stage's training examples.
        row: One of them, with its contribution where that is known.
    """
    name, data = str(row["example_id"]), loaded.data
    content = training_loaders.contents(
        workspace.at, workspace.at.path, asked.stage, loaded.stamp, (name,)
    )[name]
    with st.container(border=True, key="training-example"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.html(components.heading_html(f"Training example {name}"))
            st.button(
                "Close",
                icon=":material/close:",
                type="tertiary",
                on_click=state.look_at_trained,
                args=(None,),
                key="close-training-example",
            )
        left, right = st.columns([1, 2], gap="medium")
        with left:
            if content is not None and content.startswith(_PNG):
                st.html(
                    "<div style='max-width:14rem'>"
                    f"{inputs.image_html(content, f'Training example {name}')}</div>"
                )
            elif content is not None:
                inputs.texts(json.loads(content))
            components.text_block(_facts(asked, data, row))
            _elsewhere(data, name)
        with right:
            if data.answers is not None:
                _over_time(workspace, data, name)


def _facts(asked: Asked, data: tables.TrainingData, row: pd.Series) -> str:
    """What is known of a training example, in sentences."""
    said = [f"Used {count_text(int(row['uses']), 'time')} by {asked.stage}."]
    if pd.notna(row["label"]):
        said.append(f"Label: {row['label']}.")
    if pd.notna(row["other_labels"]):
        said.append(f"The same input is there with the label {row['other_labels']} too.")
    if data.answers is not None:
        told = [f"final model {row['answer']}", f"model before the stage {row['before']}"]
        if pd.notna(row["without"]):
            told.append(f"model without the stage {row['without']}")
        said.append(f"Answers: {', '.join(told)}.")
    if SUSPECT in row and pd.notna(row[SUSPECT]):
        said.append(f"Its label is doubted by {row[SUSPECT]}.")
    if CONTRIBUTION in row and isfinite(row[CONTRIBUTION]):
        value = gain_text(float(row[CONTRIBUTION]), asked.behaviour)
        way = "helped" if gain(float(row[CONTRIBUTION]), asked.behaviour) > 0 else "hurt"
        said.append(f"It {way} {asked.about}: {value}, to first order.")
    return " ".join(said)


def _elsewhere(data: tables.TrainingData, name: str) -> None:
    """Every place in which an example occurs again."""
    if data.duplicates is None:
        return
    own = data.duplicates[data.duplicates["example_id"] == name]
    for row in own.sort_values("similarity", ascending=False).to_dict("records"):
        what = "Evaluation set" if row["where"] == "set" else "Stage"
        alike = "the same input"
        if row["similarity"] < 1:
            alike = f"nearly the same text ({row['similarity']:.0%} of shingles in common)"
            if data.facts.kind == "image":
                alike = f"nearly the same image (correlation {row['similarity']:.3f})"
        label = "" if pd.isna(row["other_label"]) else f", labelled {row['other_label']}"
        leak = " It has leaked." if row["where"] == "set" else ""
        components.text_block(
            f"{what} {row['place']}: {alike}, {row['other_id']}{label}.{leak}", muted=True
        )


def _over_time(workspace: Workspace, data: tables.TrainingData, name: str) -> None:
    assert data.answers is not None, "only called where there are answers"
    counts = {stage.name: max(stage.updates, 1) for stage in workspace.run.stages}
    behaviour: Behaviour = replace(
        data.answers.behaviour.behaviour(), description="Of a training example by itself."
    )
    rows = data.over_time(name)
    rows = rows[rows["value"].map(isfinite)]
    if rows.empty:
        components.text_block("It has no loss by itself.", muted=True)
        return
    components.text_block("Its own loss over time", muted=True)
    chart = drawing.chart(observed_path, rows, behaviour, counts, charts.EITHER)
    about = About(
        title=f"Own loss of training example {name} of {data.facts.stage}",
        behaviour=behaviour.name,
        observed=RECORDED,
        filters={"training example": name},
    )
    components.show(chart, "own-loss", about)
