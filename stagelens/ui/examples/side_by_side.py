"""Up to five examples side by side: inputs, answers, and every stage's effect on one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.charts.style import short
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, inputs, state
from stagelens.ui.reading import browse, loaders
from stagelens.ui.reading.browse import Chosen, effect_column
from stagelens.ui.reading.example_errors import example_errors
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.numbers import phrase
from stagelens.wording.sentences import Sentence

Said = Callable[[pd.Series], Sequence[Sentence]]
"""Puts the effect of every stage on an example into words."""

_SIDE = 160
"""Pixels on the longer side of an image."""
_LONGEST = 240
"""Longest part of a text, in characters."""


def button(chosen: Chosen, example_id: str) -> None:
    """A button that adds an example to those side by side, or takes it out again."""
    ids = state.side_by_side(chosen.every.places)
    there = example_id in ids
    full = not there and len(ids) >= state.MOST_BESIDE
    after = [name for name in ids if name != example_id] if there else [*ids, example_id]
    st.button(
        "In side by side" if there else "Add to side by side",
        icon=":material/check:" if there else ":material/add:",
        key="beside-this",
        on_click=state.put_side_by_side,
        args=(after,),
        disabled=full,
        help=f"The tab {state.SIDE_BY_SIDE} is full: it holds {state.MOST_BESIDE} examples."
        if full
        else f"{'Takes it out of' if there else 'Puts it into'} the tab {state.SIDE_BY_SIDE}, "
        f"which holds up to {state.MOST_BESIDE} examples.",
    )


def side_by_side_tab(workspace: Workspace, effects: Effects, chosen: Chosen, said: Said) -> None:
    """The examples that were put side by side.

    Args:
        workspace: What is open.
        effects: Whose trust is printed beside the bars.
        chosen: The examples and the behaviour that they are compared on.
        said: Words for the effects on a row of ``chosen.every.frame``.
    """
    ids = state.side_by_side(chosen.every.places)
    if not ids:
        st.info(
            "Nothing here yet: the button above adds the chosen example.",
            icon=":material/compare_arrows:",
        )
        return
    rows = chosen.every.frame.iloc[[chosen.every.places[name] for name in ids]]
    rows = rows.set_index("example_id", drop=False)
    # Of these examples alone, not of the set; where it is 0 there is nothing to scale by.
    largest = browse.largest(rows, workspace.stages) or None
    behaviour = chosen.behaviour
    components.text_block(
        f"Effect of each stage on the {phrase(behaviour)}, all on the same scale: credit to the "
        "right, blame to the left.",
        muted=True,
    )
    errors = example_errors(workspace.at, workspace.examples.name, effects, behaviour)
    error = [errors.get(stage, float("nan")) for stage in workspace.stages]
    with st.grid(len(ids), min_column_width=190, gap="medium") as grid:
        for example_id in ids:
            with grid.cell():
                row = rows.loc[example_id]
                _input(workspace, example_id, ids)
                _answer(workspace, row)
                values = {stage: float(row[effect_column(stage)]) for stage in workspace.stages}
                effect = list(values.values())
                bars = pd.DataFrame(
                    {
                        **{"stage": list(values), "effect": effect, "error": error},
                        "final": float(row["final"]),
                    }
                )
                st.html(charts.effect_bars(bars, behaviour, effects.trust, largest).html)
                # A refused stage has no number, and max with a NaN depends on the order.
                known = {stage: abs(value) for stage, value in values.items() if isfinite(value)}
                if known:
                    strongest = workspace.stages.index(max(known, key=lambda stage: known[stage]))
                    components.sentences([said(row)[strongest]], size=".9rem", brief=True)


def _input(workspace: Workspace, example_id: str, ids: Sequence[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.html(f"<b style='overflow-wrap:anywhere'><bdi>{components.shown(example_id)}</bdi></b>")
        st.button(
            "Remove",
            icon=":material/close:",
            key=f"beside-without-{example_id}",
            type="tertiary",
            on_click=state.put_side_by_side,
            args=([name for name in ids if name != example_id],),
        )
    name = workspace.examples.name
    if workspace.noun == "image":
        picture = loaders.picture(workspace.at, name, example_id, _SIDE)
        st.image(picture, width=_SIDE, alt=f"The input of example {example_id}")
    else:
        content = loaders.texts(workspace.at, name, [example_id])[0]
        inputs.texts({field: text and short(text, _LONGEST) for field, text in content.items()})


def _answer(workspace: Workspace, row: pd.Series) -> None:
    verdict = {1.0: "✓ ", 0.0: "✗ "}.get(row["right"], "")
    label = f"label {row['label']}, " if workspace.labelled and pd.notna(row["label"]) else ""
    components.text_block(f"{label}answer {verdict}{row['prediction']}")
