"""Answers that an edit flipped, linked to the page Examples, and what else it changed."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from stagelens.analyses.removal import comparison
from stagelens.analyses.removal.comparison import AFTER, BEFORE
from stagelens.analyses.removal.spec import Edit
from stagelens.ui.pieces import components, state
from stagelens.ui.reading import browse, loaders
from stagelens.wording.numbers import certainty_text, count_text, number

from . import edited_models
from .edited_models import ALL, Compared, RemovalView

_THUMBNAIL = 40


def table(view: RemovalView, compared: Compared, edit: Edit) -> None:
    """The flipped answers, a page at a time."""
    rows = compared.flipped
    counts = comparison.answer_changes(rows)
    st.header("Flipped answers", anchor=False)
    if view.workspace.continues_text:
        components.text_block(
            "An answer here is the most probable next token after the prompt; what follows it may "
            "differ where that is the same. Whole answers are scored on the Overview.",
            muted=True,
        )
    if rows.empty:
        components.text_block("No answer changed.", muted=True)
        return
    changed = count_text(len(rows), "answer")
    components.text_block(
        f"{changed} changed: {counts.mended} mended (wrong before, right after), {counts.broken} "
        f"broken (right before, wrong after), {counts.other} wrong both times."
    )
    options = ["all", *(n for n in ("broken", "mended", "other") if getattr(counts, n))]
    kind = st.segmented_control(
        "Show", options, default="all", key="remove-flips", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    shown = rows if kind in (None, "all") else rows[rows["change"] == kind]
    pages = browse.pages(len(shown))
    page = 1
    if pages > 1:
        # A key for every filter: a page of the longer list may not exist in the shorter one.
        page = st.pagination(pages, key=f"remove-page-{kind}", max_visible_pages=5)
    start = (page - 1) * browse.PAGE_SIZE
    _flip_table(view, shown.iloc[start : start + browse.PAGE_SIZE], edit)
    order = "the surest answers of the edited model first"
    if shown["change"].nunique(dropna=False) > 1:
        order = f"broken ones first, and of each kind {order}"
    st.caption(
        f"Showing {start + 1} to {min(start + browse.PAGE_SIZE, len(shown))} of {len(shown)}, "
        f"{order}. An id opens the example on the Examples page."
    )


def _flip_table(view: RemovalView, rows: pd.DataFrame, edit: Edit) -> None:
    at, name = view.workspace.at, view.workspace.examples.name
    ids = rows["example_id"].tolist()
    image = view.workspace.examples.kind == "image"
    inputs = loaders.pictures(at, name, ids, _THUMBNAIL) if image else loaders.texts(at, name, ids)
    marks = {"mended": "✓ mended", "broken": "✗ broken", "other": "other"}
    config = st.column_config
    shown = pd.DataFrame(
        {
            "input": inputs,
            "example": [components.address("Examples", **{state.EXAMPLE: i}) for i in ids],
            "label": rows["label"].tolist(),
            "before": _answers(rows, "before"),
            "after": _answers(rows, "after"),
            "change": [marks.get(str(change), "no label") for change in rows["change"]],
        }
    )
    components.table(
        shown,
        "remove-flipped",
        f"{len(ids)} examples whose answer changed, with the answers before and after.",
        edited_models.about(view, edit),
        # A pinned finding keeps ids: its links would lead nowhere on another server.
        kept=shown.assign(example=ids),
        row_height=46,
        height="content",
        column_config={
            "input": config.ImageColumn("image", width=50)
            if image
            else config.TextColumn("text", width="medium"),
            "example": config.LinkColumn("example", display_text=rf"{state.EXAMPLE}=([^&]*)"),
        },
    )


def _answers(rows: pd.DataFrame, side: str) -> list[str]:
    return [
        # NaN, where an answer has no confidence, is not equal to itself.
        f"{answer}, {certainty_text(sure)}" if sure == sure else str(answer)
        for answer, sure in zip(rows[side], rows[f"confidence_{side}"], strict=True)
    ]


def control(view: RemovalView, compared: Compared, edit: Edit) -> None:
    """Mean change of every behaviour on a control group."""
    st.header("What else changed", anchor=False)
    options = [ALL, *view.workspace.groups] if view.by is not None else [ALL]
    best = options[0]
    if view.by is not None:
        rows = compared.metrics.groups
        rows = rows[(rows["model"] == BEFORE) & rows["group"].notna()]
        # The group served best is the one that an edit for another group must not harm.
        best = str(rows.loc[rows["accuracy"].idxmax(), "group"]) if len(rows) else best
    chosen = st.selectbox(
        "Control group",
        options,
        index=options.index(best) if best in options else 0,
        key="remove-watched",
        width=260,
        help="Examples that the edit is not meant to change.",
    )
    before, after = compared.answers[BEFORE], compared.answers[AFTER]
    if chosen != ALL and view.by is not None:
        mine = (before[view.by].astype(str) == chosen).to_numpy()
        before, after = before[mine], after[mine]
    kinds = [b for name, b in view.effects.behaviours.items() if name in before]
    rows = [
        {
            "behaviour": change.behaviour.name,
            "better": change.behaviour.better,
            "mean before": number(change.before),
            "mean after": number(change.after),
            "mean change": f"{number(change.change)} ({number(change.low)} to "
            f"{number(change.high)})",
        }
        for change in comparison.mean_changes(before, after, kinds)
    ]
    said = f"Mean change of every behaviour on {chosen}, with 95 % intervals over examples."
    about = edited_models.about(view, edit, "")
    components.table(pd.DataFrame(rows), "remove-changes", said, about, height="content")
    st.caption(f"{count_text(len(before), view.workspace.noun)}; 95 % intervals over them.")
