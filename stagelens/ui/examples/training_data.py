"""Which data: the training examples of a stage that helped and hurt a prediction most."""

from __future__ import annotations

import base64
import json
from math import isfinite

import pandas as pd
import streamlit as st

from stagelens.analyses.contributions.contribution_table import SHOWN, Stored, left_open
from stagelens.analyses.contributions.parts_of_the_set import Parts
from stagelens.charts.style import BLAME, CREDIT, MUTED, short
from stagelens.contracts import CARRIED, Behaviour
from stagelens.effects.contrasts import Spread
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, inputs, state
from stagelens.ui.reading.browse import Chosen
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.numbers import count_text
from stagelens.wording.signs import POSITIVE_IS, gain, gain_range_text, gain_text

from . import contributions, expected_errors
from .contributions import Asked
from .smoothness import first_order_says_something
from .training_groups import parts_of
from .without_data import without_data_section

_AT_FIRST = 8
"""Training examples shown on either side until more are asked for."""
_LONGEST = 260
"""Longest part of a training text, in characters."""
_PNG = b"\x89PNG"
_LEAST = 0.1
"""Percentages of a stage's sum are printed only where it is at least this part of all sizes added
up: where contributions cancel, percentages say nothing."""


def training_data_tab(
    workspace: Workspace, effects: Effects, chosen: Chosen, example_id: str
) -> None:
    """The training examples of the chosen stage, by what they contributed."""
    asked = contributions.choose(workspace, effects, chosen, example_id)
    found = contributions.answer(workspace, asked, by_kind=True)
    if found is None:
        return
    if asked.stage in found.facts.steps_only:
        st.info(
            components.plain(
                f"No training example of {asked.stage} has a contribution of its own: "
                f"{found.facts.steps_only[asked.stage]}. The When tab shows the steps."
            ),
            icon=":material/info:",
        )
        without_data_section(workspace, asked, found, pd.Series(dtype=bool))
        return
    contributions.first_order(found, asked)
    contributions.curvature_control()
    contributions.leaving_out(workspace, asked, found)
    rows = found.part("example", asked.stage)
    warned = left_open(asked.stage, asked.effect, found.linearised(asked.stage))
    ranked = first_order_says_something(workspace, asked, "which", bool(warned))
    if expected_errors.stored_horizons(workspace, asked) is None:
        expected_errors.offer(workspace, asked, "expected-errors-which")
    if not ranked or contributions.says_nothing(found, asked):
        without_data_section(workspace, asked, found, _differs(rows), ranked)
        _browse(rows, asked.stage)
        return
    whole = _whole(found, asked.stage)
    _parts(found, asked, rows, whole)
    gains = gain(rows["value"], asked.behaviour)
    # Stable, so that equal contributions come in one order on every visit.
    helped = rows[gains > 0].sort_values("value", key=abs, ascending=False, kind="stable")
    hurt = rows[gains < 0].sort_values("value", key=abs, ascending=False, kind="stable")
    everything = st.toggle(
        f"Show {SHOWN} on either side",
        key="all-data",
        bind="query-params",
        help=f"Initially there are {_AT_FIRST}.",
    )
    count = SHOWN if everything else _AT_FIRST
    sides = [("▲ Helped most", helped, CREDIT), ("▼ Hurt most", hurt, BLAME)]
    parts = parts_of(workspace, asked, found.facts.curvature)
    # First those that did what the stage did: of one to blame, those that hurt.
    first_hurt = gain(asked.effect, asked.behaviour) < 0
    with st.grid(2, min_column_width=340, gap="medium") as grid:
        for title, side, color in reversed(sides) if first_hurt else sides:
            with grid.cell():
                st.subheader(title, anchor=False)
                _disagreeing(side.head(count), rows)
                _cards(found, asked, side.head(count), color, whole, parts)
    if parts is not None:
        components.text_block(
            "Ranges on cards are 95 % intervals, had as many other evaluation examples been "
            "drawn. They do not cover what first order misses.",
            muted=True,
        )
    without_data_section(workspace, asked, found, _differs(rows))
    _browse(rows, asked.stage)


def _whole(found: Stored, stage: str) -> float | None:
    """What percentages on cards are of; None where they would say nothing."""
    total, sizes = found.linearised(stage), found.part("example", stage)["value"].abs()
    return total if abs(total) >= _LEAST * sizes.sum() else None


def _parts(found: Stored, asked: Asked, rows: pd.DataFrame, whole: float | None) -> None:
    """What the sum is made of."""
    carried = float(found.part("carried", asked.stage)["value"].sum())
    behaviour = asked.behaviour
    of_examples = gain_text(float(rows["value"].sum()), behaviour)
    parts = ""
    if whole is not None:
        parts = f" Percentages are of all steps together, {gain_text(whole, behaviour)}."
    components.text_block(
        f"{count_text(len(rows), 'training example')}: {of_examples}; {CARRIED}: "
        f"{gain_text(carried, behaviour)}. {POSITIVE_IS} These are estimates to first order "
        "that hold the optimiser's denominators and clipping fixed; all uses of an example are "
        "added up. Cards name the step of its first use and its number in the batch, both from 0."
        + parts
        + (" Images are shown as the model saw them." if found.facts.kind == "image" else "")
    )


def _disagreeing(side: pd.DataFrame, rows: pd.DataFrame) -> None:
    """How many labels are not the final model's own answers, here and in the whole stage."""
    if rows["label"].isna().all():
        return
    here, all_rows = (int(_differs(each).sum()) for each in (side, rows))
    components.text_block(
        f"{here} of these {len(side)} carry a label that is not the final model's answer; in the "
        f"whole stage {all_rows} of {len(rows):,}.",
        muted=True,
    )


