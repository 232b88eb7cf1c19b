"""What is known on the Trust page of first order, which orders training examples."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.contributions.contribution_table import Question, Stored, load_contributions
from stagelens.analyses.selection.outcomes import Outcome, stored_outcomes
from stagelens.analyses.selection.sentences import chosen, verdict
from stagelens.analyses.smoothness import sentences
from stagelens.analyses.smoothness.smoothness import load_smoothness
from stagelens.analyses.without_data.first_order import against_replays
from stagelens.analyses.without_data.sentences import held_against
from stagelens.estimators.stage_trust import REPLAY
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, selection_bars, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import replay_loaders
from stagelens.wording.numbers import count_text, phrase


def of_training_data(workspace: Workspace) -> None:
    """Per stage what checks and replays say of first order, with the way to more of it."""
    told = [
        (stage, said, outcome)
        for stage in workspace.stages
        for said, outcome in [(_known_of(workspace, stage), _chosen_of(workspace, stage))]
        if said or outcome is not None
    ]
    if not told:
        return
    st.header("First order of training data", anchor=False)
    components.text_block(
        "Which training examples helped or hurt is said to first order, which no replay of a "
        "stage's effect checks. What is known of it:"
    )
    for stage, said, outcome in told:
        if said:
            components.text_block(f"{stage}: {' '.join(said)}")
        if outcome is not None:
            _bars(stage, outcome)
        st.page_link(
            "pages/1_Examples.py",
            label=components.plain(f"What to train on next, {stage}"),
            icon=":material/checklist:",
            query_params=components.here(stage=stage, **{state.VIEW: state.OF_A_STAGE}),
            help="Training data of this stage: choose those that help a target, proved by replay.",
        )


def _known_of(workspace: Workspace, stage: str) -> list[str]:
    """The check of smoothness, and how far first order was off what was replayed."""
    said, kind = [], workspace.bar.behaviour
    check = load_smoothness(workspace.run, stage, workspace.examples)
    if check is not None and (check.table["behaviour"] == kind.name).any():
        said.append(sentences.verdict(check, kind))
    replays = replay_loaders.replayed_choices(workspace.run, workspace.examples, stage)
    own = [one for one in replays if kind.name in one.behaviours]
    if not own:
        return said
    said.append(
        f"{count_text(len(own), 'choice')} of its training examples left out by replay (Overview)."
    )
    known = _contributions(workspace, stage)
    pairs = [] if known is None else against_replays(known, own, kind)
    if held := held_against(pairs, stage, kind):
        said.append(held)
    return said


def _contributions(workspace: Workspace, stage: str) -> Stored | None:
    """Contributions to the mean of all examples that reach the stage, where they are stored."""
    ids = Question().of(workspace.examples)
    index = workspace.stages.index(stage)
    for since in reversed(workspace.stages[: index + 1]):
        asked = (workspace.run, workspace.examples, workspace.bar.behaviour.name, ids, since)
        if (found := load_contributions(*asked)) is not None:
            return found
    return None


def _chosen_of(workspace: Workspace, stage: str) -> Outcome | None:
    """The latest choice of the stage's examples that was proved by replay."""
    for path in stored_outcomes(workspace.run, workspace.examples, stage):
        found = replay_loaders.outcome(workspace.run, workspace.examples, path)
        if found is not None and found.proof is not None:
            return found
    return None


def _bars(stage: str, outcome: Outcome) -> None:
    """What choosing by first order was worth."""
    components.text_block(f"{chosen(outcome)}. {verdict(outcome, outcome.behaviour)}")
    about = About(
        title=f"What choosing among examples of {stage} did to the {phrase(outcome.behaviour)}",
        behaviour=outcome.behaviour.name,
        estimator=REPLAY,
        trust=(),
    )
    selection_bars.shown(outcome, f"trust-chosen-{stage}", about)
