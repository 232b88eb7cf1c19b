"""The picture of groups under several models as markup: the same as the figure, without plotly."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from stagelens.contracts import Behaviour
from stagelens.effects.groups import GroupMetrics
from stagelens.wording.numbers import amount_text, is_share, scaled, value_text

from .groups import axis_ends, clear_models, in_words, look_of, shown_models
from .marked_rows import Mark, Row, marked_rows
from .style import EITHER, SHAPES
from .tokens import Markup


def gap_rows(
    metrics: GroupMetrics,
    behaviour: Behaviour,
    notes: Mapping[str, str],
    opens: Callable[[str], str] | None = None,
) -> Markup:
    """:func:`groups.group_gaps` as markup, for pages whose reader may switch the theme.

    Args:
        metrics: The models, the first one being the final model.
        behaviour: What is shown: accuracy or the margin.
        notes: Model to a few words printed under its name, such as its trust.
        opens: From a group to the address that its marks lead to.
    """
    models = shown_models(metrics, list(metrics.groups["model"].unique()))
    known = metrics.groups[metrics.groups["group"].notna() & metrics.groups["model"].isin(models)]
    groups = sorted(known["group"].unique())
    looks = {
        str(group): look_of(str(group), number, metrics, EITHER)
        for number, group in enumerate(groups)
    }
    links = {name: "" if opens is None else opens(name) for name in looks}
    many = any(place is None for place, _ in looks.values())
    gaps = dict(zip(metrics.gaps["model"], metrics.gaps["gap"], strict=True))
    clear, kind = clear_models(metrics), metrics.measure
    rows = []
    for model in models:
        own = {str(row["group"]): row for row in known[known["model"] == model].to_dict("records")}
        marks = []
        for name, (place, color) in looks.items():
            value, low, high = (
                scaled(float(own[name][column]), behaviour)
                for column in (kind, f"{kind}_low", f"{kind}_high")
            )
            said = (
                f"{model}, {name}: {value_text(own[name][kind], behaviour)}, interval "
                f"{value_text(own[name][f'{kind}_low'], behaviour)} to "
                f"{value_text(own[name][f'{kind}_high'], behaviour)}, "
                f"{int(own[name]['n']):,} examples"
            )
            none = place is None
            marks.append(
                Mark(
                    value,
                    np.nan if none else low,
                    np.nan if none else high,
                    color,
                    "|" if place is None else SHAPES[place % len(SHAPES)][1],
                    said,
                    links[name],
                )
            )
        gap = float(gaps.get(model, np.nan))
        size = amount_text(gap, behaviour, unit=False) if np.isfinite(gap) else "no number"
        sure = model in clear
        bar = None
        if sure and metrics.worst is not None and metrics.best is not None:
            low, high = (
                scaled(float(own[each][kind]), behaviour) for each in (metrics.worst, metrics.best)
            )
            bar = (low, high)
        end = size if sure or not np.isfinite(gap) else f"({size})"
        rows.append(
            Row(model, notes.get(model, ""), marks, bar, end if gaps else "", sure, not many)
        )
    more = metrics.groups["model"].nunique() - len(models)
    said = in_words(metrics, behaviour, models, groups, notes)
    said += f" {more:,} more models change the gap less." if more else ""
    legend = [
        (SHAPES[place % len(SHAPES)][1], color, name)
        for name, (place, color) in looks.items()
        if place is not None
    ]
    title = behaviour.name if is_share(behaviour) else f"mean {behaviour.name}"
    unit = " %" if is_share(behaviour) else ""
    ends = axis_ends(known, behaviour)
    return marked_rows(rows, ends, legend, said, unit, title, "gap" if gaps else "")
