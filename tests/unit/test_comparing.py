"""Two measurements of one stage compared with each other: what is the same, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from stagelens.charts.comparison import effect_against_effect
from stagelens.contracts import Behaviour, RunError
from stagelens.estimators.stage_trust import StageTrust
from stagelens.trust.comparing import Side, comparable_set, compare_effects, comparison_sentence

LOSS = Behaviour("loss", "lower", "nats")
MARGIN = Behaviour("margin", "higher", "nats")
EXACT = StageTrust(stage="a", estimator="replay", trust="exact", reason="")


def side(name: str, effects, behaviour: Behaviour = LOSS, first: int = 0) -> Side:
    ids = [f"e{first + number}" for number in range(len(effects))]
    return Side(name, behaviour, pd.DataFrame({"example_id": ids, "effect": effects}), EXACT)


@pytest.fixture
def effects() -> np.ndarray:
    return np.random.default_rng(0).normal(size=200)


def test_the_same_effects_agree_in_every_figure(effects: np.ndarray) -> None:
    found = compare_effects(side("one", effects), side("two", effects))
    assert found.figures["r"] == pytest.approx(1) and found.figures["slope"] == pytest.approx(1)
    assert found.figures["relative_error"] == 0 and found.figures["sign_agreement"] == 1
    assert (found.points["apart"] == 0).all()


def test_figures_are_those_of_a_float64_reference(effects: np.ndarray) -> None:
    other = 0.5 * effects + np.random.default_rng(1).normal(size=200)
    found = compare_effects(side("one", effects), side("two", other))
    assert found.figures["r"] == pytest.approx(np.corrcoef(effects, other)[0, 1])
    assert found.figures["slope"] == pytest.approx((effects @ other) / (effects @ effects))
    size = np.linalg.norm(effects - other) / np.linalg.norm(other)
    assert found.figures["relative_error"] == pytest.approx(size)
    low, high = found.intervals["r"]
    assert low < found.figures["r"] < high


def test_only_examples_that_both_have_count_and_the_largest_disagreement_is_first() -> None:
    found = compare_effects(
        side("one", [1.0, 2.0, np.nan, 4.0]), side("two", [9.0, 2.5, 3.0], first=1)
    )
    assert found.points["example_id"].tolist() == ["e1", "e3"]
    assert found.points["apart"].tolist() == pytest.approx([-7.0, 1.0])  # gains: loss turns signs


def test_behaviours_are_compared_as_credit_and_blame(effects: np.ndarray) -> None:
    found = compare_effects(side("loss", -effects, LOSS), side("margin", 3 * effects, MARGIN))
    assert found.figures["r"] == pytest.approx(1) and found.figures["sign_agreement"] == 1
    assert not found.one_unit and np.isnan(found.figures["relative_error"])
    assert found.points["apart"].abs().max() == pytest.approx(0, abs=1e-12)  # 3 is the slope


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda e, noise: e + 0.01 * noise, "order the examples alike"),
        (lambda e, noise: 0.5 * e + noise, "agree in part"),
        (lambda e, noise: noise, "have no certain relation"),
        (lambda e, noise: -e + 0.5 * noise, "disagree"),
    ],
)
def test_the_sentence_says_how_far_they_agree(effects: np.ndarray, other, said: str) -> None:
    noise = np.random.default_rng(2).normal(size=200)
    found = compare_effects(side("one", effects), side("two", other(effects, noise)))
    assert str(comparison_sentence(found, "a")).startswith(f"On a, one and two {said}: r ")


def test_few_examples_or_a_constant_cannot_be_compared(effects: np.ndarray) -> None:
    few = compare_effects(side("one", effects[:19]), side("two", effects[:19]))
    assert "only 19 examples have both" in str(comparison_sentence(few, "a"))
    flat = compare_effects(side("one", effects), side("two", np.zeros(200)))
    assert "the same everywhere" in str(comparison_sentence(flat, "a"))


def test_the_chart_has_every_example_and_points_towards_credit(effects: np.ndarray) -> None:
    found = compare_effects(side("<b>", effects), side("two", effects, MARGIN))
    chart = effect_against_effect(found, "a")
    traces = {trace.name: trace for trace in chart.figure.data if trace.mode == "markers"}
    assert sum(len(trace.x) for trace in traces.values()) == 200
    assert not len(traces["credit by both"].x) and not len(traces["blame by both"].x)
    assert len(traces["credit by one, blame by the other"].x) == 200  # loss down, margin down
    assert "&lt;b&gt;" in chart.figure.layout.xaxis.title.text


# ----------------------------------------------------------------------------------- two runs


def fake_run(name: str, task: str = "image", classes=("a", "b"), **sets: str) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        file=SimpleNamespace(task=SimpleNamespace(name=task, config={"classes": list(classes)})),
        set_names=list(sets),
        evaluation_set=lambda asked: SimpleNamespace(digest=sets[asked]),
    )


def test_the_same_set_is_found_under_another_name() -> None:
    one, two = fake_run("one", test="d"), fake_run("two", test="x", held_out="d")
    assert comparable_set(one, "test", two) == "held_out"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (fake_run("two", task="text", test="d"), "run two is of task text, and one of image"),
        (fake_run("two", classes=("a", "c"), test="d"), "have different classes"),
        (fake_run("two", test="other"), "its set test holds other examples"),
        (fake_run("two", more="other"), "it has no such set"),
    ],
)
def test_runs_of_another_task_or_set_are_refused_by_name(other, said: str) -> None:
    with pytest.raises(RunError, match=said):
        comparable_set(fake_run("one", test="d"), "test", other)
