"""The waterfall of shares and the matrix of pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.share_table import SHARE, Shares, shares_of
from stagelens.charts.pair_matrix import pair_matrix
from stagelens.charts.style import BLAME, CREDIT, DARK, EITHER, LIGHT, NEITHER, Palette
from stagelens.charts.waterfall import FINAL, waterfall
from stagelens.report.figures import TRACES
from stagelens.wording.intervals import Interval
from tests.support.coalitions import made
from tests.support.stage_trust import trust

NAMES = ("pretrain", "shortcut", "<b>odd</b>")


def read(better: str = "higher", seed: int = 0, m: int = 3, **more: object) -> Shares:
    random = np.random.default_rng(seed)
    own = (4.0, -2.0, 0.0, *([0.3] * 20))[:m]
    v = {
        mask: sum(own[p] for p in range(m) if mask >> p & 1)
        - 1.5 * ((mask & 3) == 3)
        + random.normal(0, 0.2, 60)
        for mask in range(1 << m)
    }
    names = (*NAMES, *(f"s{p}" for p in range(3, m)))[:m]
    return shares_of(made(v, names, better=better, **more), "score")  # type: ignore[arg-type]


def drawn(found: Shares, palette: Palette = LIGHT):  # type: ignore[no-untyped-def]
    ends = found.level(0), found.level(found.full)
    return waterfall(found.means(SHARE), *ends, found.behaviour, palette)


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_bars_lead_from_the_base_to_the_final_model(better: str) -> None:
    found = read(better)
    figure = drawn(found).figure
    ends, *bars = [trace for trace in figure.data if trace.type == "bar"]
    assert list(ends.x) == pytest.approx([found.level(0), found.level(7)])
    begins = {place: at for trace in bars for place, at in zip(trace.y, trace.base, strict=True)}
    changes = {place: by for trace in bars for place, by in zip(trace.y, trace.x, strict=True)}
    assert begins[1] == pytest.approx(found.level(0))
    for place in (1, 2):
        assert begins[place + 1] == pytest.approx(begins[place] + changes[place])
    assert begins[3] + changes[3] == pytest.approx(found.level(7))
    # Better is to the right, so credit always is.
    low, high = figure.layout.xaxis.range
    assert (low < high) == (better == "higher")
    colors = {trace.name: trace.marker.color for trace in bars}
    assert colors == {"credit": CREDIT, "blame": BLAME, "neither": NEITHER}
    credit = next(trace for trace in bars if trace.name == "credit")
    assert list(credit.y) == ([1] if better == "higher" else [2])
    assert figure.layout.xaxis.zeroline


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_intervals_that_reach_beyond_all_bars_are_inside(better: str) -> None:
    found = read(better)
    first, *others = found.means(SHARE)
    over = Interval(first.mean - 30.0, first.mean + 40.0, 0.0, 0.0, drawn="3 redraws")
    ends = found.level(0), found.level(7)
    means = [replace(first, interval=over), *others]
    figure = waterfall(means, *ends, found.behaviour, LIGHT).figure
    low, high = sorted(figure.layout.xaxis.range)
    assert low < ends[0] + over.low and ends[0] + over.high < high


def test_names_are_escaped_and_the_takeaway_says_every_share() -> None:
    chart = drawn(read())
    assert "&lt;b&gt;odd&lt;/b&gt;" in chart.figure.layout.yaxis.ticktext[3]
    assert FINAL in chart.figure.layout.yaxis.ticktext[-1]
    assert chart.alt.startswith("Share of each stage in the score on all examples, from ")
    assert "<b>odd</b> " in chart.alt and "no clear change" in chart.alt and "exact" in chart.alt
    assert chart.rows is not None
    total = chart.rows["share"].sum()
    assert total == pytest.approx(read().level(7) - read().level(0))


def test_what_is_refused_has_no_bar() -> None:
    found = read(known={3: trust("refused", reason="It diverged.")})
    del found.v[3]  # type: ignore[attr-defined]
    chart = drawn(found)
    assert chart.alt.count("no number") == 3
    assert [a.text for a in chart.figure.layout.annotations].count("refused: no number") == 3


def test_what_is_not_to_be_relied_on_is_faint() -> None:
    rough = trust(expected_error=0.2, group_error=0.1, reliable=False)
    figure = drawn(read(known={mask: rough for mask in range(7)})).figure
    opacities = [o for t in figure.data if t.type == "bar" for o in np.atleast_1d(t.marker.opacity)]
    assert 0.4 in opacities


def test_of_many_stages_the_strongest_are_drawn_and_the_rest_as_one() -> None:
    means = read(m=3).means(SHARE)
    many = [
        type(means[0])(f"s{number}", 60, 1.0 + number / 100, None, means[0].trust)
        for number in range(20)
    ]
    chart = waterfall(many, 0.0, sum(one.mean for one in many), read().behaviour)
    ticks = chart.figure.layout.yaxis.ticktext
    assert len(ticks) == 12 + 3 and "8 more stages" in ticks[-2]
    assert chart.rows is not None and len(chart.rows) == 20


def test_cells_print_numbers_and_mute_what_is_not_clear() -> None:
    found = read()
    pairs = pairs_of(found)
    chart = pair_matrix(pairs, found.behaviour)
    heat, numbers = chart.figure.data
    printed = float(numbers.text[0].replace("−", "-"))
    assert printed == pytest.approx(pairs[0].given_all.mean, abs=0.01)
    assert all(text.startswith("(") for text in list(numbers.text)[1:])
    assert np.isfinite(np.array(heat.z, dtype=float)).sum() == 1
    assert len(set(numbers.textfont.color)) == 2
    assert f"shortcut after pretrain {numbers.text[0]}" in chart.alt and "in brackets" in chart.alt
    assert "&lt;b&gt;odd" in chart.figure.layout.yaxis.ticktext[1]
    assert {trace.type for trace in chart.figure.data} <= TRACES


def _luminance(color: str, background: float) -> float:
    """Of a see-through colour over a grey."""
    red, green, blue, share = (float(each) for each in color[5:-1].split(","))
    mixed = (share * c / 255 + (1 - share) * background for c in (red, green, blue))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mixed]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize(("background", "way"), [(1.0, -1), (0.06, 1)])
def test_brightness_is_monotone_away_from_zero(background: float, way: int) -> None:
    scale = pair_matrix(pairs_of(read()), read().behaviour).figure.data[0].colorscale
    for full, none in ((scale[0][1], scale[1][1]), (scale[3][1], scale[2][1])):
        parts = full[5:-1].split(",")
        steps = [",".join([*parts[:3], str(float(parts[3]) * s)]) for s in np.linspace(0, 1, 9)]
        seen = [_luminance(f"rgba({step})", background) for step in steps]
        assert (way * np.diff(seen) > 0).all()
        assert _luminance(none, background) == pytest.approx(
            _luminance("rgba(0,0,0,0)", background)
        )


@pytest.mark.parametrize("palette", [LIGHT, DARK, EITHER])
def test_every_palette_sets_its_own_colours(palette: Palette) -> None:
    found = read()
    for chart in (drawn(found, palette), pair_matrix(pairs_of(found), found.behaviour, palette)):
        assert chart.figure.layout.font.color == palette.text
        assert chart.figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_numbers_stand_beyond_the_intervals(better: str) -> None:
    found = read(better)
    means = found.means(SHARE)
    (numbers,) = (
        trace
        for trace in drawn(found).figure.data
        if trace.type == "scatter" and trace.mode == "text"
    )
    level = found.level(0)
    for one, x, side in zip(means, numbers.x, numbers.textposition, strict=True):
        assert one.interval is not None
        rises = one.mean > 0
        further = one.interval.high if rises else one.interval.low
        assert x == pytest.approx(level + further)
        assert side == ("middle right" if rises == (better == "higher") else "middle left")
        level += one.mean
