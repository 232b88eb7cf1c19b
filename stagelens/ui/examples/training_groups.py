"""What groups of a stage's training examples contributed together, and the first one replayed."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from stagelens.analyses.training_data.groups import CONTRIBUTION, group_table
from stagelens.analyses.without_data.chosen import Chosen
from stagelens.report.provenance import FIRST_ORDER
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.pieces.pinning import About
from stagelens.wording.numbers import axis_unit, count_text, phrase
from stagelens.wording.signs import gain, gain_range_text, marked

from . import left_out
from .contributions import Asked
from .left_out import LeftOut

_SHOWN = 12
"""Groups of a table: the largest amounts."""


def groups_of_a_stage(
    workspace: Workspace,
    asked: Asked,
    frame: pd.DataFrame,
    groups: dict[str, pd.Series],
    listed: tuple[str, ...],
) -> None:
    """A table of groups, and a button that replays the training without the first one.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        frame: Its training examples with their contributions.
        groups: What they can be grouped by.
        listed: Those that the list offers to leave out, which are not offered twice.
    """
    if not groups:
        return
    st.html(components.heading_html("Groups of training examples"))
    by = st.selectbox(
        "Groups by",
        list(groups),
        key="t-by",
        bind="query-params",
        help="Columns of the recorded data set, or of a file that stagelens training-data "
        "--columns was given, come first.",
    )
    table = group_table(frame, groups[by])
    table = table.assign(gain=gain(table["contribution"], asked.behaviour))
    shown = table.head(_SHOWN)
    largest = float(shown["gain"].abs().max()) or 1.0
    unit = axis_unit(asked.behaviour)
    head = f"contribution{f' ({unit})' if unit else ''}"
    cells = pd.DataFrame(
        {
            by: shown["group"],
            head: [marked(one, asked.behaviour, unit=False) for one in shown["gain"]],
            "95 % interval": [
                "not known"
                if pd.isna(row.low)
                else gain_range_text(row.low, row.high, asked.behaviour, unit=False)
                for row in shown.itertuples()
            ],
            "examples": shown["examples"],
            "uses": shown["uses"],
        }
    )
    components.table(
        cells,
        "training-groups",
        f"Contribution of groups of training examples of {asked.stage} to the "
        f"{phrase(asked.behaviour)} of {asked.about}, by {by}, the largest amount first.",
        About(
            behaviour=asked.behaviour.name,
            estimator=FIRST_ORDER,
            trust=(),
        ),
        tints={head: (shown["gain"] / largest).tolist()},
        height="content",
    )
    more = len(table) - len(shown)
    components.text_block(
        "▲ helped, ▼ hurt, to first order, added up. Intervals say how far sums might be off had "
        "other examples of a group been drawn, as many of them; what first order leaves out grows "
        "with a group, and only a replay knows it."
        + (f" {more:,} more groups contributed less." if more > 0 else ""),
        muted=True,
    )
    first = _first(table, bool(gain(asked.effect, asked.behaviour) < 0))
    own = frame[(groups[by] == first).fillna(False)]
    ids = tuple(own["example_id"])
    words = f"{count_text(len(ids), 'training example')} with {by} {first}"
    if set(ids) == set(listed):
        components.text_block("The first group is what the list above leaves out.", muted=True)
        return
    together = left_out.added_up(own[CONTRIBUTION])
    what = LeftOut(words, Chosen(asked.stage, ids), estimate=together)
    left_out.button_or_result(workspace, asked, what, "without-group")


def _first(table: pd.DataFrame, blamed: bool) -> str:
    """The group that did most of what the stage did; of all, where none did."""
    own = table[table["gain"] < 0] if blamed else table[table["gain"] > 0]
    return str((own if len(own) else table)["group"].iloc[0])
