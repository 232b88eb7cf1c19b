"""How far ahead first order holds: its expected error by horizon."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.analyses.contributions.horizon_table import (
    HOLDS_BELOW,
    Horizons,
    error_text,
    later_text,
    most_text,
)

from .style import KEPT, LIGHT, ZERO, Chart, Palette, style

_MOST = 150.0
"""Per cent; what is above stands at the upper edge, with its number in words."""


def expected_error_curve(found: Horizons, palette: Palette = LIGHT) -> Chart:
    """Expected errors of first order and what nine of ten stay within; the final model is last.

    Args:
        found: By horizon.
        palette: Light or dark.
    """
    rows = found.table
    known = rows.dropna(subset="horizon")
    places = np.log10(known["horizon"].to_numpy(float)).tolist()
    gap = max((places[-1] - places[0]) / 5, 0.3)
    places.append(places[-1] + gap)
    errors = rows["expected_error"].to_numpy(float)
    most = [most_text(found, place) for place in range(len(rows))]
    said = [
        f"{error_text(float(error))}, nine of ten at most {text}" if text else error_text(error)
        for error, text in zip(errors, most, strict=True)
    ]
    above = [found.bound(place) for place in range(len(rows))]
    names = [later_text(int(one)) for one in known["horizon"]] + ["the final model"]
    # Where nothing is promised, an expected error alone is no ground to call first order good.
    good = [most is not None and most <= HOLDS_BELOW for most in above]
    tops = [error if most is None else most for error, most in zip(errors, above, strict=True)]
    heights = np.minimum(100 * np.array(tops), _MOST) - np.minimum(100 * errors, _MOST)
    figure = go.Figure(
        go.Scatter(
            x=places,
            y=np.minimum(100 * errors, _MOST).tolist(),
            mode="lines+markers",
            line={"color": palette.line, "width": 2},
            marker={
                "size": 11,
                "symbol": ["square" if one else "diamond-open" for one in good],
                "color": [KEPT if one else ZERO for one in good],
                "line": {"width": 2},
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": heights.tolist(),
                "arrayminus": [0.0] * len(rows),
                "color": palette.line,
                "thickness": 1.5,
                "width": 5,
            },
            customdata=[
                f"{name}<br>expected error {text}" for name, text in zip(names, said, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
            cliponaxis=False,
        )
    )
    style(figure, palette, height=260)
    small = {"color": palette.muted, "size": 12}
    figure.add_hline(y=100 * HOLDS_BELOW, line={"color": ZERO, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=0,
        xref="paper",
        xanchor="left",
        y=100 * HOLDS_BELOW,
        yanchor="bottom",
        text="beyond first order above",
        font=small,
        showarrow=False,
    )
    figure.update_xaxes(
        tickmode="array",
        tickvals=places,
        ticktext=[f"{one:,}" for one in known["horizon"]] + ["final<br>model"],
        range=[places[0] - 0.1, places[-1] + 0.15],
        title_text="steps later",
        title_font=small,
        fixedrange=True,
        zeroline=False,
    )
    figure.update_yaxes(
        range=[0, max(60.0, min(1.1 * 100 * float(np.nanmax(tops)), 1.05 * _MOST))],
        title_text="expected error",
        title_font=small,
        ticksuffix=" %",
        fixedrange=True,
        zeroline=False,
        nticks=5,
    )
    figure.update_layout(margin={"l": 64, "r": 20, "t": 16, "b": 56})
    listed = "; ".join(f"{name}: {text}" for name, text in zip(names, said, strict=True))
    alt = (
        f"Expected error of first order where {100 * found.facts.share:.0f} % of the examples of "
        f"{found.facts.stage} are left out, by how many steps later the "
        f"{found.facts.behaviour.name} is asked. {listed}."
    )
    return Chart(figure, alt, pd.DataFrame(rows))
