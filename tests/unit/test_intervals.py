"""Between which values effects lie: what an interval is made of, and what follows from it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stagelens import charts
from stagelens.analyses.slices.effects import slice_summary
from stagelens.analyses.slices.saved import Slice
from stagelens.charts.style import NEITHER, PAPER
from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.headlines import headlines
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.summary import stage_summary
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.examples import slices as slices_tab
from stagelens.wording.intervals import example_error, example_interval, made_of, mean_interval
from stagelens.wording.sentences import mean_sentence
from tests.support.effect_tables import effect_table
from tests.support.stage_trust import AGREES, DISAGREES, EXACT, REFUSED, ROUGH, agreement, trust

LOSS = Behaviour("loss", "lower", "nats")
GROUP = trust(group_error=0.25, expected_error=0.4)
REPLAYED = trust(estimator="replay", expected_error=0.02, reliable=True)


def near(expected: Any) -> Any:
    """Equal but for what 1.96 is off by."""
    return pytest.approx(expected, abs=1e-4)


def row(effect: float = -1.0, error: float = 0.5, rms: float = 4.0) -> dict[str, Any]:
    found = {"effect": effect, "error": error, "rms": rms}
    return {**found, "stage": "shortcut", "group": None, "n": 10**8}


def ends(of: dict[str, Any], known: StageTrust | None) -> tuple[float, float] | None:
    found = mean_interval(of, known, LOSS)
    return None if found is None else (found.low, found.high)


def test_the_interval_is_the_hull_of_sampling_and_of_the_estimate() -> None:
    assert ends(row(), GROUP) == near((-1 - 0.98 - 1.0, -1 + 0.98 + 1.0))


def test_of_few_examples_single_errors_average_out_less() -> None:
    of_one = mean_interval({**row(), "n": 1}, GROUP, LOSS)
    of_many = mean_interval(row(), GROUP, LOSS)
    assert of_one is not None and of_many is not None
    assert of_one.estimate == pytest.approx(4.0 * np.hypot(0.25, 0.4))
    assert of_many.estimate == pytest.approx(4.0 * 0.25)


@pytest.mark.parametrize("known", [EXACT, None])
def test_where_nothing_is_estimated_it_is_the_sampling_interval(known: StageTrust | None) -> None:
    assert ends(row(), known) == near((-1.98, -0.02))


@pytest.mark.parametrize("known", [ROUGH, AGREES, DISAGREES, REFUSED])
def test_where_the_error_is_not_known_there_is_none(known: StageTrust) -> None:
    assert ends(row(), known) is None
    assert made_of(None, LOSS) == "no interval: the error of this mean is not known"


def test_a_promise_that_a_replay_did_not_bear_out_makes_no_interval() -> None:
    off = (agreement(0.4, 1.3, behaviour="loss"),)
    assert ends(row(), trust("does not agree", agreements=off, group_error=0.25)) is None
    assert ends(row(), AGREES.model_copy(update={"group_error": 0.25})) is not None


def test_a_replay_that_is_not_bit_for_bit_is_off_by_what_it_misses() -> None:
    assert ends(row(), REPLAYED) == near((-1 - 0.98 - 0.08, -1 + 0.98 + 0.08))


def test_a_single_example_has_no_sampling_interval() -> None:
    assert ends(row(error=float("nan")), GROUP) is None


POSSIBLE = [
    # Without it, accuracy would lie in 0..1: so the effect in final - 1..final.
    (ACCURACY, {"final": 0.9}, (-0.1, 0.9), (-1.0, 1.0)),
    (ACCURACY, {"final": 1.0}, (0.0, 1.0), (-1.0, 1.0)),
    (ACCURACY, {}, (-1.0, 1.0), (-1.0, 1.0)),
    # A loss is not below zero, so the effect not above that of the final model; of other examples
    # than these it may be, as far as these examples say.
    (Behaviour("loss", "lower", lowest=0.0), {"final": 0.3}, (-2.0, 0.3), (-2.0, 2.26)),
    (Behaviour("margin", "higher"), {"final": 0.3}, (-2.0, 4.0), (-2.0, 4.0)),
]


@pytest.mark.parametrize(("kind", "final", "ends", "over_others"), POSSIBLE)
def test_no_end_lies_beyond_what_is_possible(
    kind: Behaviour,
    final: dict[str, float],
    ends: tuple[float, float],
    over_others: tuple[float, float],
) -> None:
    found = mean_interval({**row(1.0, 1.0, 4.16), **final}, GROUP, kind)
    assert found is not None and found.sampling + found.estimate == near(3.0)
    one = example_interval(1.0, 3.0, kind, final.get("final", np.nan))
    assert one is not None
    for interval, own in ((found, over_others), (one, ends)):
        assert (interval.low, interval.high) == near(own)
        assert interval.cut is ("cut off at what is possible" in made_of(interval, kind))
        assert interval.cut is (own != (-2.0, 4.0))


def test_no_interval_over_examples_ends_at_its_own_mean() -> None:
    """Other examples have another final mean, so this sample's bounds neither end."""
    perfect = {**row(0.0, 0.04, 0.0), "final": 1.0}
    found = mean_interval(perfect, EXACT, ACCURACY)
    assert found is not None and (found.low, found.high) == near((-0.0784, 0.0784))
    assert not found.cut


