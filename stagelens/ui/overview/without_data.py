"""Training examples that were left out of a stage by replay, beside the stages themselves."""

from __future__ import annotations

import streamlit as st

from stagelens import charts
from stagelens.analyses.without_data.as_stages import WithoutSome, without_some
from stagelens.analyses.without_data.chosen import DRAWN
from stagelens.analyses.without_data.stored import stored_without_data
from stagelens.contracts import Behaviour
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About
from stagelens.wording.numbers import count_text, phrase

from .board_words import Focus

_SAID = 3
"""Replays that are told in a sentence before the bars are opened: the latest."""


def section(workspace: Workspace, behaviour: Behaviour, focus: Focus) -> None:
    """What is stored of replays without training examples; nothing where nothing is.

    Args:
        workspace: What is open.
        behaviour: Of the bar.
        focus: Whose examples the page is about.
    """
    files = stored_without_data(workspace.run, workspace.examples)
    if not files:
        return
    stamp = "-".join(f"{path.name}{path.stat().st_mtime_ns:x}" for path in files)
    found = _found(stamp, workspace, workspace.examples)
    if found is None or behaviour.name not in found.behaviours:
        return
    means = found.means(behaviour, _ids(workspace, focus)).assign(group=focus.group)
    about = focus.examples(workspace.noun)
    st.header("Without some training data", anchor=False)
    said = list(found.sentences(means, behaviour, workspace.noun, focus.column))
    components.sentences(said[:_SAID])

    def chart() -> charts.Chart:
        return drawing.chart(
            charts.credit_and_blame, means, behaviour, found.trust, charts.EITHER, about
        )

    about_it = About(
        title=f"Effect of training examples on the {phrase(behaviour)} of {about}",
        behaviour=behaviour.name,
        sentences=lambda: said,
        estimator="",  # each as its trust says: some may be coarse
        trust=tuple(found.trust.values()),
    )
    when_opened(
        "without-data",
        f"Bars of {count_text(len(found.trust), 'replay')} without training examples",
        lambda: components.show(chart(), "without-data-bars", about_it),
    )
    more = f" {found.left_out:,} earlier ones are not shown." if found.left_out else ""
    components.text_block(
        f"{DRAWN} Which examples, and others: Examples, tab Training data.{more}", muted=True
    )


@st.cache_resource(max_entries=8, show_spinner=False)
def _found(stamp: str, _workspace: Workspace, _examples: EvaluationSet) -> WithoutSome | None:
    # Paths are made of what was asked, so that names and times of the files say what is in them.
    return without_some(_workspace.run, _examples)


def _ids(workspace: Workspace, focus: Focus) -> frozenset[str] | None:
    """The evaluation examples that the page is about; None for all."""
    effects = workspace.effects
    if focus.group is None or focus.by is None or effects is None:
        return None
    rows = effects.first
    own = rows[rows[focus.by].astype(str) == focus.group] if focus.by in rows else rows
    return frozenset(own["example_id"].astype(str))
