"""Charts of before and after an edit."""

from __future__ import annotations

import pandas as pd

from stagelens.charts.removal import (
    calibration_curve,
    confusion_map,
    group_accuracy,
    layer_strengths,
)

GROUPS = ("all examples", "<b>torn</b>")


def rows(low: float = 0.1) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": model,
                "group": group,
                "n": 40,
                "accuracy": share,
                "accuracy_low": share - low,
                "accuracy_high": share + low,
            }
            for model, share in (("final model", 0.5), ("edited", 0.75))
            for group in GROUPS
        ]
    )


def test_every_model_has_a_mark_of_its_own_with_its_interval() -> None:
    chart = group_accuracy(rows())
    final, edited = chart.figure.data
    assert list(edited.x) == [75, 75] and list(edited.error_x.array) == [10, 10]
    assert final.marker.symbol != edited.marker.symbol and final.marker.color != edited.marker.color
    assert "all examples, edited: 75.0 %" in chart.alt
    low, high = chart.figure.layout.xaxis.range
    assert low <= 40 and high > 100


def test_a_preview_is_marked_as_no_more_than_that() -> None:
    shown = group_accuracy(rows(float("nan")), approximate="edited")
    final, edited = shown.figure.data
    assert list(edited.text) == ["≈ 75.0"] * 2 and list(final.text) == ["50.0"] * 2
    assert edited.marker.opacity < final.marker.opacity and not any(edited.error_x.array)


def test_names_of_groups_are_no_markup() -> None:
    ticks = group_accuracy(rows()).figure.layout.yaxis.ticktext
    assert "&lt;b&gt;torn&lt;/b&gt;" in ticks[1]


def test_confusion_shows_counts_and_shades_shares() -> None:
    counts = pd.DataFrame([[3, 1], [0, 4]], index=["a", "b"], columns=["a", "b"])
    chart = confusion_map(counts, "edited model")
    assert chart.figure.data[0].z.tolist() == [[0.75, 0.25], [0, 1]]
    assert [note.text for note in chart.figure.layout.annotations] == ["3", "1", "4"]
    assert "1 of 8 answers are wrong" in chart.alt


def test_calibration_draws_accuracy_against_confidence_of_both() -> None:
    bins = pd.DataFrame({"confidence": [0.5, 0.9], "accuracy": [0.4, 1.0], "n": [10, 40]})
    diagonal, final, edited = calibration_curve({"final model": bins, "edited": bins}).figure.data
    assert list(diagonal.x) == list(diagonal.y)
    assert list(edited.x) == [50, 90] and list(edited.y) == [40, 100] and final.name != edited.name


def test_strengths_by_layer_stand_in_the_order_of_the_model() -> None:
    chart = layer_strengths({"shortcut": {"body": 0.5, "head": 1.0}}, ["#123456"])
    assert list(chart.figure.data[0].x) == [50, 100]
    assert chart.alt == "Strength by layer. shortcut: body 50 %, head 100 %."
