"""Charts from memory are the charts of what is asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.charts import Chart
from stagelens.ui.pieces import drawing

made: list[int] = []


def draw(frame: pd.DataFrame, factor: float = 1.0) -> Chart:
    made.append(len(frame))
    return Chart(go.Figure(go.Scatter(y=factor * frame["y"])), "a chart")


def test_a_chart_is_drawn_once_for_equal_arguments_and_anew_for_any_other() -> None:
    made.clear()
    many = pd.DataFrame({"y": np.arange(60_000.0)})  # more rows than a cache would look at
    first = drawing.chart(draw, many)
    assert drawing.chart(draw, many.copy()) is first and made == [60_000]
    changed = many.copy()
    changed.loc[31_234, "y"] = -1.0
    assert drawing.chart(draw, changed).figure.data[0].y[31_234] == -1.0
    assert drawing.chart(draw, many, factor=2.0).figure.data[0].y[-1] == 2 * 59_999
    assert len(made) == 3
