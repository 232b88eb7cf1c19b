"""Numbers stand clear of marks, zeros have their zero, shades get stronger on any background."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from stagelens import charts
from stagelens.analyses.shares.share_table import SHARE, shares_of
from stagelens.charts.diverging_bars import BELOW
from stagelens.charts.groups import class_errors, group_gaps
from stagelens.charts.places import patch_map
from stagelens.charts.removal import confusion_map, group_accuracy
from stagelens.charts.saliency import pixel_maps
from stagelens.charts.steps import step_contributions
from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.groups import group_metrics
from tests.support.coalitions import made
from tests.support.saliency_maps import image_map

MARGIN = Behaviour("margin", "higher")
TEXT, DIAMOND = 14, 13


def test_intervals_and_net_marks_stand_below_the_numbers_and_within_their_row() -> None:
    effects = pd.DataFrame({"stage": ["a", "b", "c"], "effect": [1.0, -2.0, 0.5],
                            "error": 0.2, "final": 1.0})  # fmt: skip
    figure = charts.example_effects(effects, MARGIN, {}).figure
    top, bottom = figure.layout.yaxis.range[::-1]
    margin = figure.layout.margin
    row = (figure.layout.height - margin.t - margin.b) / (bottom - top)
    assert BELOW * row - DIAMOND / 2 >= TEXT / 2
    assert BELOW * row + DIAMOND / 2 <= row / 2
    whiskers = [trace for trace in figure.data if trace.name == "interval"]
    assert whiskers and all((trace.y[0] % 1) == pytest.approx(BELOW) for trace in whiskers)


@pytest.mark.parametrize(("stage", "lines"), [("shortcut", 1), ("31 examples of shortcut", 2)])
def test_beside_long_names_directions_stand_in_two_lines(stage: str, lines: int) -> None:
    effects = pd.DataFrame({"stage": [stage], "effect": [1.0], "error": 0.2, "final": 1.0})
    figure = charts.example_effects(effects, ACCURACY, {}).figure
    said = [each for each in figure.layout.annotations if "←" in each.text or "→" in each.text]
    places = sorted(each.yshift for each in said)
    assert len(said) == 2 and len(set(places)) == lines
    assert lines == 1 or places[1] - places[0] >= TEXT  # no line lies on the other
    assert places[0] - 1.5 * TEXT >= -figure.layout.margin.b  # with the room around its letters


def test_accuracies_of_neighbouring_groups_do_not_meet() -> None:
    for models in (["final model", "edited"], ["final model", "edited", "replay"]):
        rows = pd.DataFrame(
            [
                {"model": m, "group": g, "n": 9, "accuracy": 0.9, "accuracy_low": 0.85,
                 "accuracy_high": 0.95} for m in models for g in ("x", "y")
            ]
        )  # fmt: skip
        figure = group_accuracy(rows).figure
        margin, (bottom, top) = figure.layout.margin, figure.layout.yaxis.range
        row = (figure.layout.height - margin.t - margin.b) / (bottom - top)
        marks = [
            (row * trace.y[group], trace.textposition.split()[0])
            for group in (0, 1)
            for trace in figure.data
        ]
        boxes = []  # the mark, and its number above or below it
        for y, side in marks:
            ends = (y - 6, y + 6 + 15) if side == "bottom" else (y - 6 - 15, y + 6)
            boxes.append(ends)
        boxes.sort()
        assert all(low[1] <= high[0] for low, high in pairwise(boxes))


def test_names_at_the_end_of_a_sum_stand_away_from_each_other() -> None:
    rows = pd.DataFrame({"step": [0, 1], "value": [1.0, 1.0]})
    rates = pd.DataFrame({"step": [0], "lr": [0.1]})
    for effect in (2.0, 2.01, 1.0, 9.0):
        figure = step_contributions(rows, rates, MARGIN, "s", effect, "#56B4E9").figure
        first, stage = (
            next(a for a in figure.layout.annotations if a.text == text)
            for text in ("○ first<br>order", "stage<br>effect")
        )
        upper, lower = sorted((first, stage), key=lambda a: a.yanchor != "bottom")
        assert upper.y >= lower.y and (upper.yanchor, lower.yanchor) == ("bottom", "top")
        assert not upper.yshift and not lower.yshift


def zeros(figure: go.Figure) -> list[str]:
    said = [a.text for a in figure.layout.annotations if a.text in ("0", "0.0")]
    texts = [t.text for t in figure.data if t.type == "scatter" and t.text is not None]
    return said + [word.strip() for own in texts for word in own if word.strip() in ("0", "0.0")]


def test_a_bar_of_length_zero_has_its_zero() -> None:
    effects = pd.DataFrame({"stage": ["a", "b"], "effect": [0.0, 1.0]})
    assert zeros(charts.example_effects(effects, MARGIN, {}).figure) == ["0"]
    means = effects.assign(
        group=None, n=9, missing=0, gain=effects["effect"], credit=effects["effect"], blame=0.0,
        credit_share=0.5, blame_share=0.0, within_noise=pd.NA, error=0.0,
    )  # fmt: skip
    assert zeros(charts.credit_and_blame(means, ACCURACY, {}).figure) == ["0.0"]
    v = {mask: np.full(30, 5.0 + (mask & 1)) for mask in range(4)}
    found = shares_of(made(v, ("a", "b")), "score")
    ends = found.level(0), found.level(found.full)
    assert zeros(charts.waterfall(found.means(SHARE), *ends, found.behaviour).figure) == ["0"]


def test_a_gap_that_may_be_none_has_no_bar_and_stands_in_brackets() -> None:
    def table(right: int) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "group": ["a"] * 60 + ["b"] * 60,
                "label": "x",
                "prediction": ["x"] * 50 + ["y"] * 10 + ["x"] * right + ["y"] * (60 - right),
                "margin": 0.0,
                "example_id": [str(n) for n in range(120)],
            }
        )

    metrics = group_metrics({"final model": table(20), "without s": table(49)}, ["group"])
    figure = group_gaps(metrics, ACCURACY, {}).figure
    bars = [t for t in figure.data if t.type == "scatter" and t.mode == "lines"]
    assert [list(bar.y) for bar in bars] == [[0, 0]]
    texts = [a.text for a in figure.layout.annotations]
    assert "50" in texts and "(1.7)" in texts


def luminance(color: str, background: float) -> float:
    red, green, blue, share = (float(each) for each in color[5:-1].split(","))
    mixed = (share * c / 255 + (1 - share) * background for c in (red, green, blue))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mixed]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def at(scale: list[tuple[float, str]], place: float) -> str:
    """The colour of a scale at a place, as plotly mixes it."""
    places = [stop for stop, _ in scale]
    channels = [[float(c) for c in color[5:-1].split(",")] for _, color in scale]
    mixed = (np.interp(place, places, own) for own in zip(*channels, strict=True))
    return f"rgba({','.join(str(each) for each in mixed)})"


def scales() -> dict[str, list[tuple[float, str]]]:
    """Colour scales from nothing to the most."""
    counts = pd.DataFrame([[3, 1], [0, 4]], index=["a", "b"], columns=["a", "b"])
    classes = pd.DataFrame(
        {"model": "m", "group": ["g", "g"], "label": ["a", "b"], "missed": [0.1, 0.9],
         "false": 0.0, "n": 9, "others": 9}
    )  # fmt: skip
    patches = pd.DataFrame(
        {"top": [0], "left": [0], "height": [2], "width": [2], "mean_with": [1.0], "support": [9]}
    )
    maps = pixel_maps(image_map(), "", MARGIN, "s").figure.layout.coloraxis.colorscale
    blame, credit = list(maps[:2])[::-1], list(maps[2:])
    return {
        "confusion": list(confusion_map(counts, "m").figure.data[0].colorscale),
        "errors": list(class_errors(classes, "m", "missed").figure.data[0].colorscale),
        "patches": list(patch_map(patches, (4, 4), MARGIN, "s").figure.data[0].colorscale),
        "blame": [(1 - 2 * stop, color) for stop, color in blame],
        "credit": [(2 * stop - 1, color) for stop, color in credit],
    }


@pytest.mark.parametrize("name", ["confusion", "errors", "patches", "blame", "credit"])
@pytest.mark.parametrize(("background", "way"), [(1.0, -1), (0.065, 1)], ids=["light", "dark"])
def test_heat_maps_are_monotone_in_brightness(name: str, background: float, way: int) -> None:
    scale = scales()[name]
    seen = [luminance(at(scale, place), background) for place in np.linspace(0, 1, 21)]
    assert (way * np.diff(seen) > 0).all()
    assert abs(seen[-1] - seen[0]) > 0.08  # and the ends can be told apart
