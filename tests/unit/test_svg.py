"""Charts as SVG: well-formed, to scale, and every kind that can be pinned."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import xml.etree.ElementTree as ET
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from stagelens import charts
from stagelens.charts.style import BLAME, CREDIT, DARK, EITHER, LIGHT, themed, variables
from stagelens.charts.svg.drawing import as_svg
from stagelens.charts.svg.writing import Undrawable
from stagelens.contracts import Behaviour
from stagelens.report.figures import kept
from tests.support.every_chart import EVERY, TRUST

WIDTHS = (700, 388)
OF = "{http://www.w3.org/2000/svg}"
MARGIN = Behaviour("margin", "higher")


@cache
def figure_of(name: str) -> dict[str, Any]:
    return kept(EVERY[name]())[0]


def drawn(figure: go.Figure | dict[str, Any], width: int = 700, **told: bool) -> ET.Element:
    given = (
        kept(charts.Chart(figure, "", pd.DataFrame()))[0]
        if isinstance(figure, go.Figure)
        else figure
    )
    return ET.fromstring(as_svg(given, width, "c", "What it shows", "What it says.", **told))


def all_of(root: ET.Element, tag: str) -> list[ET.Element]:
    return root.findall(f".//{OF}{tag}")


def words(root: ET.Element) -> list[str]:
    return ["".join(each.itertext()) for each in all_of(root, "text")]


def test_every_chart_that_can_be_pinned_is_known_here() -> None:
    made = set()
    for module in pkgutil.iter_modules(charts.__path__):
        own = importlib.import_module(f"stagelens.charts.{module.name}")
        for name, function in inspect.getmembers(own, inspect.isfunction):
            if (
                not name.startswith("_")
                and inspect.signature(function).return_annotation == "Chart"
            ):
                made.add(name)
    assert made == set(EVERY)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EVERY)
def test_every_chart_has_a_picture(name: str, width: int) -> None:
    figure = figure_of(name)
    root = drawn(figure, width)
    assert root.get("role") == "img"
    assert float(root.get("height", 0)) >= figure["layout"]["height"]
    title, said = (root.find(f"{OF}{tag}") for tag in ("title", "desc"))
    assert title is not None and said is not None
    assert root.get("aria-labelledby") == f"{title.get('id')} {said.get('id')}"
    assert said.text == "What it says."
    names = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(names) == len(set(names))
    # All that it points to is in it.
    pointed = set(re.findall(r"url\(#([^)]+)\)", ET.tostring(root, "unicode")))
    assert pointed <= set(names)
    marks = [one for tag in ("rect", "path", "circle", "image") for one in all_of(root, tag)]
    assert len(marks) > 2
    for each in (*all_of(root, "rect"), *all_of(root, "image")):
        assert float(each.get("width", 0)) >= 0 and float(each.get("height", 0)) >= 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EVERY)
def test_words_stay_within_the_picture(name: str, width: int) -> None:
    for each in all_of(drawn(figure_of(name), width), "text"):
        assert -2 <= float(each.get("x", 0)) <= width + 2, "".join(each.itertext())


def scale_of(root: ET.Element, axis: str, figure: go.Figure) -> np.ndarray:
    """Value by pixel of an axis, from the places of the numbers on it."""
    ticks = {}
    for each in all_of(root, "text"):
        text = "".join(each.itertext()).replace("−", "-").replace(" %", "")
        if re.fullmatch(r"-?[\d.]+", text) and each.get("fill", "").startswith("var(--muted"):
            ticks[float(text)] = float(each.get(axis, 0))
    assert len(ticks) >= 2
    values = sorted(ticks)
    return np.polyfit([ticks[value] for value in values], values, 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_bars_are_as_long_as_their_numbers(width: int) -> None:
    """Read off the picture with a ruler, the values are those of the table below it."""
    means = pd.DataFrame(
        {"stage": ["a", "b"], "group": None, "n": 9, "missing": 0, "gain": [1.5, -0.75],
         "effect": [1.5, -0.75], "credit": [2.25, 0.5], "blame": [-0.75, -1.25],
         "credit_share": 0.5, "blame_share": 0.5, "within_noise": pd.NA, "error": 0.0}
    )  # fmt: skip
    trust = dict.fromkeys(("a", "b"), TRUST["pretrain"])
    chart = charts.credit_and_blame(means, MARGIN, trust, EITHER)
    root = drawn(chart.figure, width)
    slope, zero = scale_of(root, "x", chart.figure)
    found: dict[str, list[float]] = {CREDIT: [], BLAME: []}
    for box in all_of(root, "rect"):
        if (color := box.get("stroke")) in found and float(box.get("height", 0)) > 12:
            left, wide = float(box.get("x", 0)), float(box.get("width", 0))
            ends = np.array([left, left + wide]) * slope + zero
            assert np.abs(ends).min() < 0.02 * slope + 0.005  # it begins at zero
            found[color].append(float(ends[np.abs(ends).argmax()]))
    rows = kept(chart)[1].records()
    for kind, color in (("credit", CREDIT), ("blame", BLAME)):
        assert found[color] == pytest.approx([float(row[kind]) for row in rows], abs=0.02)


def test_points_and_whiskers_lie_where_their_numbers_are() -> None:
    figure = go.Figure(
        go.Scatter(x=[1, 4], y=[10, 1000], mode="markers", marker={"color": CREDIT, "size": 8},
                   error_x={"array": [1, 2], "arrayminus": [0.5, 1], "symmetric": False,
                            "width": 0})
    )  # fmt: skip
    figure.update_layout(height=300, margin={"l": 50, "r": 50, "t": 50, "b": 50})
    figure.update_xaxes(range=[0, 10])
    figure.update_yaxes(type="log", range=[0, 4])
    root = drawn(figure)
    at = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in all_of(root, "circle")]
    assert at == [(110, 200), (290, 100)]
    whiskers = next(p for p in all_of(root, "path") if p.get("stroke") == CREDIT)
    assert whiskers.get("d") == "M110 200H170M110 200H80M290 100H410M290 100H230"


def test_bars_of_groups_stand_beside_each_other_and_piles_add_up() -> None:
    def of(mode: str) -> list[tuple[float, float]]:
        figure = go.Figure([go.Bar(x=["a"], y=[size], marker={"color": CREDIT}) for size in (1, 3)])
        figure.update_layout(height=200, barmode=mode, showlegend=False,
                             margin={"l": 0, "r": 0, "t": 50, "b": 50})  # fmt: skip
        figure.update_yaxes(range=[0, 4])
        boxes = [box for box in all_of(drawn(figure), "rect") if box.get("fill") == CREDIT]
        return [(float(b.get("y", 0)), float(b.get("height", 0))) for b in boxes]

    assert of("group") == [(125, 25), (75, 75)]
    assert of("stack") == of("relative") == [(125, 25), (50, 75)]


def test_cells_have_the_colours_of_the_scale_and_many_are_one_picture() -> None:
    def cells(z: list[list[float | None]]) -> ET.Element:
        figure = go.Figure(go.Heatmap(z=z, zmin=0, zmax=1, showscale=False,
                                      colorscale=[[0, "#000000"], [1, "#FFFFFF"]]))  # fmt: skip
        return drawn(figure)

    few = [box.get("fill") for box in all_of(cells([[0, 0.5], [None, 1]]), "rect")[1:]]
    assert few == ["#000000", "#808080", "#ffffff"]
    (picture,) = all_of(cells([[0.5] * 40] * 40), "image")
    assert picture.get("href", "").startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    "figure",
    [
        go.Figure(go.Box(y=[1, 2])),
        go.Figure(go.Scatter(y=[1, 2], line={"shape": "spline"})),
        go.Figure(go.Scatter(y=[1, 2], mode="markers", marker={"symbol": "bowtie"})),
        go.Figure(go.Scatter(x=["2026-01-01"], y=[1]), {"xaxis": {"type": "date"}}),
        go.Figure(go.Bar(y=[1]), {"annotations": [{"text": "x", "showarrow": True}]}),
    ],
)
def test_what_is_not_drawn_is_named(figure: go.Figure) -> None:
    with pytest.raises(Undrawable, match=r"box|spline|bowtie|date|arrow"):
        drawn(figure)


def test_names_from_data_are_text() -> None:
    figure = go.Figure(
        go.Bar(x=[1], y=["a"], orientation="h", text=['</text><script>x</script>"\x00'],
               textposition="outside", customdata=["&lt;b&gt;<b>bold</b>"],
               marker={"color": CREDIT},
               hovertemplate="%{customdata}<extra></extra>")
    )  # fmt: skip
    root = drawn(figure)
    assert not all_of(root, "script")
    (said,) = [each.text for each in all_of(root, "title") if each.get("id") is None]
    assert said == "<b>bold"
    assert not [each for each in all_of(drawn(figure, told=False), "title") if not each.get("id")]


def test_colours_for_either_background_are_those_of_the_readers_theme() -> None:
    colors = {EITHER.grid, EITHER.muted, *EITHER.groups}
    for palette in (LIGHT, DARK):
        known = dict(each.split(":") for each in variables(palette).split(";"))
        for color in colors:
            name = re.search(r"var\((--[\w-]+),", themed(color))
            assert name is not None and known[name[1]]
        assert known["--group-1"] == palette.groups[1] and known["--text"] == palette.text
    assert themed(CREDIT) == CREDIT


def test_numbers_below_a_narrow_chart_do_not_meet() -> None:
    figure = go.Figure(go.Scatter(x=[0, 1_000_000], y=[0, 1]))
    figure.update_layout(height=200, margin={"l": 20, "r": 20, "t": 20, "b": 40})
    figure.update_xaxes(nticks=12, tickfont={"color": EITHER.muted, "size": 12})
    figure.update_yaxes(visible=False)
    places = [float(each.get("x", 0)) for each in all_of(drawn(figure, 240), "text")]
    assert len(places) >= 2 and min(b - a for a, b in pairwise(places)) > 40
