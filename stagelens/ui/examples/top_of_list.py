"""The first training examples of a list, left out by replay: as many as are asked for."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from stagelens.analyses.contributions.contribution_table import Stored
from stagelens.analyses.without_data.chosen import Chosen, one_line
from stagelens.ui.opening.workspace import Workspace
from stagelens.wording.numbers import count_text

from . import left_out
from .contributions import Asked
from .training_filters import Wanted


def leave_out(
    workspace: Workspace,
    asked: Asked,
    chosen: pd.DataFrame,
    wanted: Wanted,
    found: Stored | None,
    aside: bool = False,
) -> tuple[str, ...]:
    """Leave out the first examples of a list, as many as are asked for.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        chosen: The list.
        wanted: What was asked of it.
        found: What training examples contributed; None where that is not known.
        aside: Whether something else comes first.

    Returns:
        Their ids.
    """
    if chosen.empty:
        return ()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        most = len(chosen)
        count = st.number_input(
            "How many",
            1,
            most,
            min(left_out.FIRST, most),
            key=f"without-count-{most}",
            width=150,
            help="From the top of the list, over all its pages.",
        )
        ids = tuple(chosen["example_id"].head(int(count)))
        every, words = int(count) == most, wanted.words()
        said = count_text(len(ids), "training example")
        said = f"{said} {words}".strip() if every else f"the first {said} of the list"
        place = st.container()
    kept = ", ".join(filter(None, [words] if every else [wanted.first(asked.about), words]))
    what = replace(
        left_out.left_out(found, Chosen(asked.stage, ids, one_line(kept)), said), aside=aside
    )
    left_out.button_or_result(workspace, asked, what, "without-list", place)
    return ids
