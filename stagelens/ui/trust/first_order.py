"""What is known on the Trust page of first order, which orders training examples."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.selection.outcomes import load_outcome, stored_outcomes
from stagelens.analyses.selection.sentences import verdict
from stagelens.analyses.smoothness import sentences
from stagelens.analyses.smoothness.smoothness import load_smoothness
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state


def of_training_data(workspace: Workspace) -> None:
    """Per stage what checks and replays say of first order, with the way to more of it."""
    told = [(stage, said) for stage in workspace.stages if (said := _known_of(workspace, stage))]
    if not told:
        return
    st.header("First order of training data", anchor=False)
    components.text_block(
        "Which training examples helped or hurt is said to first order, which no replay of a "
        "stage's effect checks. What is known of it:"
    )
    for stage, said in told:
        components.text_block(f"{stage}: {' '.join(said)}")
        st.page_link(
            "pages/1_Examples.py",
            label=components.plain(f"What to train on next, {stage}"),
            icon=":material/checklist:",
            query_params=components.here(stage=stage, **{state.VIEW: state.OF_A_STAGE}),
            help="Training data of this stage: choose those that help a target, proved by replay.",
        )


def _known_of(workspace: Workspace, stage: str) -> list[str]:
    """The check of smoothness, and what choosing by first order was worth by replay."""
    said, kind = [], workspace.bar.behaviour
    check = load_smoothness(workspace.run, stage, workspace.examples)
    if check is not None and (check.table["behaviour"] == kind.name).any():
        said.append(sentences.verdict(check, kind))
    for path in stored_outcomes(workspace.run, workspace.examples, stage):
        found = load_outcome(workspace.run, workspace.examples, path)
        if found is not None and found.proof is not None:
            said.append(verdict(found, found.behaviour))
            break  # the latest
    return said
