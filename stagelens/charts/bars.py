"""Credit and blame as diverging bars: per stage over many examples, or for one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.folding import strongest
from stagelens.wording.numbers import (
    amount_text,
    axis_unit,
    count_text,
    is_share,
    phrase,
    scaled,
    signed_text,
)
from stagelens.wording.trust_words import MARKS, is_trustworthy, trust_label, trust_word

from .style import BLAME, CREDIT, INK, LIGHT, PAPER, ZERO, Chart, Palette, escaped, style

_BAR_HEIGHT = 64
FAINT = 0.4
"""Opacity of what is not to be relied on."""
_WITHIN_NOISE = "≈ within training noise"
SHORT_NOISE = "≈ within noise"
_NET = {
    "symbol": "diamond",
    "size": 13,
    "color": PAPER,
    "line": {"color": INK, "width": 2},
}


def credit_and_blame(
    summary: pd.DataFrame,
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    palette: Palette = LIGHT,
    about: str = "all examples",
) -> Chart:
    """One diverging bar per stage, in training order from top to bottom; of many, the strongest.

    Args:
        summary: One row per stage, as ``summary.stage_summary`` makes it (``gain``, ``credit``,
            ``blame``, ``effect``, ``n``, ``within_noise``); NaN where a stage is refused.
        behaviour: What was measured.
        trust: Stage to what is known of its counterfactual; printed under its name. Bars that
            are not to be relied on are faint.
        palette: Light or dark.
        about: Which examples, for the alternative text.
    """
    rows = summary.iloc[shown_stages(summary)].to_dict("records")
    hovers = [
        f"<b>{escaped(str(r['stage']))}</b><br>{_would_be_mean(r, behaviour)}"
        f"<br>credit {signed_text(r['credit'], behaviour)}, in {_percent(r['credit_share'])} of "
        f"{r['n']:,} examples<br>blame {signed_text(r['blame'], behaviour)}, in "
        f"{_percent(r['blame_share'])}"
        for r in rows
    ]
    within = [is_true(r["within_noise"]) for r in rows]
    figure = _diverging(
        [str(r["stage"]) for r in rows],
        [float(r["credit"]) for r in rows],
        [float(r["blame"]) for r in rows],
        hovers,
        within,
        behaviour,
        trust,
        palette,
    )
    figure.add_trace(
        go.Scatter(
            x=[scaled(float(r["gain"]), behaviour) for r in rows],
            y=list(range(len(rows))),
            mode="markers",
            name="net",
            marker=_NET,
            hoverinfo="skip",
        )
    )
    said = "; ".join(
        f"{r['stage']}: "
        + (
            "no number"
            if not np.isfinite(r["gain"])
            else f"credit {amount_text(r['credit'], behaviour)}, "
            f"blame {amount_text(r['blame'], behaviour)}"
        )
        + _known(trust.get(str(r["stage"])), behaviour, noisy)
        for r, noisy in zip(rows, within, strict=True)
    )
    more = rest_text(summary, behaviour)
    return Chart(
        figure,
        f"Credit and blame of each stage for the {phrase(behaviour)} on {about}. {said}."
        + (f" {more}" if more else ""),
        summary,
    )


def shown_stages(summary: pd.DataFrame) -> list[int]:
    """The rows of a summary that :func:`credit_and_blame` draws: most credit or most blame."""
    return strongest(np.fmax(summary["credit"].astype(float), -summary["blame"].astype(float)))


def rest_text(summary: pd.DataFrame, behaviour: Behaviour) -> str:
    """The stages that :func:`credit_and_blame` leaves out, in a sentence; empty where none is."""
    shown = set(shown_stages(summary))
    rest = summary.iloc[[place for place in range(len(summary)) if place not in shown]]
    if rest.empty:
        return ""
    known = rest.dropna(subset=["credit", "blame"])
    said = f"Not drawn: {count_text(len(rest), 'stage')} with less credit and blame than these"
    if known.empty:
        return f"{said}, none of them with a number."
    # Not their sum, which would read as the effect of leaving out all of them at once.
    credit, blame = (amount_text(known[name].mean(), behaviour) for name in ("credit", "blame"))
    return f"{said}; on average credit {credit} and blame {blame}."


def example_effects(
    effects: pd.DataFrame,
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    palette: Palette = LIGHT,
) -> Chart:
    """Every stage's effect on one example as a bar: credit to the right, blame to the left.

    Args:
        effects: One row per stage in training order, with ``stage``, ``effect`` and, where the
            training noise is known, ``within_noise``.
        behaviour: What was measured.
        trust: Stage to what is known of its counterfactual.
        palette: Light or dark.
    """
    every, effects = effects, effects.iloc[strongest(effects["effect"])]
    stages = [str(stage) for stage in effects["stage"]]
    gains = [behaviour.sign * float(effect) for effect in effects["effect"]]
    within = [is_true(one) for one in effects.get("within_noise", [None] * len(stages))]
    hovers = [
        f"<b>{escaped(stage)}</b><br>without it: {phrase(behaviour)} "
        + _change(-behaviour.sign * gain, behaviour)
        for stage, gain in zip(stages, gains, strict=True)
    ]
    figure = _diverging(
        stages,
        [max(g, 0.0) if np.isfinite(g) else g for g in gains],
        [min(g, 0.0) if np.isfinite(g) else g for g in gains],
        hovers,
        within,
        behaviour,
        trust,
        palette,
        narrow=True,
    )
    said = said_of_one(stages, gains, within, behaviour, trust, len(every) - len(effects))
    return Chart(figure, said, every)


def said_of_one(
    stages: Sequence[str],
    gains: Sequence[float],
    within: Sequence[bool],
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    more: int = 0,
) -> str:
    """The effects on one example in words; a gain is credit where it is positive.

    Of many stages these are the strongest, and there are ``more``.
    """
    said = "; ".join(
        f"{stage}: "
        + (
            "no number"
            if not np.isfinite(gain)
            else f"{'credit' if gain > 0 else 'blame'} {amount_text(gain, behaviour)}"
        )
        + _known(trust.get(stage), behaviour, noisy)
        for stage, gain, noisy in zip(stages, gains, within, strict=True)
    )
    rest = f" {more:,} more stages have smaller effects." if more else ""
    return f"Effect of each stage on this example's {phrase(behaviour)}. {said}.{rest}"


def _diverging(
    stages: Sequence[str],
    credit: Sequence[float],
    blame: Sequence[float],
    hovers: Sequence[str],
    within: Sequence[bool],
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    palette: Palette,
    narrow: bool = False,
) -> go.Figure:
    # Rows by number, since long names may be equal once they are shortened.
    places = list(range(len(stages)))
    figure = go.Figure()
    known = [trust.get(stage) for stage in stages]
    faint = [one is not None and not is_trustworthy(one, behaviour.name) for one in known]
    hovers = [
        hover + _known(one, behaviour, noisy, "<br>")
        for hover, one, noisy in zip(hovers, known, within, strict=True)
    ]
    for name, values, color, shape in (
        ("credit", credit, CREDIT, ""),
        ("blame", blame, BLAME, "/"),
    ):
        figure.add_trace(
            go.Bar(
                name=name,
                orientation="h",
                # A bar of length 0 would still show its outline.
                x=[scaled(value, behaviour) if value else np.nan for value in values],
                y=places,
                width=0.5,
                marker={
                    "color": color,
                    "opacity": [FAINT if one else 1.0 for one in faint],
                    "line": {"color": color, "width": 1},
                    "pattern": {
                        "shape": shape,
                        "fillmode": "overlay",
                        "fgcolor": PAPER,
                        "fgopacity": 0.65,
                        "size": 7,
                        "solidity": 0.25,
                    },
                },
                text=[
                    signed_text(value, behaviour, unit=False)
                    if np.isfinite(value) and value != 0
                    else ""
                    for value in values
                ],
                textposition="outside",
                textfont={"color": palette.text, "size": 14},
                cliponaxis=False,
                customdata=list(hovers),
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    sizes = [abs(scaled(v, behaviour)) for v in (*credit, *blame) if np.isfinite(v)]
    # Room for the numbers beside the bars, or they run into the names; and a lower bound, so that
    # effects that all round to zero are not blown up.
    reach = (1.5 if narrow else 1.25) * max([*sizes, 1.0 if is_share(behaviour) else 0.01])
    for place, (of, one, other) in enumerate(zip(known, credit, blame, strict=True)):
        if not (np.isfinite(one) and np.isfinite(other)):
            refused = of is not None and of.trust == "refused"
            figure.add_annotation(
                x=0,
                y=place,
                text="refused: no number" if refused else "no number",
                showarrow=False,
                xanchor="left",
                xshift=8,
                font={"color": palette.muted, "size": 13},
            )
    style(figure, palette, height=106 + _BAR_HEIGHT * max(len(stages), 1))
    unit = f" ({axis_unit(behaviour)})" if axis_unit(behaviour) else ""
    figure.update_layout(
        barmode="relative",
        margin={"l": 8, "r": 16, "t": 44, "b": 58},
        legend={"x": 0.5, "xanchor": "center", "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=places,
        ticktext=[
            _stage_label(stage, one, behaviour, noisy)
            for stage, one, noisy in zip(stages, known, within, strict=True)
        ],
        range=[len(stages) - 0.5, -0.5],  # training order runs downwards
        automargin=True,
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    figure.update_xaxes(
        range=[-reach, reach],
        showgrid=True,
        zeroline=True,
        zerolinecolor=ZERO,
        zerolinewidth=1.5,
        fixedrange=True,
        nticks=7,
    )
    worse = {"higher": "lower", "lower": "higher"}[behaviour.better]
    for text, x, anchor in (
        (f"← {behaviour.name} {worse}", 0, "left"),
        (f"{behaviour.name} {behaviour.better}{unit} →", 1, "right"),
    ):
        figure.add_annotation(
            text=text,
            x=x,
            xref="paper",
            xanchor=anchor,
            y=0,
            yref="paper",
            yanchor="top",
            yshift=-32,
            showarrow=False,
            font={"color": palette.muted, "size": 13},
        )
    return figure


def _stage_label(
    stage: str, trust: StageTrust | None, behaviour: Behaviour, within_noise: bool
) -> str:
    """The name, and below it what is known, in short lines because room is scarce."""
    lines: list[str] = []
    if trust is not None:
        word = trust_word(trust, behaviour.name)
        lines.append(f"{MARKS[word]} {word}")
    lines += [SHORT_NOISE] if within_noise else []
    name = escaped(stage, 28)
    below = "".join(f"<br><span style='font-size:12px'>{line}</span> " for line in lines)
    return f"<b>{name}</b> {below}" if lines else f"{name} "


def _known(
    trust: StageTrust | None, behaviour: Behaviour, within_noise: bool, between: str = ", "
) -> str:
    """What is known about a bar beyond its length."""
    said = [] if trust is None else [trust_label(trust, behaviour.name)]
    if trust is not None and trust.trust != "refused" and not is_trustworthy(trust, behaviour.name):
        said.append("not to be relied on")
    said += [_WITHIN_NOISE] if within_noise else []
    return "".join(f"{between}{one}" for one in said)


def is_true(value: object) -> bool:
    """Whether a value is true; an unknown one is not."""
    return bool(value) if pd.notna(value) else False


def _would_be_mean(row: Mapping[str, Any], behaviour: Behaviour) -> str:
    return f"without it: mean {phrase(behaviour)} {_change(-row['effect'], behaviour)}"


def _change(difference: float, behaviour: Behaviour) -> str:
    if not np.isfinite(difference):
        return "not known"
    word = "higher" if difference > 0 else "lower"
    return "the same" if difference == 0 else f"{amount_text(difference, behaviour)} {word}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "n/a"
