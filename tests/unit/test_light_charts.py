"""Charts as markup say the same as their figures, hold names as text, and stay on their axis."""

from __future__ import annotations

import re
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from stagelens.charts import EITHER
from stagelens.charts.agreement_picture import agreement_picture
from stagelens.charts.marked_rows import Mark, Row, marked_rows, round_numbers, tick_text
from stagelens.charts.removal import accuracy_rows, group_accuracy
from stagelens.charts.trust import agreement
from stagelens.contracts import Behaviour

MARGIN = Behaviour("margin", better="higher")
HOSTILE = "<img src=x onerror=alert(1)>' onclick='x"


def points(count: int) -> pd.DataFrame:
    drawn = np.random.default_rng(0).normal(size=(2, count))
    ids = [f"{HOSTILE}{each}" for each in range(count)]
    within = pd.array([each % 5 == 0 for each in range(count)], dtype="boolean")
    return pd.DataFrame(
        {"example_id": ids, "estimate": drawn[0], "replay": drawn[0] + 0.2 * drawn[1],
         "within_noise": within}
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 3, 900])
def test_the_picture_of_an_agreement_says_what_its_figure_says(count: int) -> None:
    parts = (points(count), MARGIN, HOSTILE, "task-vector", 0.9)
    picture, figure = agreement_picture(*parts), agreement(*parts, EITHER)
    assert picture.alt == figure.alt
    assert "<img src=x" not in picture.html and "' onclick" not in picture.html
    svg = unquote(picture.html.split("data:image/svg+xml,")[1].split('"')[0])
    of_kinds = [svg.count("m-3.5 2.5"), svg.count("m-3.5-2.5"), svg.count("m-3.5 0")]
    drawn = [trace.x for trace in figure.figure.data if trace.mode == "markers"]
    assert of_kinds == [len(each) for each in drawn] and sum(of_kinds) == min(count, 400)
    assert len(picture.html) < 20_000


def test_a_picture_puts_a_point_where_its_numbers_are() -> None:
    one = pd.DataFrame(
        {"example_id": ["a", "b"], "estimate": [-1.0, 1.0], "replay": [-1.0, 1.0],
         "within_noise": pd.array([False, False], dtype="boolean")}
    )  # fmt: skip
    svg = unquote(agreement_picture(one, MARGIN, "adapt", "task-vector", np.nan).html)
    (right,) = re.findall(r"M([\d.]+) ([\d.]+)m-3.5 2.5", svg)
    (left,) = re.findall(r"M([\d.]+) ([\d.]+)m-3.5-2.5", svg)
    # Both lie on the diagonal of a frame of 250 by 200, the credit above the blame.
    for across, down in (map(float, right), map(float, left)):
        assert across / 250 == pytest.approx(1 - down / 200, abs=1e-3)
    assert float(right[0]) > 125 > float(left[0])


def test_rows_escape_names_and_keep_marks_on_the_axis() -> None:
    marks = [Mark(120.0, 90.0, np.nan, "#000000", "●", HOSTILE, href=HOSTILE, text=HOSTILE)]
    rows = [Row(HOSTILE, HOSTILE, marks, end=HOSTILE)]
    shown = marked_rows(rows, (0.0, 100.0), [("●", "#000000", HOSTILE)], HOSTILE).html
    assert "<img" not in shown and "' onclick" not in shown
    shares = [float(each) for each in re.findall(r"left:([-\d.]+)%", shown)]
    assert shares and all(0 <= each <= 100 for each in shares)


def test_a_value_that_is_not_known_has_no_mark() -> None:
    rows = [Row("a", "", [Mark(np.nan, np.nan, np.nan, "#000000", "●", "nothing")])]
    assert "nothing" not in marked_rows(rows, (0.0, 1.0), [], "said").html


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-3.0, 103.0), (-0.004, 0.011), (-7e4, 2e5)])
def test_numbers_of_an_axis_are_round_few_and_told_apart(ends: tuple[float, float]) -> None:
    ticks = round_numbers(*ends)
    assert 2 <= len(ticks) <= 8 and ends[0] <= ticks[0] and ticks[-1] <= ends[1]
    texts = [tick_text(each, ticks) for each in ticks]
    assert len(set(texts)) == len(texts) and "−0" not in texts


def test_accuracies_as_rows_say_what_their_figure_says() -> None:
    rows = pd.DataFrame(
        [
            {"model": model, "group": group, "n": 40, "accuracy": share,
             "accuracy_low": share - 0.1, "accuracy_high": share + 0.05}
            for group in ("all examples", HOSTILE)
            for model, share in (("final model", 0.7), ("edited", 0.9))
        ]
    )  # fmt: skip
    shown = accuracy_rows(rows, "edited")
    assert shown.alt == group_accuracy(rows, EITHER, "edited").alt
    assert shown.html.count(">≈ 90.0<") == 2 and shown.html.count(">70.0<") == 2
    assert "<img" not in shown.html
