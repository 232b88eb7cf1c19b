"""Figures: explicit colours and ranges, a second coding, and words for who cannot see them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from stagelens import charts
from stagelens.contracts import ACCURACY, Behaviour
from tests.support.stage_trust import AGREES, ALL, EXACT, REFUSED, RELIABLE, ROUGH

LOSS = Behaviour("loss", "lower", "nats")
STAGES = ["pretrain", "shortcut", "adapt"]
TRUST = {"pretrain": EXACT, "shortcut": ROUGH, "adapt": REFUSED}
HOSTILE = "<b onmouseover=alert(1)>x</b>"
PALETTES = [charts.LIGHT, charts.DARK, charts.EITHER]


def stage_means(gains: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Stage to (credit, blame)."""
    return pd.DataFrame(
        [
            {
                "stage": stage,
                "group": None,
                "n": 10,
                "missing": 0,
                "effect": -(credit + blame),
                "gain": credit + blame,
                "credit": credit,
                "blame": blame,
                "credit_share": 0.5,
                "blame_share": 0.5,
                "within_noise": pd.NA,
            }
            for stage, (credit, blame) in gains.items()
        ]
    )


MEANS = stage_means({"pretrain": (2.0, -0.5), "shortcut": (0.1, -4.0), "adapt": (math.nan,) * 2})
STEPS = {"pretrain": 10_000, "shortcut": 10, "adapt": 90}
RATES = pd.DataFrame(
    [
        {"stage": s, "step": t, "lr": 0.1 / (t + 1)}
        for s, n in STEPS.items()
        for t in range(min(n, 9))
    ]
)
PATHS = pd.DataFrame(
    [
        {"boundary": b, "group": g, "n": 5, "value": 0.1 * i + (0.001 if g else 0)}
        for g in (None, "clean", "stamped")
        for i, b in enumerate(["base", *STAGES])
    ]
)


def every_chart(palette: charts.Palette) -> list[charts.Chart]:
    effects = pd.DataFrame({"stage": STAGES, "effect": [1.0, -2.0, math.nan]})
    return [
        charts.credit_and_blame(MEANS, LOSS, TRUST, palette),
        charts.example_effects(effects, LOSS, TRUST, palette),
        charts.time_line(STEPS, RATES, PATHS, ACCURACY, palette),
        charts.time_line(STEPS, RATES, None, None, palette),
    ]


def paths_of(figure: go.Figure) -> list[go.Scatter]:
    """The lines of a behaviour after each boundary, below a time line."""
    return [trace for trace in figure.data if trace.yaxis == "y3"]


def bars(figure: go.Figure, name: str) -> go.Bar:
    return next(trace for trace in figure.data if trace.name == name)


@pytest.mark.parametrize("palette", PALETTES, ids=lambda p: p.name)
def test_every_figure_says_its_takeaway_and_leaves_nothing_to_defaults(
    palette: charts.Palette,
) -> None:
    for chart in every_chart(palette):
        assert len(chart.alt) > 20 and chart.alt.endswith(".")
        assert chart.figure.layout.height
        assert chart.figure.layout.font.color == palette.text
        assert all(axis.range for axis in chart.figure.select_yaxes())
        for trace in chart.figure.data:
            assert trace.marker.color or trace.line.color


def test_credit_is_blue_and_solid_and_right_blame_vermilion_and_hatched_and_left() -> None:
    figure = charts.credit_and_blame(MEANS, LOSS, TRUST).figure
    credit, blame = bars(figure, "credit"), bars(figure, "blame")
    assert (credit.marker.color, blame.marker.color) == ("#0072B2", "#D55E00")
    assert (credit.marker.pattern.shape, blame.marker.pattern.shape) == ("", "/")
    assert all(x >= 0 for x in credit.x if np.isfinite(x))
    assert all(x <= 0 for x in blame.x if np.isfinite(x))


def test_stages_stand_in_training_order_from_top_to_bottom() -> None:
    figure = charts.credit_and_blame(MEANS, LOSS, TRUST).figure
    axis = figure.layout.yaxis
    assert [text.split("<")[1][2:] for text in axis.ticktext] == STAGES
    assert axis.range[0] > axis.range[1]


