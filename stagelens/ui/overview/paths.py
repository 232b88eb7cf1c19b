"""The section on paths: what was learned, forgotten or flipped, and which stage caused it."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from stagelens.analyses.paths.answers import Paths
from stagelens.analyses.paths.chance import (
    MISFIT,
    fits,
    flipped_by_end,
    lost_words,
    without_lucky_guesses,
)
from stagelens.charts.alluvial import MOST_BOUNDARIES, alluvial
from stagelens.charts.style import EITHER
from stagelens.contracts import ACCURACY
from stagelens.report.paths import ONE_PATH
from stagelens.report.provenance import RECORDED
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, state
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About, pinnable
from stagelens.ui.reading import loaders, path_loaders
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.numbers import count_text
from stagelens.wording.trust_words import trust_word

from .board_words import Focus

_KEY = "paths"


def section(workspace: Workspace, effects: Effects, focus: Focus, note: str = "") -> None:
    """Answers from boundary to boundary; nothing where they were not measured."""
    at, name = workspace.at, workspace.examples.name
    found = path_loaders.paths(at, name)
    if found is None:
        return
    kept = path_loaders.of_group(at, name, focus.by, focus.group)
    shown = found if kept is None else found.only(kept)
    counts = shown.counts()
    if not counts:
        return
    st.header(components.plain(f"Paths of {focus.examples(workspace.noun)}"), anchor=False)
    components.text_block(
        f"The answers to {count_text(sum(counts.values()), workspace.noun)} after every boundary: "
        "learned (wrong, then right), forgotten (right, then wrong), or flipped: changed more than "
        "once, with its end.",
        muted=True,
    )
    if note:
        components.text_block(note, muted=True)
    when_opened(
        "paths",
        "Paths from boundary to boundary, and which stage caused what",
        lambda: _paths(workspace, effects, shown, focus),
    )


def _paths(workspace: Workspace, effects: Effects, found: Paths, focus: Focus) -> None:
    by, group = focus.by, focus.group
    at, name, counts = workspace.at, workspace.examples.name, found.counts()
    filters: Mapping[str, str] = {by: group} if by is not None and group is not None else {}
    about = About(behaviour=ACCURACY.name, observed=RECORDED, filters=filters)
    if len(found.boundaries) <= MOST_BOUNDARIES:
        _chart(workspace, counts, found.boundaries, about, focus)
    counted = without_lucky_guesses(found)
    known = fits(counted)
    # Flipped ones by how they end; the rows sum to all.
    kinds = [
        each
        for one in counted
        for each in (flipped_by_end(found) if one.kind == "flipped" else (one,))
    ]
    table = pd.DataFrame(
        {
            "path": [one.kind for one in kinds],
            f"{workspace.noun}s": [one.count for one in kinds],
        }
    )
    if known:
        table["without lucky guesses"] = [round(one.shown()[0]) for one in kinds]
        table["95 %"] = [one.interval_text() for one in kinds]
    components.table(
        table,
        "path-kinds",
        "How many examples took each kind of path"
        + (", and an estimate of how many would have without lucky guesses." if known else "."),
        about,
        height="content",
        column_config={
            "without lucky guesses": st.column_config.NumberColumn(
                "without lucky guesses",
                help="An estimate of how many there would be had no answer been right by luck. An "
                "answer that the model does not know is taken to be one of "
                f"{found.choices:,} at random. Luck makes paths up and hides others (who was right "
                "by luck before training seems always right), so this can be more than was "
                "counted.",
            ),
            "95 %": st.column_config.TextColumn("95 %", help="Over the choice of examples."),
        },
    )
    components.text_block(lost_words(found, workspace.noun))
    if not known:
        components.text_block(MISFIT, muted=True)
    elif sharing := loaders.clustered(at, name, workspace.noun):
        components.text_block(sharing, muted=True)
    _by_stage(workspace, effects, by, group, filters)


def _chart(
    workspace: Workspace,
    counts: Mapping[str, int],
    boundaries: tuple[str, ...],
    about: About,
    focus: Focus,
) -> None:
    chart = drawing.chart(alluvial, counts, boundaries, workspace.noun, EITHER)

    def clicked() -> None:
        points = st.session_state[_KEY]["selection"]["points"]
        if points:
            st.session_state[state.session_key(_KEY)] = str(points[0]["customdata"])

    with pinnable(_KEY, chart, chart.alt, about):
        st.plotly_chart(
            chart.figure,
            theme=None,
            key=_KEY,
            alt=chart.alt,
            config={"displayModeBar": False},
            on_select=clicked,
            selection_mode="points",
        )
    picked = st.session_state.pop(state.session_key(_KEY), None)
    if picked in counts:
        components.go(components.EXAMPLES, **focus.query, path=path_loaders.option(picked))
    st.caption(
        f"Click a dot to look at the {workspace.noun}s on its path. {ONE_PATH} The table below "
        "counts all paths of a kind, and the Examples page finds each one."
    )


def _by_stage(
    workspace: Workspace,
    effects: Effects,
    by: str | None,
    group: str | None,
    filters: Mapping[str, str],
) -> None:
    """Where it became visible, beside who caused it."""
    at, name = workspace.at, workspace.examples.name
    rows = path_loaders.table(at, name, effects.estimator, by, group)
    known = loaders.best_known(at, name, effects.estimator)
    trust = {} if known is None else known.trust
    shown = pd.DataFrame(
        {
            "stage": rows["stage"],
            "became right": rows["became_right"],
            "became wrong": rows["became_wrong"],
            "seen after": rows["seen_after"],
            "right because": rows["right_because"],
            "wrong because": rows["wrong_because"],
            "trust": [
                trust_word(trust[stage], ACCURACY.name) if stage in trust else "not known"
                for stage in rows["stage"]
            ],
        }
    )
    config = st.column_config
    helps = {
        "became right": "Answers that were wrong at the boundary before the stage and right after.",
        "became wrong": "Answers that were right at the boundary before the stage and wrong after.",
        "seen after": "The difference of the two; over all stages it sums to what training did.",
        "right because": "Right in the end, and wrong without the stage.",
        "wrong because": "Wrong in the end, and right without the stage.",
    }
    about = About(behaviour=ACCURACY.name, estimator=effects.estimator, filters=filters)
    components.table(
        shown,
        "path-stages",
        "Where answers changed, beside which stage caused the final ones.",
        about,
        height="content",
        column_config={
            column: config.NumberColumn(column, format="%d", help=text)
            for column, text in helps.items()
        }
        | {"trust": config.TextColumn("trust", help="Of the answers without the stage.")},
    )
    components.text_block(
        "Where it became visible (the first three numbers) is not who caused it (the next two): "
        "later stages hide or bring out what earlier ones did.",
        muted=True,
    )
