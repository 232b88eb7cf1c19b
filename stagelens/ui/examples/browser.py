"""The table of examples with its pages, and in its place the example that is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, nan
from typing import Any

import pandas as pd
import streamlit as st

from stagelens.analyses.shares.share_table import SEEN_AFTER, SHARE, WITHOUT
from stagelens.charts import marked
from stagelens.charts.style import short
from stagelens.contracts import Behaviour
from stagelens.effects.summary import right_answers
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, inputs, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_line
from stagelens.ui.reading import browse, loaders
from stagelens.ui.reading import shares as reading_shares
from stagelens.ui.reading.browse import (
    Chosen,
    answer_column,
    effect_column,
    noise_column,
    number_column,
)
from stagelens.ui.reading.example_errors import example_errors
from stagelens.ui.reading.loaders import Effects, Source
from stagelens.wording.numbers import amount_text, axis_unit, phrase
from stagelens.wording.trust_words import MARKS, signs_known, trust_word

from . import cards, drilldown, filters, shares

_THUMBNAIL = 40
_CELL = 300
"""Characters of a text that a cell of the table holds."""
_TEXT_WIDTH, _ALL_WIDTH = 300, 740
"""Pixels that the texts of an example share in the table; with all stages beside them."""
_FITTING = 5
"""Stages that have room beside texts without scrolling."""
_PAGE_STATE = state.session_key("page")
_WHAT = {WITHOUT: "stage effects", SHARE: "shares", SEEN_AFTER: "what is seen after stages"}
_HELP = {
    WITHOUT: "Stage effect: final model minus the counterfactual without the stage",
    SHARE: "The stage's share of what training as a whole did",
    SEEN_AFTER: "Seen after the stage: the boundary after it minus the one before",
}
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
        lambda: _cells(workspace, effects, chosen, shown, columns),
    )
    tints = _tints(chosen, shown, columns)
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
            column_config=_columns(workspace, effects, chosen, columns),
        )
    _as_cards(workspace, chosen, shown, cells, tints, columns)
    better = chosen.behaviour.better
    trusts = _trust(workspace, effects, chosen)
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
        f"{_unsigned(known)}{_noise(workspace, shown) if _by_effects(chosen) else ''}"
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
    return "≈ within training noise, so not a finding. " if known else ""


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


def _cells(
    workspace: Workspace,
    effects: Effects,
    chosen: Chosen,
    shown: pd.DataFrame,
    stages: Sequence[str],
) -> pd.DataFrame:
    behaviour, reading = chosen.behaviour, chosen.filters.credit
    ids = shown["example_id"].tolist()
    cells: dict[str, object] = {}
    name = workspace.examples.name
    if workspace.noun == "image":
        cells["input"] = loaders.pictures(workspace.at, name, ids, _THUMBNAIL)
    else:
        texts = loaders.texts(workspace.at, name, ids)
        for field in workspace.examples.inputs:
            cells[_input_column(field)] = [short(text[field] or "", _CELL) for text in texts]
    if workspace.noun == "image":
        cells["id"] = ids
    if workspace.labelled:
        cells["label"] = shown["label"].tolist()
    cells["answer"] = [
        f"{mark} {answer}"
        for mark, answer in zip(_marks(shown["right"]), shown["prediction"], strict=True)
    ]
    trusts, errors = _trust(workspace, effects, chosen), _errors(workspace, effects, chosen)
    for stage in stages:
        error, known = errors.get(stage, nan), signs_known(trusts.get(stage), behaviour.name)
        # Training noise is known of effects only.
        within = shown[noise_column(stage)].fillna(False) & _by_effects(chosen)
        cells[effect_column(stage)] = [
            _effect_cell(number, behaviour, noisy, known and not abs(number) <= error)
            for number, noisy in zip(shown[number_column(reading, stage)], within, strict=True)
        ]
    if workspace.noun == "text":  # words say more than ids do
        cells["id"] = ids
    return pd.DataFrame(cells)


def _tints(chosen: Chosen, shown: pd.DataFrame, stages: Sequence[str]) -> Mapping[str, list[float]]:
    """Column to the gains that its cells are tinted by; 1 is the largest of the set."""
    reading, largest = chosen.filters.credit, chosen.every.largest
    if not _by_effects(chosen):
        largest = chosen.every.largest_in(reading, stages)
    return {
        effect_column(stage): (
            chosen.behaviour.sign * shown[number_column(reading, stage)] / (largest or 1.0)
        ).tolist()
        for stage in stages
    }


def _as_cards(
    workspace: Workspace,
    chosen: Chosen,
    shown: pd.DataFrame,
    cells: pd.DataFrame,
    tints: Mapping[str, list[float]],
    stages: Sequence[str],
) -> None:
    """The same examples for windows that are too narrow for the table."""
    fields = [_input_column(field) for field in workspace.examples.inputs]
    texts = [] if workspace.noun == "image" else cells[fields].agg("\n".join, axis=1).tolist()
    without = {}
    for stage in stages if _by_effects(chosen) else []:
        answers = shown[answer_column(stage)]
        marks = _marks(right_answers(answers, shown["label"]))
        # A refused stage leaves no model to ask.
        told = zip(answers, marks, strict=True)
        without[stage] = ["" if pd.isna(each) else f"{each} {mark}" for each, mark in told]
    cards.show(
        cells,
        texts,
        {stage: cells[effect_column(stage)].tolist() for stage in stages},
        {stage: tints[effect_column(stage)] for stage in stages},
        without,
    )


def _by_effects(chosen: Chosen) -> bool:
    return chosen.filters.credit == WITHOUT


def _trust(workspace: Workspace, effects: Effects, chosen: Chosen) -> Mapping[str, StageTrust]:
    """What is known of the numbers in the table."""
    found = shares.shares_of(workspace, chosen)
    return effects.trust if found is None else found.trust_in(chosen.filters.credit)


def _errors(workspace: Workspace, effects: Effects, chosen: Chosen) -> Mapping[str, float]:
    found = shares.shares_of(workspace, chosen)
    if found is None:
        name = workspace.examples.name
        return example_errors(workspace.at, name, effects, chosen.behaviour)
    return reading_shares.errors(found, chosen.filters.credit)


def _input_column(field: str) -> str:
    """The column of a text field, named so that no column of effects is called the same."""
    return f"input {field}"


def _marks(right: pd.Series) -> list[str]:
    return ["✓" if value == 1 else "✗" if value == 0 else "" for value in right]


def _effect_cell(effect: float, behaviour: Behaviour, within_noise: bool, signed: bool) -> str:
    if not isfinite(effect):
        return "no number"
    if within_noise:
        # Without a direction, which means nothing within training noise.
        return f"≈ {amount_text(effect, behaviour, unit=False)}"
    return marked(behaviour.sign * effect, behaviour, unit=False, signed=signed)


def _columns(
    workspace: Workspace, effects: Effects, chosen: Chosen, stages: Sequence[str]
) -> dict[str, Any]:
    behaviour, trusts = chosen.behaviour, _trust(workspace, effects, chosen)
    config = st.column_config
    texts = max(_TEXT_WIDTH, _ALL_WIDTH - 120 * len(stages))
    columns: dict[str, Any] = {
        "input": config.ImageColumn("image", width=50, pinned=True),
        **{
            _input_column(field): config.TextColumn(
                inputs.title(field).lower(),
                width=max(texts // len(workspace.examples.inputs), _width(inputs.title(field))),
                pinned=len(stages) > _FITTING,  # what is pinned is pale, and texts are to be read
            )
            for field in workspace.examples.inputs
            if workspace.noun == "text"
        },
        "id": config.TextColumn("id", width=100, pinned=workspace.noun == "image"),
        "label": config.TextColumn("label", width=_width("label", *chosen.every.labels)),
        "answer": config.TextColumn(
            "answer",
            width=_width("answer", *(f"✓ {name}" for name in chosen.every.labels)),
            help="Of the final model; ✓ right, ✗ wrong.",
        ),
    }
    unit = axis_unit(behaviour)
    for stage in stages:
        known = trusts.get(stage)
        title = stage if known is None else f"{MARKS[trust_word(known, behaviour.name)]} {stage}"
        columns[effect_column(stage)] = config.TextColumn(
            title,
            width=_width(title, "▼ 0.00000"),
            help=f"{_HELP[chosen.filters.credit]} ({phrase(behaviour)}"
            f"{f', in {unit}' if unit else ''}).",
        )
    return columns


def _width(*texts: str) -> int:
    """Pixels of a column that cuts none of these; a very long one is cut all the same."""
    return min(26 + 8 * max(len(text) for text in texts), 260)
