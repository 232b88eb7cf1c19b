"""The alluvial chart: every example on one ribbon, whatever the numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from stagelens.analyses.paths.answers import RIGHT
from stagelens.charts.alluvial import MOST_RIBBONS, alluvial
from stagelens.charts.style import DARK, EITHER, LIGHT

BOUNDARIES = ("base", "one", "two")


def ribbons(counts: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Path to the lower and the upper edge of its ribbon at every boundary."""
    figure = alluvial(counts, BOUNDARIES).figure
    drawn = [trace for trace in figure.data if trace.fill == "toself"]
    order = [trace.text.split(" ")[0] for trace in drawn]
    found = {}
    for marks, trace in zip(order, drawn, strict=True):
        half = len(trace.x) // 2
        lower, upper = np.array(trace.y[:half]), np.array(trace.y[half:])[::-1]
        at = [int(np.argmin(np.abs(np.array(trace.x[:half]) - place))) for place in range(3)]
        code = marks.replace("✓", RIGHT).replace("✗", "W")
        found[code] = lower[at], upper[at]
    return found


def test_ribbons_fill_each_boundary_without_overlap() -> None:
    counts = {"WRR": 50, "RRR": 20, "WRW": 13, "RWW": 9, "WWW": 8}
    edges = ribbons(counts)
    assert set(edges) == set(counts)
    total = sum(counts.values())
    for place in range(3):
        spans = sorted((low[place], high[place]) for low, high in edges.values())
        for (_, high), (low, _) in pairwise(spans):
            assert low >= high - 1e-9
        assert sum(high - low for low, high in spans) == pytest.approx(total)
    # Right answers lie above wrong ones.
    for place in range(3):
        rights = [edges[code][0][place] for code in counts if code[place] == RIGHT]
        wrongs = [edges[code][1][place] for code in counts if code[place] != RIGHT]
        assert min(rights) > max(wrongs)


def test_rare_paths_are_counted_in_words_where_they_are_too_many() -> None:
    many = {f"{number:06b}".replace("1", "R").replace("0", "W"): number + 1 for number in range(64)}
    boundaries = ("base", *(f"stage {number}" for number in range(5)))
    chart = alluvial(many, boundaries)
    assert sum(trace.fill == "toself" for trace in chart.figure.data) == MOST_RIBBONS
    left = sum(sorted(many.values())[: 64 - MOST_RIBBONS])
    assert f"{left} examples on {64 - MOST_RIBBONS} rarer paths not drawn" in chart.alt
    assert chart.rows is not None and chart.rows["examples"].sum() == sum(many.values())


@pytest.mark.parametrize("palette", [LIGHT, DARK, EITHER], ids=lambda palette: palette.name)
def test_names_from_data_act_as_text(palette) -> None:
    chart = alluvial({"WRR": 1}, ("base", "<b>x", "two"), "text", palette)
    assert "<b>x" not in str(chart.figure.to_dict())
    assert "&lt;b&gt;x" in str(chart.figure.layout.xaxis.ticktext)