def test_bars_and_cells_reach_no_further() -> None:
    effects = pd.DataFrame({"stage": ["shortcut"], "effect": [0.5], "error": [0.8], "final": [0.9]})
    chart = charts.example_effects(effects, ACCURACY, {"shortcut": GROUP})
    assert whiskers(chart) == near([60.0, 40.0])
    drawn = charts.effect_bars(effects, ACCURACY, {"shortcut": GROUP}, largest=1.0).html
    assert "left:45.00%;width:50.00%" in drawn
    means = pd.DataFrame([{**row(0.5, 0.1, 4.0), "final": 0.9, "gain": 0.5, "credit": 0.5}])
    means = means.assign(blame=0.0, credit_share=1.0, blame_share=0.0, within_noise=pd.NA)
    chart = charts.credit_and_blame(means, ACCURACY, {"shortcut": GROUP})
    assert whiskers(chart) == near([60 + 19.59964, 50.0])  # other examples add 19.6 to the 60
    assert chart.rows is not None and chart.rows[["low", "high"]].values.tolist() == [
        pytest.approx([-0.296, 1.0], abs=1e-4)
    ]
    cells: dict[Hashable, Any] = {
        **row(0.5),
        "final": 0.9,
        "low": 0.3,
        "high": 0.7,
        "within_noise": None,
    }
    assert slices_tab._cell(cells, ACCURACY, GROUP) == "± 50 (−30 to 100)"


def test_what_can_be_is_stored_with_a_table() -> None:
    for kind in (ACCURACY, LOSS, Behaviour("loss", "lower", lowest=0.0)):
        stored = BehaviourFacts.of(kind).model_dump_json()
        assert BehaviourFacts.model_validate_json(stored).behaviour() == kind


def test_it_is_said_what_it_is_made_of() -> None:
    said = made_of(mean_interval(row(), GROUP, LOSS), LOSS)
    assert said == (
        "interval −0.98 to +2.98: ±0.98 from the choice of examples (95 %), ±1.00 from the "
        "estimate (nine of ten stay within)"
    )
    assert "estimate" not in made_of(mean_interval(row(), EXACT, LOSS), LOSS)
    share = made_of(mean_interval(row(0.1, 0.01, 0.1), GROUP, ACCURACY), ACCURACY)
    assert "stay within, measured on margins, losses and log-likelihoods, not on the acc" in share


@pytest.mark.parametrize(
    ("known", "error"),
    [(EXACT, 0.0), (None, 0.0), (ROUGH, 2.08), (AGREES, 0.48), (REFUSED, None), (trust(), None)],
)
def test_one_effect_is_off_by_a_share_of_the_size_of_all(
    known: StageTrust | None, error: float | None
) -> None:
    found = example_error(known, 4.0, "margin")
    assert found == (None if error is None else pytest.approx(error))


# -------------------------------------------------------------------------- tables and sentences


def test_sizes_are_of_the_whole_set_and_its_labelled_examples() -> None:
    table = effect_table(
        {"a": [3.0, -4.0, 100.0]}, labels=["x", "y", None], groups=["left", "right", "right"]
    )
    rms = (25 / 2) ** 0.5
    for by in (None, "group"):
        assert stage_summary(table, LOSS, ["a"], by)["rms"].tolist() == pytest.approx(
            [rms] * (1 if by is None else 2)
        )
    free = table.assign(label=None)
    assert stage_summary(free, LOSS, ["a"])["rms"][0] == pytest.approx((10025 / 3) ** 0.5)
    own = Slice.model_construct(name="one", example_ids=["e0", "e1"])
    assert slice_summary([table], LOSS, ["a"], [own])["rms"].tolist() == pytest.approx([rms])


