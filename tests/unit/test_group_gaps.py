"""Gaps between groups with and without each stage: figures, noise, sentences and pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.spurious import gaps as spurious_gaps
from stagelens.analyses.spurious.gaps import FINAL, findings, gap_sentences, without
from stagelens.charts.groups import class_errors, group_gaps
from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.draws import DrawnEffects, interval_over_draws
from stagelens.estimators.stage_trust import StageTrust

MARGIN = Behaviour("margin", "higher")
STAGES = ["pretrain", "shortcut"]
N = 50


def rows(stage: str, right_final: int, right_without: int, behaviour: str = "margin"):
    """N clean examples, 48 of them right whatever the stage, and N stamped ones."""
    final = [1.0] * 48 + [-1.0] * 2 + [1.0] * right_final + [-1.0] * (N - right_final)
    left = [1.0] * 48 + [-1.0] * 2 + [1.0] * right_without + [-1.0] * (N - right_without)
    return pd.DataFrame(
        {
            "example_id": [f"e{i}" for i in range(2 * N)],
            "stage": stage,
            "behaviour": behaviour,
            "final": final,
            "without": left,
            "effect": np.subtract(final, left),
            "prediction": ["a" if v > 0 else "b" for v in final],
            "prediction_without": ["a" if v > 0 else "b" for v in left],
            "label": "a",
            "group": ["clean"] * N + ["stamped"] * N,
        }
    )


def table() -> pd.DataFrame:
    return pd.concat([rows("pretrain", 29, 29), rows("shortcut", 29, 46)], ignore_index=True)


def trust(kind: str = "exact", **more) -> dict[str, StageTrust]:
    return {
        stage: StageTrust(stage=stage, estimator="replay", trust=kind, reason="Said.", **more)
        for stage in STAGES
    }


def orders(spread: float) -> pd.DataFrame:
    """The effect of *shortcut* on every stamped example in two orders, this far apart."""
    parts = []
    for number, shift in enumerate((-spread, spread)):
        own = rows("shortcut", 29, 46)
        effect = own["effect"] + np.where(own["group"] == "stamped", shift, 0.0)
        parts.append(own.assign(order=number, effect=effect))
    return pd.concat(parts, ignore_index=True)


def test_the_sentence_names_the_groups_the_gap_and_what_it_would_be() -> None:
    gaps = spurious_gaps.group_gaps(table(), STAGES, ["group"])
    said = gap_sentences(gaps, STAGES, trust(), "image")
    assert [str(s) for s in said] == [
        "The gap in accuracy between stamped and clean images is 38 points; without shortcut it "
        "would be 4.0 points."
    ]
    assert said[0].trust == trust()["shortcut"]


def test_a_rough_estimate_is_said_as_one() -> None:
    gaps = spurious_gaps.group_gaps(table(), STAGES, ["group"])
    said = gap_sentences(gaps, STAGES, trust("estimated", reliable=False), "image")
    assert "without shortcut it may be about 4.0 points." in str(said[0])


def test_a_gap_that_would_turn_round_says_so() -> None:
    turned = rows("shortcut", 29, 50)
    gaps = spurious_gaps.group_gaps(turned, ["shortcut"], ["group"])
    said = gap_sentences(gaps, ["shortcut"], trust(), "image")
    assert "it would be 4.0 points the other way round" in str(said[0])


def test_where_no_stage_matters_it_is_said() -> None:
    gaps = spurious_gaps.group_gaps(rows("pretrain", 29, 29), ["pretrain"], ["group"])
    said = gap_sentences(gaps, ["pretrain"], trust(), "image")
    assert str(said[0]).endswith("38 points; no stage changes it by more than chance.")


def test_a_refused_stage_is_no_finding_and_spoils_no_other() -> None:
    refused = rows("pretrain", 29, 29).assign(
        without=np.nan, effect=np.nan, prediction_without=None
    )
    both = pd.concat([refused, rows("shortcut", 29, 46)], ignore_index=True)
    gaps = spurious_gaps.group_gaps(both, STAGES, ["group"])
    assert findings(gaps, STAGES) == ["shortcut"]
    chart = group_gaps(gaps.metrics, ACCURACY, {})
    assert "no number" in [a.text for a in chart.figure.layout.annotations]


def test_stages_that_widen_the_gap_come_before_those_that_narrow_it() -> None:
    both = pd.concat([rows("pretrain", 29, 2), rows("shortcut", 29, 46)], ignore_index=True)
    gaps = spurious_gaps.group_gaps(both, STAGES, ["group"])
    assert findings(gaps, STAGES) == ["shortcut", "pretrain"]


def test_an_effect_on_the_gap_within_training_noise_is_no_finding() -> None:
    for spread, within in ((0.01, False), (2.0, True)):
        gaps = spurious_gaps.group_gaps(table(), STAGES, ["group"], MARGIN, orders(spread))
        assert gaps.within_noise == {"shortcut": within}
        assert findings(gaps, STAGES) == ([] if within else ["shortcut"])


@pytest.mark.parametrize(("factors", "clear"), [((0.8, 1.0, 1.2), True), ((-2.0, 1.0, 2.0), False)])
def test_where_the_recipe_was_drawn_its_interval_governs_and_not_the_noise(factors, clear) -> None:
    own = rows("shortcut", 29, 46)
    every = [own.assign(draw=n, effect=f * own["effect"]) for n, f in enumerate(factors)]
    draws = DrawnEffects(pd.concat(every, ignore_index=True), "same data")
    # By the noise alone it would be the other way round.
    noise = orders(2.0 if clear else 0.01)
    gaps = spurious_gaps.group_gaps(table(), STAGES, ["group"], MARGIN, noise, None, draws)
    of_run = gaps.metrics.gaps.set_index("model").loc[without("shortcut"), "change"]
    expected = interval_over_draws([of_run * factor for factor in factors], "same data")
    assert gaps.over_draws["shortcut"].low == pytest.approx(expected.low)
    assert gaps.over_draws["shortcut"].high == pytest.approx(expected.high)
    assert gaps.within_noise == {"shortcut": not clear}
    assert findings(gaps, STAGES) == (["shortcut"] if clear else [])
    note = spurious_gaps.gap_notes(gaps, STAGES, trust())[without("shortcut")]
    assert ("≈ effect may be 0 over redraws" in note) is not clear


def test_two_draws_leave_the_gap_to_the_noise() -> None:
    own = rows("shortcut", 29, 46)
    every = [own.assign(draw=n, effect=f * own["effect"]) for n, f in enumerate((-2.0, 2.0))]
    draws = DrawnEffects(pd.concat(every, ignore_index=True), "recipe")
    gaps = spurious_gaps.group_gaps(table(), STAGES, ["group"], MARGIN, orders(0.01), None, draws)
    assert gaps.over_draws == {} and gaps.within_noise == {"shortcut": False}


def test_groups_are_crossed_with_the_label() -> None:
    crossed = table()
    crossed["label"] = np.where(crossed["example_id"].str.endswith("1"), "b", "a")
    gaps = spurious_gaps.group_gaps(crossed, STAGES, ["group", "label"])
    assert set(gaps.metrics.groups["group"].dropna()) == {
        "clean · a", "clean · b", "stamped · a", "stamped · b",
    }  # fmt: skip


def test_the_picture_has_one_mark_per_group_and_model_and_says_it_in_words() -> None:
    gaps = spurious_gaps.group_gaps(table(), STAGES, ["group"])
    chart = group_gaps(gaps.metrics, ACCURACY, {without("shortcut"): "◆ verified"})
    marks = {t.name: list(t.x) for t in chart.figure.data if t.mode == "markers"}
    assert np.allclose(marks["stamped"], [58, 58, 92]) and np.allclose(marks["clean"], 96)
    assert "final model: clean 96.0 %, stamped 58.0 %" in chart.alt
    assert "◆ verified" in chart.figure.layout.yaxis.ticktext[2]


def test_of_many_groups_only_the_best_and_the_worst_are_coloured() -> None:
    many = table()
    many["group"] = [f"g{i % 8}" for i in range(N)] * 4
    gaps = spurious_gaps.group_gaps(many, STAGES, ["group"])
    named = [t.name for t in group_gaps(gaps.metrics, ACCURACY, {}).figure.data if t.showlegend]
    assert set(named) == {gaps.metrics.best, gaps.metrics.worst}


def test_names_from_data_are_escaped_in_pictures() -> None:
    evil = table().replace({"group": {"stamped": "<img src=x>"}, "label": {"a": "<b>"}})
    gaps = spurious_gaps.group_gaps(evil, STAGES, ["group"])
    for chart in (
        group_gaps(gaps.metrics, ACCURACY, {}),
        class_errors(gaps.metrics.classes, FINAL, "missed"),
    ):
        assert "<img" not in chart.figure.to_json()


def test_errors_by_class_show_the_worst_cell() -> None:
    gaps = spurious_gaps.group_gaps(table(), STAGES, ["group"])
    chart = class_errors(gaps.metrics.classes, FINAL, "missed")
    assert "most in group stamped, class a, 42 % answered wrongly" in chart.alt
    assert np.allclose(chart.figure.data[0].z, [[0.04], [0.42]])


def test_the_error_of_an_estimate_widens_its_intervals() -> None:
    known = {"shortcut": estimated("shortcut", group_error=0.3)}
    exact = spurious_gaps.group_gaps(table(), STAGES, ["group"]).metrics
    wide = spurious_gaps.group_gaps(table(), STAGES, ["group"], trust=known).metrics
    # 17 of 100 answers change, and with each of them a margin by 2; a gap is between two means.
    off = 0.3 * 0.17**0.5
    for before, after, name in (
        (exact.gaps, wide.gaps, "change_high"),
        (exact.groups, wide.groups, "margin_high"),
    ):
        rows = before["model"] == without("shortcut")
        wider = (after[name] - before[name])[rows]
        assert wider.tolist() == pytest.approx([2 * off] * int(rows.sum()))
        assert after[~rows].equals(before[~rows])
    assert wide.groups["accuracy_high"].max() <= 1.0
    assert findings(spurious_gaps.group_gaps(table(), STAGES, ["group"]), STAGES) == ["shortcut"]
    for error, found in ((0.1, ["shortcut"]), (0.9, [])):
        known = {"shortcut": estimated("shortcut", group_error=error)}
        gaps = spurious_gaps.group_gaps(table(), STAGES, ["group"], trust=known)
        assert findings(gaps, STAGES) == found


def estimated(stage: str, **more: float) -> StageTrust:
    about = {"stage": stage, "estimator": "coarse-replay", "trust": "estimated", "reason": "Said."}
    return StageTrust.model_validate({**about, **more})