def test_the_range_is_symmetric_with_a_quarter_to_spare() -> None:
    low, high = charts.credit_and_blame(MEANS, LOSS, TRUST).figure.layout.xaxis.range
    assert (low, high) == (-5.0, 5.0)


def test_effects_that_round_to_zero_are_not_blown_up() -> None:
    effects = pd.DataFrame({"stage": STAGES, "effect": [1e-7, -1e-6, 0.0]})
    assert charts.example_effects(effects, LOSS, TRUST).figure.layout.xaxis.range[1] >= 0.01


def test_every_bar_carries_its_trust_as_shape_and_word() -> None:
    figure = charts.credit_and_blame(MEANS, LOSS, TRUST).figure
    ticks = figure.layout.yaxis.ticktext
    assert "● exact" in ticks[0] and "✕ refused" in ticks[2]
    assert "○ rough" in ticks[1]


@pytest.mark.parametrize("standing", ALL)
def test_what_may_not_be_leaned_on_is_faint_and_says_so(standing: str) -> None:
    means = stage_means({"pretrain": (2.0, -0.5)})
    chart = charts.credit_and_blame(means, LOSS, {"pretrain": ALL[standing]})
    leaned_on = ALL[standing] in (EXACT, AGREES, RELIABLE)
    for name in ("credit", "blame"):
        assert (bars(chart.figure, name).marker.opacity[0] == 1) is leaned_on
    said = bars(chart.figure, "credit").customdata[0]
    warned = not leaned_on and standing != "refused"
    assert ("not to be relied on" in said) is warned
    assert ("not to be relied on" in chart.alt) is warned
    assert standing in said and standing in chart.alt


def test_a_mean_within_training_noise_is_marked_at_its_bar() -> None:
    means = stage_means({"pretrain": (2.0, -0.5), "shortcut": (1.0, 0.0)})
    chart = charts.credit_and_blame(means.assign(within_noise=[False, True]), LOSS, TRUST)
    ticks = chart.figure.layout.yaxis.ticktext
    assert "≈" not in ticks[0] and "≈ within noise" in ticks[1]
    assert chart.alt.count("within training noise") == 1
    one = pd.DataFrame(
        {"stage": STAGES, "effect": [1.0, 1.0, 1.0], "within_noise": [True, False, None]}
    )
    ticks = charts.example_effects(one, LOSS, TRUST).figure.layout.yaxis.ticktext
    assert ["≈" in tick for tick in ticks] == [True, False, False]


def test_a_refused_stage_shows_words_and_no_bar() -> None:
    chart = charts.credit_and_blame(MEANS, LOSS, TRUST)
    notes = [note.text for note in chart.figure.layout.annotations]
    assert "refused: no number" in notes
    assert bars(chart.figure, "credit").text[2] == ""
    assert "adapt: no number" in chart.alt


def test_shares_are_drawn_in_points() -> None:
    means = stage_means({"pretrain": (0.5, -0.25)})
    figure = charts.credit_and_blame(means, ACCURACY, {}).figure
    assert bars(figure, "credit").x[0] == 50 and bars(figure, "credit").text[0] == "+50"


def test_a_lower_loss_stands_on_the_credit_side() -> None:
    effects = pd.DataFrame({"stage": ["pretrain"], "effect": [-2.0]})
    chart = charts.example_effects(effects, LOSS, {})
    assert bars(chart.figure, "credit").x[0] == 2.0
    assert "pretrain: credit 2.00" in chart.alt


def test_short_stages_stay_readable_on_the_time_line() -> None:
    band = charts.time_line(STEPS, RATES, None, None).figure.data[0]
    assert min(band.width) > 0.1
    assert [name.split("<")[1][2:] for name in band.text] == list(STEPS)


def test_a_stage_has_the_same_colour_in_every_run() -> None:
    fewer = charts.time_line({"pretrain": 5, "shortcut": 5}, RATES, None, None).figure.data[0]
    all_of_them = charts.time_line(STEPS, RATES, None, None).figure.data[0]
    assert list(fewer.marker.color) == list(all_of_them.marker.color)[:2]