def _differs(rows: pd.DataFrame) -> pd.Series:
    known = rows["label"].notna() & rows["answer"].notna()
    # A comparison with a missing string may be missing itself, which is no difference.
    return known & (rows["label"] != rows["answer"]).fillna(False)


def _cards(
    found: Stored,
    asked: Asked,
    rows: pd.DataFrame,
    color: str,
    whole: float | None,
    parts: Parts | None,
) -> None:
    if rows.empty:
        components.text_block("None.", muted=True)
        return
    width = "12em" if found.facts.kind == "image" else "100%"
    differs = _differs(rows)
    cards = "".join(
        _card(row, bool(other), asked.behaviour, whole, color, _range(row, asked.behaviour, parts))
        for row, other in zip(rows.to_dict("records"), differs, strict=True)
    )
    st.html(
        "<div style='display:grid;gap:.6em;"
        f"grid-template-columns:repeat(auto-fill,minmax(min({width},100%),1fr))'>{cards}</div>"
    )


def _card(
    row: dict[str, object],
    differs: bool,
    behaviour: Behaviour,
    total: float | None,
    color: str,
    spread: str,
) -> str:
    value = float(row["value"])  # type: ignore[arg-type]
    lines = [f"<b style='white-space:nowrap'>{components.shown(gain_text(value, behaviour))}</b>"]
    # A contribution against the direction of the sum is no percentage of it.
    if total is not None and value * total > 0:
        lines[0] += f" ({100 * value / total:.0f} %)"
    if spread:
        lines.append(f"<span style='opacity:.75'>{components.shown(spread)}</span>")
    label = row["label"]
    if isinstance(label, str):
        lines.append(f"label <b><bdi>{components.shown(short(label, 40))}</bdi></b>")
    if isinstance(row["answer"], str):
        answer = f"final model <b><bdi>{components.shown(short(row['answer'], 40))}</bdi></b>"
        lines.append(f"{'≠ ' if differs else ''}{answer}")
    if isinstance(row["before"], str):
        before = components.shown(short(row["before"], 40))
        lines.append(f"<span style='opacity:.75'>model before the stage <bdi>{before}</bdi></span>")
    if isinstance(row["other_labels"], str):
        others = components.shown(short(row["other_labels"], 60))
        lines.append(f"≠ also with label <b><bdi>{others}</bdi></b>")
    uses = int(row["uses"])  # type: ignore[call-overload]
    # Recorded batches have no ids: where an example was first used names it, here and in the table.
    first = f"step\u00a0{row['step']:,}, number\u00a0{row['position']}"
    place = f"used at {first}" if uses == 1 else f"used {uses:,}\u00a0times, first at {first}"
    lines.append(f"<span style='opacity:.75'>{place}</span>")
    image = isinstance(row["content"], bytes) and row["content"].startswith(_PNG)
    direction = "row" if image else "column"
    edge = "2px solid currentColor" if differs else f"1px solid {MUTED}"
    facts = "".join(f"<div>{line}</div>" for line in lines) if image else " · ".join(lines)
    return (
        f"<div style='border:{edge};border-left:4px solid {color};border-radius:.4em;"
        "padding:.5em .6em;font-size:.8rem;line-height:1.45;overflow:hidden;overflow-wrap:anywhere;"
        f"display:flex;flex-direction:{direction};gap:.3em .8em'>{_content(row)}"
        f"<div>{facts}</div></div>"
    )


def _range(row: dict[str, object], behaviour: Behaviour, parts: Parts | None) -> str:
    """Where a contribution may lie over evaluation examples, and whether its side is known."""
    name = f"{row['step']}-{row['position']}"
    if parts is None or name not in parts.table.index:
        return ""
    error, freedom = parts.error([name])
    low, high = Spread(float(row["value"]), error, freedom).ends()  # type: ignore[arg-type]
    if not isfinite(low):
        return ""
    ends = gain_range_text(low, high, behaviour, unit=False)
    return f"{ends}, ≈ may be none" if low * high <= 0 else ends


def _content(row: dict[str, object]) -> str:
    # Bytes are either a PNG file or JSON of the texts by field; a task may show neither.
    content = row["content"]
    if not isinstance(content, bytes):
        return f"<div>number {row['position']} of its batch; this task shows no training data</div>"
    if content.startswith(_PNG):
        data = base64.b64encode(content).decode()
        return (
            f"<img src='data:image/png;base64,{data}' alt='A training image' style='width:5.5em;"
            "height:5.5em;object-fit:contain;image-rendering:pixelated;border-radius:.2em'>"
        )
    texts = {field: text for field, text in json.loads(content).items() if text is not None}
    return "".join(
        (f"<div style='opacity:.75'>{components.shown(inputs.title(field))}</div>"
         if len(texts) > 1 else "")
        + f"<div style='font-size:.9rem'><bdi>{components.shown(short(text, _LONGEST))}</bdi></div>"
        for field, text in texts.items()
    )  # fmt: skip


def _browse(rows: pd.DataFrame, stage: str) -> None:
    """The way to all of them, with filters and what else is known of each."""
    st.button(
        f"Browse all {count_text(len(rows), 'training example')}",
        icon=":material/table_rows:",
        key="browse-training-data",
        on_click=_open_browser,
        args=(stage,),
        help="The tab Training data: filters, search, losses over time, duplicates, groups.",
    )
    # The click reruns this fragment only, and the tabs that it switches are outside.
    if st.session_state.get("browse-training-data"):
        st.rerun()


def _open_browser(stage: str) -> None:
    state.choose_shared("stage", stage)
    st.session_state[state.VIEW] = state.OF_A_STAGE