def test_a_mean_whose_interval_includes_zero_shows_no_clear_change() -> None:
    said = str(mean_sentence(row(), LOSS, "image", None, GROUP))
    assert said == (
        "Without shortcut, the mean loss on all images may show no clear change: 0.98 lower to "
        "2.98 higher (100,000,000 images)."
    )
    clear = str(mean_sentence(row(effect=-3.0), LOSS, "image", None, GROUP))
    assert "may be some 3 higher (100,000,000 images)" in clear
    exact = str(mean_sentence(row(error=0.6), LOSS, "image", None, EXACT))
    assert "would show no clear change: 0.18 lower to 2.18 higher" in exact


def test_no_headline_rests_on_a_mean_that_the_estimate_may_have_made() -> None:
    table = effect_table({"shortcut": list(np.linspace(1.0, 1.2, 40))})
    known = trust(group_error=0.5, reliable=True)
    assert len(headlines(table, LOSS, ["shortcut"], {"shortcut": known})) == 1
    off = known.model_copy(update={"group_error": 1.1})
    assert headlines(table, LOSS, ["shortcut"], {"shortcut": off}) == []


# ------------------------------------------------------------------------------------------ bars


def means(**more: float) -> pd.DataFrame:
    own = {"gain": 1.0, "credit": 1.5, "blame": -0.5, "credit_share": 0.8, "blame_share": 0.2}
    return pd.DataFrame([{**row(), **own, "within_noise": pd.NA, **more}])


def whiskers(chart: charts.Chart) -> list[float]:
    """How far each reaches to the left and to the right."""
    found = [trace for trace in chart.figure.data if trace.name == "interval"]
    assert len(found) in (0, 2)  # the dark line and its light seam
    if not found:
        return []
    ends = found[-1].error_x
    return [end for both in zip(ends.arrayminus, ends.array, strict=True) for end in both]


def test_bars_have_the_interval_of_the_mean() -> None:
    chart = charts.credit_and_blame(means(), LOSS, {"shortcut": GROUP})
    assert whiskers(chart) == near([1.98, 1.98])
    assert "±1.00 from the estimate" in chart.figure.data[0].customdata[0]
    assert chart.rows is not None and chart.rows["high"].tolist() == near([0.98])
    unknown = charts.credit_and_blame(means(), LOSS, {"shortcut": ROUGH})
    assert whiskers(unknown) == []
    assert (
        "no interval: the error of this mean is not known" in unknown.figure.data[0].customdata[0]
    )


def test_bars_of_an_estimated_mean_that_is_not_clear_are_not_coloured() -> None:
    for known, of, named in (
        (GROUP, means(), {"neither"}),
        (GROUP, means(effect=-3.0), {"credit", "blame"}),
        # Single examples have their credit and blame where nothing is estimated.
        (EXACT, means(error=2.0), {"credit", "blame"}),
    ):
        chart = charts.credit_and_blame(of, LOSS, {"shortcut": known})
        bars = [each for each in chart.figure.data if each.type == "bar"]
        assert {bar.name for bar in bars if np.isfinite(bar.x).any()} == named
        net = next(each for each in chart.figure.data if each.name == "net")
        clear = known is GROUP and named == {"credit", "blame"}
        assert net.marker.color[0] == (PAPER if clear else NEITHER)


def test_bars_of_one_example_have_theirs() -> None:
    effects = pd.DataFrame({"stage": ["shortcut"], "effect": [-1.0], "error": [0.4]})
    chart = charts.example_effects(effects, LOSS, {"shortcut": GROUP})
    assert whiskers(chart) == near([0.4, 0.4])
    assert "±0.40, which nine of ten" in chart.figure.data[0].customdata[0]
    drawn = charts.effect_bars(effects, LOSS, {"shortcut": GROUP}).html
    assert "left:80.00%;width:20.00%" in drawn and "±0.40, which nine of ten" in drawn
    without = charts.effect_bars(effects.assign(error=np.nan), LOSS, {"shortcut": GROUP}).html
    assert "nine of ten" not in without


@pytest.mark.parametrize(
    ("low", "high", "known", "mark"),
    [
        (-1.2, -0.8, EXACT, "▲"),
        (-1.2, 0.1, EXACT, "±"),
        (-1.2, -0.8, trust(group_error=0.3), "±"),
        (-1.2, -0.8, trust(wrong_signs=0.3), "±"),
    ],
)
def test_cells_of_slices_have_a_direction_where_it_is_clear(
    low: float, high: float, known: StageTrust, mark: str
) -> None:
    cells: dict[Hashable, Any] = {
        **row(),
        "final": 1.0,
        "low": low,
        "high": high,
        "within_noise": None,
    }
    assert slices_tab._cell(cells, LOSS, known).startswith(f"{mark} 1.00 (")
