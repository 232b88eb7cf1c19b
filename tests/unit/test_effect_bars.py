"""Bars of one example as markup: they say what the chart of the same effects says."""

from __future__ import annotations

import html
import re

import pandas as pd
import pytest

from stagelens import charts
from stagelens.contracts import Behaviour
from tests.support.stage_trust import trust

LOSS = Behaviour("loss", "lower", "nats")
SHARE = Behaviour("accuracy", "higher", "")
EFFECTS = [-2.0, 1.0, 0.0004, float("nan")]
STAGES = ["first", "second", "third", "fourth"]
HOSTILE = "<img src=x onerror=alert(1)>'\"\u202e"


def table(effects: list[float] = EFFECTS, noisy: tuple[int, ...] = ()) -> pd.DataFrame:
    within = pd.array([number in noisy for number in range(len(effects))], dtype="boolean")
    return pd.DataFrame(
        {"stage": STAGES[: len(effects)], "effect": effects, "within_noise": within}
    )


def bars(markup: str) -> list[tuple[str, float, float]]:
    """Side from zero, share of the width in percent, and opacity."""
    found = re.findall(r"(left|right):50%;top:.15em;.*?width:([\d.]+)%;.*?opacity:([\d.]+)", markup)
    return [(side, float(width), float(opacity)) for side, width, opacity in found]


def test_credit_goes_to_the_right_and_blame_hatched_to_the_left_on_one_scale() -> None:
    drawn = charts.effect_bars(table(), LOSS, {}).html
    assert bars(drawn) == [("left", 50.0, 1.0), ("right", 25.0, 1.0), ("right", 0.01, 1.0)]
    assert drawn.count(charts.CREDIT) == 1 and drawn.count("repeating-linear-gradient") == 2
    assert "▲ 2.00" in drawn and "▼ 1.00" in drawn and "no number" in drawn


def test_amounts_have_a_mark_unless_they_round_to_zero() -> None:
    assert charts.marked(0.5, LOSS) == "▲ 0.50" and charts.marked(-0.5, LOSS) == "▼ 0.50"
    assert charts.marked(0.0, LOSS) == "0"
    assert charts.marked(-0.42, SHARE) == "▼ 42 points"
    assert charts.marked(-0.0002, SHARE, unit=False) == "0.0"


def test_they_say_what_the_chart_says() -> None:
    known = {"first": trust("exact"), "second": trust("estimated", expected_error=0.9)}
    for effects in (table(), table(noisy=(1,))):
        drawn = charts.effect_bars(effects, LOSS, known)
        assert drawn.alt == charts.example_effects(effects, LOSS, known).alt
        assert html.escape(drawn.alt, quote=True) in drawn.html


def test_what_may_not_be_leaned_on_is_faint_and_named() -> None:
    known = {
        "first": trust("exact"),
        "second": trust("estimated", expected_error=0.5),
        "fourth": trust("refused"),
    }
    drawn = charts.effect_bars(table(noisy=(1,)), LOSS, known).html
    assert [opacity for *_, opacity in bars(drawn)] == [1.0, 0.4, 1.0]
    assert "refused: no number" in drawn and "≈ within noise" in drawn and "rough" in drawn
    noise = charts.effect_bars(table([-2.0], noisy=(0,)), LOSS, {})
    assert charts.CREDIT not in noise.html and "± 2.00" in noise.html  # no finding, so neither
    assert noise.alt.count("within training noise") == 1 and "credit" not in noise.alt


@pytest.mark.parametrize(("largest", "width"), [(4.0, 25.0), (1.0, 50.0), (None, 50.0)])
def test_examples_can_share_a_scale(largest: float | None, width: float) -> None:
    drawn = charts.effect_bars(table([-2.0]), LOSS, {}, largest).html
    assert bars(drawn)[0][1] == width


def test_effects_that_all_round_to_zero_are_not_blown_up() -> None:
    drawn = charts.effect_bars(table([-0.001, 0.001]), LOSS, {}).html
    assert [width for _, width, _ in bars(drawn)] == [5.0, 5.0]


def test_names_are_shown_as_they_are() -> None:
    effects = table([1.0]).assign(stage=[HOSTILE])
    drawn = charts.effect_bars(effects, LOSS, {})
    assert "<img" not in drawn.html and "\u202e" not in drawn.html
    assert "aria-label='Effect" in drawn.html
    label = re.search(r"aria-label='([^']*)'", drawn.html)
    assert label is not None and "onerror" in label[1]