def test_very_different_learning_rates_get_a_scale_each() -> None:
    rates = pd.DataFrame({"stage": ["pretrain", "shortcut"], "step": [0, 0], "lr": [0.1, 1e-5]})
    figure = charts.time_line({"pretrain": 1, "shortcut": 1}, rates, None, None).figure
    assert any("own scale" in note.text for note in figure.layout.annotations)
    assert [float(trace.y[0]) for trace in figure.data[1:]] == [1.0, 1.0]


def test_groups_differ_by_dash_and_marker_and_are_named_at_their_line() -> None:
    figure = charts.time_line(STEPS, RATES, PATHS, LOSS).figure
    lines = paths_of(figure)
    assert len({trace.line.dash for trace in lines}) == 3
    assert len({trace.marker.symbol for trace in lines}) == 3
    names = [note for note in figure.layout.annotations if note.text in ("all", "clean", "stamped")]
    assert len(names) == 3


@pytest.mark.parametrize("behaviour", [LOSS, ACCURACY])
def test_many_groups_that_end_together_are_all_named_within_the_chart(behaviour) -> None:
    ends = [1.0] * 6 + [0.99, 0.5, 0.02, 0.0, 0.0, 0.0]
    rows = [
        {"boundary": boundary, "group": f"group {number}", "value": value}
        for number, end in enumerate(ends)
        for boundary, value in zip(("base", *STAGES), (0.5, 0.5, 0.5, end), strict=True)
    ]
    paths = pd.concat([PATHS, pd.DataFrame(rows)])
    figure = charts.time_line(STEPS, RATES, paths[paths["boundary"].isin(("base", *STAGES))],
                              behaviour).figure  # fmt: skip
    low, high = figure.layout.yaxis3.range
    names = [n for n in figure.layout.annotations if n.yref == "y3" and n.xref == "x3"]
    assert len(names) == 12 + PATHS["group"].nunique(dropna=False)
    heights = sorted(note.y for note in names)
    assert low <= heights[0] and heights[-1] <= high
    assert all(b - a >= 0.05 * (high - low) for a, b in pairwise(heights))
    lines = paths_of(figure)
    looks = {(t.line.color, t.line.dash, t.marker.symbol) for t in lines}
    assert len(looks) == len(lines)


def test_a_boundary_that_was_not_measured_is_left_out() -> None:
    part = PATHS[PATHS["group"].isna() & (PATHS["boundary"] != "base")]
    (path,) = paths_of(charts.time_line(STEPS, RATES, part, LOSS).figure)
    assert len(path.x) == 3


def test_names_from_data_are_escaped() -> None:
    means = stage_means({HOSTILE: (1.0, 0.0)})
    paths = PATHS.assign(group=HOSTILE)
    for chart in (
        charts.credit_and_blame(means, LOSS, {HOSTILE: EXACT}),
        charts.time_line({HOSTILE: 5}, RATES.assign(stage=HOSTILE), None, None),
        charts.time_line(STEPS, RATES, pd.concat([PATHS, paths]), LOSS),
    ):
        assert HOSTILE not in chart.figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")


def contrast(color: str, background: str) -> float:
    def luminance(value: str) -> float:
        channels = [int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(color), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("palette", "background"),
    [(charts.LIGHT, "#FFFFFF"), (charts.DARK, "#0E1116"), (charts.EITHER, "#FFFFFF"),
     (charts.EITHER, "#0E1116")],
    ids=lambda v: v if isinstance(v, str) else v.name,
)  # fmt: skip
def test_lines_and_text_can_be_told_from_the_background(
    palette: charts.Palette, background: str
) -> None:
    for color in (palette.line, palette.text, *palette.groups, charts.CREDIT, charts.BLAME):
        assert contrast(color, background) >= 3
    if palette is not charts.EITHER:
        assert contrast(palette.text, background) >= 7
        assert contrast(palette.muted, background) >= 4.5
