"""The table of examples with its pages, and in its place the example that is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import pandas as pd
import streamlit as st

from stagelens.analyses.shares.share_table import SEEN_AFTER, SHARE, WITHOUT
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_line
from stagelens.ui.reading import browse
from stagelens.ui.reading.browse import (
    Chosen,
    effect_column,
    noise_column,
)
from stagelens.ui.reading.example_errors import example_errors
from stagelens.ui.reading.loaders import Effects, Source
from stagelens.wording.numbers import axis_unit, phrase
from stagelens.wording.signs import gain_range_text

from . import cards, drilldown, filters
from .table_cells import (
    answer_title,
    answers_without,
    by_effects,
    cells_of,
    columns_of,
    fields_of,
    input_column,
    tints_of,
    trust_of,
)

_PAGE_STATE = state.session_key("page")
_WHAT = {WITHOUT: "stage effects", SHARE: "shares", SEEN_AFTER: "what is seen after stages"}
_COLUMNS = {
    SHARE: "Columns hold each stage's share, not what would be without it: “Credit by”, under "
    "More, is set to Share.",
    SEEN_AFTER: "Columns hold what was seen after each stage, not what would be without it: "
    "“Credit by”, under More, is set to Seen after.",
}
"""What the columns of stages hold where it is not what people find there by default."""
_BECAUSE = {
    WITHOUT: "because of the stage",
    SHARE: "by the stage's share",
    SEEN_AFTER: "after the stage than before",
}


@st.fragment
@components.errors_told()
def of_the_set(workspace: Workspace, effects: Effects) -> None:
    """Filters, and the examples that pass; a change here does not redraw the rest of the page."""
    chosen = filters.choose(workspace, effects)
    _browser(workspace, effects, chosen)


@st.fragment
@components.errors_told()
def _browser(workspace: Workspace, effects: Effects, chosen: Chosen) -> None:
    """The table, or the example that is opened; clicks here do not redraw the filters."""
    asked = st.query_params.get(state.EXAMPLE)
    example_id = state.example(chosen.every.places)
    if asked and asked not in chosen.every.places:
        st.warning(
            "The example that the link names is not in this set; pick one from the table.",
            icon=":material/link_off:",
        )
    if example_id is None:
        table = st.empty()
        with table.container():
            example_id = _table(workspace, effects, chosen)
        if example_id is None:
            return
        table.empty()  # a click opened one: whatever was drawn of the table goes
    st.html(filters.HIDDEN)
    drilldown.opened(workspace, effects, chosen, example_id)


def _table(workspace: Workspace, effects: Effects, chosen: Chosen) -> str | None:
    """One page of the table; returns the example that a click has just opened."""
    if not len(chosen):
        _from_the_first_page(chosen)
        filters.count_and_export(workspace, effects, chosen)
        st.info("No examples are left. Loosen a filter.", icon=":material/filter_alt_off:")
        return None
    with st.container(horizontal=True, vertical_alignment="center", key="table-head"):
        filters.count_and_export(workspace, effects, chosen)
        drilldown.first_button(chosen)
        page = _page(chosen)
    shown = chosen.page(page)
    start = (page - 1) * browse.PAGE_SIZE
    ids = shown["example_id"].tolist()
    key = f"table-{chosen.filters.key}-{chosen.behaviour.name}-{page}-{workspace.examples.name}"
    picked = _picked(key, ids)
    if picked is not None:
        state.choose(picked)
        return picked
    unit = axis_unit(chosen.behaviour)
    columns = _stages(workspace, chosen)
    cells = _page_of_cells(
        workspace.at,
        effects.estimator,
        key,
        lambda: cells_of(workspace, effects, chosen, shown, columns),
    )
    tints = tints_of(chosen, shown, columns)
    if not by_effects(chosen):
        components.text_block(_COLUMNS[chosen.filters.credit])
    with st.container(key=cards.TABLE):
        components.table(
            cells,
            key,
            f"Examples {start + 1:,} to {start + len(ids):,} of {len(chosen):,}, with answers and "
            f"{_WHAT[chosen.filters.credit]} on the {phrase(chosen.behaviour)}"
            f"{f' in {unit}' if unit else ''}.",
            About(behaviour=chosen.behaviour.name),
            tints=tints,
            # Texts wrap only in rows of more than 64 pixels.
            row_height=46 if workspace.noun == "image" else 66,
            height="content",
            on_select="rerun",
            selection_mode=("single-row", "single-cell"),
            column_config=columns_of(workspace, effects, chosen, columns),
        )
    _as_cards(workspace, effects, chosen, shown, cells, tints, columns)
    better = chosen.behaviour.better
    trusts = trust_of(workspace, effects, chosen)
    known = {s: trusts[s] for s in workspace.stages if s in trusts}
    trust = components.plain(trust_line(known, chosen.behaviour.name))
    in_place = ""
    if chosen.behaviour.name != workspace.bar.behaviour.name:
        in_place = (
            f"One example is right or wrong, so its {chosen.behaviour.name} is shown in the place "
            f"of {workspace.bar.behaviour.name}. "
        )
    st.caption(
        f"{in_place}▲ credit: {phrase(chosen.behaviour)} {better} "
        f"{_BECAUSE[chosen.filters.credit]}. ▼ blame: "
        f"{'lower' if better == 'higher' else 'higher'}. "
        f"{_unsigned(known)}{_noise(workspace, shown) if by_effects(chosen) else ''}"
        f"{trust} Click one to look at it." + _left_out(workspace, columns)
    )
    return None


def _stages(workspace: Workspace, chosen: Chosen) -> list[str]:
    """The stages that have a column: of many, the strongest on this set, and the one chosen."""
    shown = {*chosen.every.strongest, chosen.filters.stage}
    return [stage for stage in workspace.stages if stage in shown]


def _left_out(workspace: Workspace, columns: Sequence[str]) -> str:
    if len(columns) == len(workspace.stages):
        return ""
    return (
        f" Columns are the {len(columns)} of {len(workspace.stages):,} stages with the largest "
        "effects on this set, and the one chosen above."
    )


def _unsigned(trust: Mapping[str, StageTrust]) -> str:
    """The legend of effects that are neither, where there may be any."""
    exact = all(each.trust in ("exact", "refused") for each in trust.values())
    return "" if exact else "± neither: its sign is uncertain, or its interval includes zero. "


def _noise(workspace: Workspace, shown: pd.DataFrame) -> str:
    """The legend of effects within training noise, where noise is known for any."""
    known = any(shown[noise_column(stage)].notna().any() for stage in workspace.stages)
    said = "≈ within training noise (below 2 noise sd of that very example), so not a finding. "
    return said if known else ""


def _picked(key: str, ids: Sequence[str]) -> str | None:
    """The example that a click opened.

    Positions are valid only on this page of these filters, which the key stands for; they are
    turned into an id at once, and only the id is kept.
    """
    # Taken away, so that the table has nothing chosen when it comes back.
    now = st.session_state.pop(key, None)
    if now is None:
        return None
    selection = now["selection"]
    places = [*(cell[0] for cell in selection["cells"]), *selection["rows"]]
    picked = [ids[at] for at in places if 0 <= at < len(ids)]
    return picked[0] if picked else None


def _page(chosen: Chosen) -> int:
    """The page to show: the one asked for, or the one with the example that was opened before.

    The widget's key changes only when something else moves the page, so that it keeps its focus
    while somebody pages by keyboard. No key is used twice, so that people who come back to earlier
    filters begin at their first page.
    """
    count, key = browse.pages(len(chosen)), chosen.filters.key
    first = (key, state.linked_page() or 1, 0)
    asked_of, page, moves = st.session_state.get(_PAGE_STATE, first)
    before = st.session_state.pop(drilldown.CLOSED, None)
    if before is not None:
        page, moves = chosen.page_of(before) or 1, moves + 1
    elif asked_of != key:
        page, moves = 1, moves + 1
    # A page from a link may lie beyond the last one.
    shown = st.pagination(count, default=min(page, count), key=f"page-{moves}", max_visible_pages=5)
    st.session_state[_PAGE_STATE] = (key, shown, moves)
    state.link_page(shown)
    return shown


def _from_the_first_page(chosen: Chosen) -> None:
    """After filters that leave nothing, any others begin at their first page."""
    _, _, moves = st.session_state.get(_PAGE_STATE, ("", 1, 0))
    st.session_state[_PAGE_STATE] = (chosen.filters.key, 1, moves + 1)
    state.link_page(1)


@st.cache_resource(max_entries=64, show_spinner=False)
def _page_of_cells(
    at: Source, estimator: str, key: str, _make: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """One page of the table, made once and reused while somebody steps through its examples."""
    # The key says it all: Streamlit leaves out arguments whose names begin with _.
    return _make()


def _named(texts: Mapping[str, str]) -> str:
    """The texts of an example, one below the other; those after the first under their names."""
    first, *others = texts.items()
    named = [f"{field}: {text.strip()}" for field, text in others if text]
    return "\n".join([first[1], *named])


def _as_cards(
    workspace: Workspace,
    effects: Effects,
    chosen: Chosen,
    shown: pd.DataFrame,
    cells: pd.DataFrame,
    tints: Mapping[str, list[float]],
    stages: Sequence[str],
) -> None:
    """The same examples for windows that are too narrow for the table."""
    fields, texts = fields_of(workspace, chosen.behaviour), []
    if workspace.noun != "image":
        rows = zip(*(cells[input_column(field)] for field in fields), strict=True)
        texts = [_named(dict(zip(fields, row, strict=True))) for row in rows]

    def quoted(answer: str) -> str:
        # Words of a language model would be read as words of the card.
        return f"“{answer.strip()}”" if workspace.continues_text else answer

    without = {}
    for stage in stages if by_effects(chosen) else []:
        told = zip(*answers_without(shown, stage), strict=True)
        without[stage] = [
            f"{quoted(answer)} {mark}".strip() if answer or mark else "" for answer, mark in told
        ]
    title = answer_title(workspace, chosen.behaviour)
    ends = _ends(workspace, effects, chosen, shown, stages) if by_effects(chosen) else {}
    cards.show(
        cells,
        texts,
        [f"{title} {quoted(answer)}" for answer in cells["answer"]],
        {stage: cells[effect_column(stage)].tolist() for stage in stages},
        {stage: tints[effect_column(stage)] for stage in stages},
        without,
        ends,
    )


def _ends(
    workspace: Workspace,
    effects: Effects,
    chosen: Chosen,
    shown: pd.DataFrame,
    stages: Sequence[str],
) -> dict[str, list[str]]:
    """Stage to the interval of each example's effect; without stages that it is not known of."""
    kind = chosen.behaviour
    errors = example_errors(workspace.at, workspace.examples.name, effects, kind)
    return {
        stage: [
            gain_range_text(value - error, value + error, kind, unit=False)
            if isfinite(value)
            else ""
            for value in shown[effect_column(stage)].astype(float)
        ]
        for stage in stages
        if isfinite(error := errors.get(stage, float("nan"))) and error > 0
    }
