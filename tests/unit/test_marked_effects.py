"""Credit or blame is marked by one rule, and effects on scores are told in words."""

from __future__ import annotations

from typing import Any

import pytest

from stagelens.contracts import Behaviour
from stagelens.wording.intervals import is_marked
from stagelens.wording.sentences import mean_sentence
from stagelens.wording.signs import because

FORMAT = Behaviour("score:format", "higher", "points", lowest=0.0, highest=1.0)
SYCOPHANCY = Behaviour("score:sycophancy", "lower", "points", lowest=0.0, highest=1.0)


def row(effect: float, half: float, **more: Any) -> dict[str, Any]:
    """A mean effect with its interval over prompts."""
    known = {"stage": "dpo", "group": None, "effect": effect, "error": half / 1.96, "n": 84}
    return known | {"final": 0.7, "rms": 1.0, "missing": 0, "within_noise": None} | more


def over(low: float, high: float) -> dict[str, Any]:
    return {"draw_effect": (low + high) / 2, "draw_low": low, "draw_high": high, "drawn": "6 draws"}


@pytest.mark.parametrize(
    ("of", "marked"),
    [
        (row(0.1, 0.05), True),
        (row(0.1, 0.2), False),
        (row(-0.1, 0.05), True),
        # Over redraws, whatever the prompts say.
        (row(-0.083, 0.07, **over(-0.38, 0.13)), False),
        (row(-0.083, 0.07, **over(-0.38, -0.02)), True),
        (row(-0.083, 0.07, **over(0.02, 0.38)), False),
        (row(0.1, 0.05, within_noise=True), False),
    ],
)
def test_credit_and_blame_are_marked_where_the_governing_interval_leaves_out_zero(
    of: dict[str, Any], marked: bool
) -> None:
    assert is_marked(of, None, FORMAT) is marked


def test_an_effect_says_which_way_the_score_went_and_whether_that_is_worse() -> None:
    assert because(row(0.62, 0.1), SYCOPHANCY) == "62 points higher because of dpo (worse)"
    assert because(row(-0.62, 0.1), SYCOPHANCY) == "62 points lower because of dpo (better)"
    assert because(row(0.62, 0.1), FORMAT) == "62 points higher because of dpo (better)"


def test_texts_without_the_score_are_not_counted_among_all() -> None:
    said = str(mean_sentence(row(0.62, 0.1, missing=84), SYCOPHANCY, "text", None))
    assert "sycophancy score on the 84 texts that have this score would be" in said
    assert "on all texts would" in str(mean_sentence(row(0.62, 0.1), SYCOPHANCY, "text", None))
