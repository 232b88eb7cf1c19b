"""Where in the images of a set a stage's effect sits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import Behaviour
from stagelens.wording.numbers import amount_text

from .style import BLAME, LIGHT, NEITHER, ZERO, Chart, Palette, see_through, style

_SCALE = ((0.0, see_through(BLAME, 0.04)), (1.0, see_through(BLAME, 0.95)))
_GREY = ((0.0, see_through(NEITHER, 0.04)), (1.0, see_through(NEITHER, 0.95)))
_HEIGHT = 300


def patch_map(
    patches: pd.DataFrame,
    shape: tuple[int, int],
    behaviour: Behaviour,
    stage: str,
    palette: Palette = LIGHT,
    signed: bool = True,
) -> Chart:
    """How much the stage effect changes when a patch is taken out: mean size, pixel by pixel.

    A pixel has the mean of the patches that cover it.

    Args:
        patches: ``top``, ``left``, ``height``, ``width``, ``mean_with`` and ``support``: per
            patch and label the mean change in the examples that have something there.
        shape: (height, width) of the images.
        behaviour: Whose effect.
        stage: The stage, for the alternative text.
        palette: Light or dark.
        signed: Whether the effect's sign is known; else the map is grey.
    """
    keys = ["top", "left", "height", "width"]
    # Labels are put together, each with the weight of its examples.
    sizes = patches.assign(size=patches["mean_with"].abs() * patches["support"]).groupby(keys)
    means = (sizes["size"].sum() / sizes["support"].sum()).reset_index(name="size")
    total, count = np.zeros(shape), np.zeros(shape)
    for row in means.itertuples():
        inside = np.s_[row.top : row.top + row.height, row.left : row.left + row.width]
        total[inside] += row.size
        count[inside] += 1
    # Pixels that no patch covers are NaN, and so not drawn, rather than zero.
    values = total / np.where(count > 0, count, np.nan)
    figure = go.Figure()
    style(figure, palette, height=_HEIGHT)
    figure.add_trace(
        go.Heatmap(
            z=values,
            zmin=0,
            zmax=float(np.nanmax(values)) if np.isfinite(values).any() else 1.0,
            colorscale=[list(stop) for stop in (_SCALE if signed else _GREY)],
            hovertemplate="row %{y}, column %{x}: %{z:.2f}<extra></extra>",
            colorbar={
                "thickness": 10,
                "outlinewidth": 0,
                "tickfont": {"color": palette.muted, "size": 12},
                "nticks": 4,
            },
        )
    )
    _box(figure, shape)
    axis = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": ""}
    figure.update_xaxes(**axis, constrain="domain", fixedrange=True)
    figure.update_yaxes(**axis, autorange="reversed", scaleanchor="x", fixedrange=True)
    figure.update_layout(margin={"l": 4, "r": 4, "t": 8, "b": 8})
    return Chart(figure, _said(means, behaviour, stage))


def _box(figure: go.Figure, shape: tuple[int, int]) -> None:
    figure.add_shape(
        type="rect",
        # Cells are centred on whole numbers, so the image begins half a cell before 0.
        x0=-0.5,
        y0=-0.5,
        x1=shape[1] - 0.5,
        y1=shape[0] - 0.5,
        line={"color": ZERO, "width": 1},
    )


def _said(means: pd.DataFrame, behaviour: Behaviour, stage: str) -> str:
    if means.empty:
        return f"No patch was tested for {stage}."
    row = means.loc[means["size"].idxmax()]
    return (
        f"Where the effect of {stage} on the {behaviour.name} sits: it changes most, by "
        f"{amount_text(row['size'], behaviour)} on average, without rows {int(row['top'])} to "
        f"{int(row['top'] + row['height'] - 1)}, columns {int(row['left'])} to "
        f"{int(row['left'] + row['width'] - 1)}."
    )
