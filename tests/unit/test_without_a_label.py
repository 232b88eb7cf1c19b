"""An answer that nobody has called right has no credit or blame; unknown words are told."""

from __future__ import annotations

import html

import pandas as pd
import pytest

from stagelens import charts
from stagelens.charts.style import BLAME, CREDIT, PUSH
from stagelens.contracts import Behaviour
from stagelens.demos.comments import make_task
from tests.support.stage_trust import EXACT, UNSURE

LOSS, MARGIN = Behaviour("loss", "lower"), Behaviour("margin", "higher")


def effects(kind: Behaviour) -> pd.DataFrame:
    """The stage ``to`` pushes towards the answer, ``off`` away from it."""
    return pd.DataFrame({"stage": ["to", "off"], "effect": [0.5 * kind.sign, -0.3 * kind.sign]})


@pytest.mark.parametrize("kind", [LOSS, MARGIN], ids=lambda kind: kind.name)
def test_stages_push_towards_the_answer_or_away_from_it(kind: Behaviour) -> None:
    trust = {"to": EXACT, "off": EXACT}
    bars = charts.effect_bars(effects(kind), kind, trust, towards="<7>")
    chart = charts.example_effects(effects(kind), kind, trust, towards="<7>")
    drawn = [trace for trace in chart.figure.data if trace.type == "bar"]
    assert {trace.name: [x for x in trace.x if x == x] for trace in drawn} == {
        "towards": [0.5], "away": [-0.3],
    }  # fmt: skip
    assert {trace.marker.color for trace in drawn} == {PUSH}
    for said in (html.unescape(bars.html), chart.figure.to_json()):
        assert "credit" not in said and "blame" not in said
        assert CREDIT not in said and BLAME not in said and "▲" not in said and "▼" not in said
    assert "+0.50" in bars.html and "−0.30" in bars.html
    assert "← away from &lt;7&gt;" in bars.html and "towards &lt;7&gt; →" in bars.html
    for alt in (bars.alt, chart.alt):
        assert "to: pushes towards <7>, by 0.50" in alt
        assert "off: pushes away from <7>, by 0.30" in alt


def test_an_uncertain_sign_pushes_nowhere() -> None:
    trust = {"to": UNSURE, "off": EXACT}
    bars = charts.effect_bars(effects(MARGIN), MARGIN, trust, towards="7")
    assert "± 0.50" in bars.html and "+0.50" not in bars.html


def test_words_that_the_tokenizer_does_not_know_are_told() -> None:
    task = make_task()
    known = next(w for w in task.tokenizer._backend.get_vocab() if w.isalpha() and len(w) > 3)
    assert task.check_input({"text": known}) is None
    said = task.check_input({"text": f"Zyxwv {known} qwrtz zyxwv"})
    # As they were written, each once; those that differ in case are not the same in the text.
    assert said == (
        "unknown to the tokenizer, so all alike to the model: “Zyxwv”, “qwrtz”, “zyxwv”"
    )
    many = " ".join(f"qq{letter}" for letter in "abcdefghijkl")
    assert str(task.check_input({"text": many})).endswith("“qqh” and 4 more")
