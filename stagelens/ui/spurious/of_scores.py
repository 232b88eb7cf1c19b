"""What *Spurious features* shows where the behaviour is a score of answers."""

from __future__ import annotations

import streamlit as st

from stagelens.contracts import is_score
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects


def measured(workspace: Workspace, effects: Effects) -> Effects | None:
    """The effects on what was measured, also where a score is chosen; None without any."""
    if not is_score(workspace.bar.behaviour):
        return effects
    known = [name for name in effects.behaviours if name not in effects.judged]
    if not known:
        return None
    return loaders.effects(workspace.at, workspace.examples.name, effects.estimator)


def none_here(workspace: Workspace, what: str) -> bool:
    """Say that a part of the page is not about scores, where one is chosen."""
    if not is_score(workspace.bar.behaviour):
        return False
    st.info(
        components.plain(
            f"{what}, and an answer's score is no sum over those; choose another behaviour above. "
            "Which words of prompts go with the effect on a score: Found without metadata."
        ),
        icon=":material/forum:",
    )
    return True
