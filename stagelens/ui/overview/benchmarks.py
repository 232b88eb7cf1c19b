"""Scores of answers by stage: a row for every scorer, a column for every stage."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.charts.style import HAIRLINE, color_of, see_through, short
from stagelens.contracts import BASE
from stagelens.report.scores import DRAWN, FORMAT, SHOWN, TITLE, ScoreRow, frame, known_of, takeaway
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About, pinnable
from stagelens.ui.reading import loaders, scored
from stagelens.wording.folding import listed, strongest
from stagelens.wording.numbers import (
    count_text,
    is_share,
    signed_text,
    value_text,
)
from stagelens.wording.sentences import mean_sentence
from stagelens.wording.signs import CREDIT_OR_BLAME, POSITIVE_IS
from stagelens.wording.trust_words import MARKS, trust_label, trust_word

_COLUMNS = 6
"""Stages that have a column; of more, the strongest."""


def section(workspace: Workspace) -> None:
    """The table; nothing where no answers of this run are scored."""
    rows = _rows(workspace)
    if not rows:
        return
    several = len({row.set_name for row in rows}) > 1
    stages = _stages(workspace, rows)
    table = frame(rows)
    alt = takeaway(rows)
    st.header("What each stage did to the answers", anchor=False)
    by = listed(list(dict.fromkeys(row.estimate for row in rows)))
    components.text_block(
        "Mean stage effect on each score, ▲ better because of the stage, ▼ worse, ± neither; below "
        "it the interval over prompts, with an estimate's error (95 %). Scores from 0 to 1 in "
        f"points. {_redraws(rows)}Models without a stage by {by}. A cell opens its prompts.",
        muted=True,
    )
    trust, trust_of = known_of(rows)
    about = About(
        title=TITLE,
        estimator=by,
        trust=trust,
        trust_of=trust_of,
        filters={},
    )
    with pinnable("benchmarks", table, alt, about, _config()):
        st.html(_markup(workspace, rows[:SHOWN], stages, alt, several))
    left_out = [
        count_text(more, kind)
        for more, kind in (
            (len(workspace.stages) - len(stages), "stage"),
            (len(rows) - SHOWN, "score"),
        )
        if more > 0
    ]
    if left_out:
        components.text_block(f"Not shown: {' and '.join(left_out)}; the table has all.", True)
    when_opened("scores", "The same numbers as a table", lambda: _table(table, about))


def _rows(workspace: Workspace) -> list[ScoreRow]:
    """Every scorer on every set, those of the chosen set first, each by its best estimate."""
    at, chosen = workspace.at, workspace.examples.name
    names = sorted(workspace.run.set_names, key=lambda name: (name != chosen, name))
    rows = []
    for set_name in names:
        for name, score in scored.scores(at, set_name).items():
            estimate = score.best
            found = loaders.effects(at, set_name, estimate)
            if found is None:
                continue
            means = loaders.stage_summary(at, set_name, estimate, name, None, None)
            there = scored.at_boundaries(at, set_name, name, BASE)
            base = float("nan") if there is None else float(there["value"].mean())
            rows.append(
                ScoreRow(
                    score, set_name, estimate, score.behaviour, means, found.trust_of(name), base
                )
            )
    return rows


def _redraws(rows: Sequence[ScoreRow]) -> str:
    """What the last line of a cell is, where there is one."""
    drawn = any(row.means["draw_low"].notna().any() for row in rows)
    return "Below that the interval over redraws of the recipe. " if drawn else ""


def _stages(workspace: Workspace, rows: Sequence[ScoreRow]) -> list[str]:
    """The stages that have a column."""
    sizes = [max(abs(row.size(stage)) for row in rows) for stage in workspace.stages]
    return [workspace.stages[place] for place in strongest(sizes, _COLUMNS)]


# --------------------------------------------------------------------------------------- markup


def _markup(
    workspace: Workspace, rows: Sequence[ScoreRow], stages: Sequence[str], alt: str, several: bool
) -> str:
    columns = f"minmax(8rem,1.6fr) minmax(4.5rem,.8fr) repeat({len(stages)},minmax(5.5rem,1fr))"
    # As wide as all columns at their least: in less, every scorer is a block of its own.
    least = 14 + 6 * len(stages)
    style = (
        "<style>.sl-scores{container-type:inline-size;font-size:.92rem}"
        f".sl-scores [role=row]{{display:grid;grid-template-columns:{columns};gap:.25rem .5rem;"
        f"align-items:stretch;padding:.3rem 0;border-top:1px solid {HAIRLINE}}}"
        ".sl-scores [role=columnheader]{font-weight:600;overflow-wrap:anywhere;align-self:end}"
        ".sl-scores [role=row]>*{min-width:0;overflow-wrap:anywhere}"
        ".sl-scores small{display:block;opacity:.75;font-size:.8rem}"
        ".sl-scores :is([role=cell]:not(:has(a)),a){padding:.15rem .4rem}"
        ".sl-scores a{display:block;height:100%;color:inherit;text-decoration:none;"
        "border-radius:.35rem}"
        ".sl-scores [role=columnheader]:not(:first-child){padding-left:.4rem}"
        ".sl-scores a:is(:hover,:focus-visible){outline:2px solid currentColor}"
        ".sl-scores .sl-of{display:none}"
        f"@container (max-width:{least}rem){{.sl-scores [role=row]{{grid-template-columns:"
        "repeat(auto-fit,minmax(8rem,1fr))}.sl-scores [role=row]:first-child{display:none}"
        ".sl-scores [role=rowheader]{grid-column:1/-1}.sl-scores .sl-of{display:block}"
        ".sl-scores :is([role=cell]:not(:has(a)),a){padding:.15rem .2rem}}"
        "</style>"
    )
    heads = "".join(
        f"<div role='columnheader'><bdi>{components.shown(short(each, 40))}</bdi></div>"
        for each in ("score", "final model", *stages)
    )
    body = "".join(_row(workspace, row, stages, several) for row in rows)
    return (
        f"{style}<div class='sl-scores'><div role='table' aria-label='{html.escape(alt, True)}'>"
        f"<div role='row'>{heads}</div>{body}</div></div>"
    )


def _row(workspace: Workspace, row: ScoreRow, stages: Sequence[str], several: bool) -> str:
    kind = row.behaviour
    known = row.means[row.means["n"] > 0]
    count = int(known["n"].max()) if len(known) else 0
    facts = [f"{kind.better} is better", count_text(count, "prompt")]
    facts += [f"set {row.set_name}"] if several else []
    facts += [f"{row.score.samples} samples each"] if row.score.samples > 1 else []
    final = float(known["final"].iloc[0]) if len(known) else float("nan")
    base = f"<small>base {value_text(row.base, kind)}</small>" if np.isfinite(row.base) else ""
    records = {str(each["stage"]): each for each in row.means.to_dict("records")}
    cells = "".join(_cell(workspace, row, stage, records.get(stage)) for stage in stages)
    return (
        "<div role='row'><div role='rowheader'>"
        f"<b><bdi>{components.shown(row.called)}</bdi></b>"
        f"<small>{components.shown(' · '.join(facts))}</small></div>"
        f"<div role='cell'><small class='sl-of'>final model</small>{value_text(final, kind)}{base}"
        f"</div>{cells}</div>"
    )


def _cell(workspace: Workspace, row: ScoreRow, stage: str, record: Mapping[str, Any] | None) -> str:
    of = f"<small class='sl-of'><bdi>{components.shown(short(stage, 40))}</bdi></small>"
    trust = row.trust.get(stage)
    if record is None or not record["n"] or not np.isfinite(record["effect"]):
        why = "" if trust is None else html.escape(trust.reason, quote=True)
        return f"<div role='cell' title='{why}'>{of}no number</div>"
    kind, gain, interval = row.behaviour, float(record["gain"]), row.interval(record)
    signed = row.is_marked(record)
    amount = charts.marked(gain, kind, unit=not is_share(kind), signed=signed)
    mark = "" if trust is None else MARKS[trust_word(trust, kind.name)]
    ends = "no interval"
    if interval is not None:
        low, high = (signed_text(end, kind, unit=False) for end in interval.gains(kind))
        ends = f"{low} to {high}"
    side = {"side": "credit" if gain > 0 else "blame"} if signed and gain else {}
    over = ""
    if np.isfinite((drawn := row.over_draws(record))[0]):
        low, high = (signed_text(end, kind, unit=False) for end in drawn)
        over = f"<small>{html.escape(str(record['drawn']))}: {low} to {high}</small>"
    query = {
        state.VIEW: state.OF_THE_SET,
        "set": row.set_name,
        "measure": kind.name,
        "stage": stage,
        **side,
    }
    said = str(mean_sentence(record, kind, workspace.noun, None, trust))
    known = "" if trust is None else f" {trust_label(trust, kind.name)}."
    strength = components.tint(row.size(stage))
    back = f"background:{see_through(color_of(gain), strength)}" if signed else ""
    return (
        f"<div role='cell'><a href='{html.escape(components.address('Examples', **query), True)}' "
        f"title='{html.escape(said + known, True)}' style='{back}'>{of}"
        f"<b>{html.escape(amount)}</b> <span aria-hidden='true'>{mark}</span>"
        f"<small>{html.escape(ends)}</small>{over}</a></div>"
    )


# ---------------------------------------------------------------------------------------- table


def _config() -> dict[str, Any]:
    """How the numbers of the table are printed, and what they are."""
    config = st.column_config
    ends = "Interval over the choice of prompts (95 %), with the error of the estimate."
    helps = {
        CREDIT_OR_BLAME: POSITIVE_IS,
        "low": ends,
        "high": ends,
        **dict.fromkeys(DRAWN, "Interval over redraws of the recipe (95 %)."),
        "final": "In percent where the unit is points.",
        "without the stage": "In percent where the unit is points.",
    }
    return {
        name: config.NumberColumn(name, format=FORMAT, help=text) for name, text in helps.items()
    }


def _table(frame: pd.DataFrame, about: About) -> None:
    said = f"Every score by stage, with intervals over prompts. {POSITIVE_IS}"
    components.table(frame, "scores-table", said, about, column_config=_config())
