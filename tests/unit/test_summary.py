"""Numbers and sentences from effect tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagelens import summary
from stagelens.contracts import Behaviour
from stagelens.results import EFFECT_COLUMNS, StageTrust

LOSS = Behaviour("loss", "lower", "nats")
MARGIN = Behaviour("margin", "higher", "nats")
PROBABILITY = Behaviour("probability", "higher")
STAGES = ["pretrain", "shortcut"]
EXACT = StageTrust(stage="shortcut", estimator="replay", trust="exact", reason="Exact replay.")
REFUSED = StageTrust(
    stage="shortcut", estimator="task-vector", trust="refused", reason="It would diverge."
)


def effect_table(
    effects: dict[str, list[float]],
    behaviour: str = "loss",
    labels: list[str | None] | None = None,
    predictions: list[str] | None = None,
    without: dict[str, list[str]] | None = None,
    groups: list[str] | None = None,
) -> pd.DataFrame:
    """A small effect table; every example's final value is 1."""
    count = len(next(iter(effects.values())))
    blocks = [
        pd.DataFrame(
            {
                "set": "test",
                "example_id": [f"e{i}" for i in range(count)],
                "stage": stage,
                "behaviour": behaviour,
                "final": 1.0,
                "without": 1.0 - np.asarray(values),
                "effect": values,
                "estimator": "replay",
                "prediction": predictions or ["a"] * count,
                "prediction_without": (without or {}).get(stage, ["a"] * count),
                "confidence": 0.9,
                "confidence_without": 0.8,
                "within_noise": pd.array([None] * count, dtype="boolean"),
                "label": labels or ["a"] * count,
                "group": groups or ["g"] * count,
            }
        )
        for stage, values in effects.items()
    ]
    table = pd.concat(blocks, ignore_index=True)
    assert list(table.columns[: len(EFFECT_COLUMNS)]) == list(EFFECT_COLUMNS)
    return table


# ------------------------------------------------------------------------------------- means


def test_a_lower_loss_is_credit_and_a_higher_one_is_blame() -> None:
    table = effect_table({"pretrain": [-2.0, 1.0], "shortcut": [0.5, 0.5]})
    rows = summary.stage_summary(table, LOSS, STAGES).set_index("stage")
    assert rows.loc["pretrain", ["effect", "gain", "credit", "blame"]].tolist() == [
        -0.5,
        0.5,
        1.0,
        -0.5,
    ]
    assert rows.loc["shortcut", "credit"] == 0
    assert rows.loc["shortcut", "blame"] == -0.5


def test_a_higher_margin_is_credit() -> None:
    table = effect_table({"pretrain": [2.0, -1.0]}, behaviour="margin")
    row = summary.stage_summary(table, MARGIN, STAGES).iloc[0]
    assert (row["credit"], row["blame"]) == (1.0, -0.5)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.sampled_from([LOSS, MARGIN]))
def test_credit_and_blame_add_up_to_the_net_gain(
    effects: list[float], behaviour: Behaviour
) -> None:
    table = effect_table({"pretrain": effects}, behaviour=behaviour.name)
    row = summary.stage_summary(table, behaviour, STAGES).iloc[0]
    assert row["credit"] + row["blame"] == pytest.approx(row["gain"], abs=1e-9)
    assert row["gain"] == pytest.approx(behaviour.sign * row["effect"], abs=1e-9)
    assert row["credit"] >= 0 >= row["blame"]


def test_rows_come_in_training_order_and_per_group() -> None:
    table = effect_table({"shortcut": [1.0, 2.0], "pretrain": [3.0, 4.0]}, groups=["x", "y"])
    assert summary.stage_summary(table, LOSS, STAGES)["stage"].tolist() == STAGES
    rows = summary.stage_summary(table, LOSS, STAGES, "group")
    assert rows[["stage", "group", "effect"]].to_numpy().tolist() == [
        ["pretrain", "x", 3.0],
        ["pretrain", "y", 4.0],
        ["shortcut", "x", 1.0],
        ["shortcut", "y", 2.0],
    ]


def test_a_refused_stage_keeps_its_row_without_a_number() -> None:
    table = effect_table({"pretrain": [1.0, 1.0], "shortcut": [np.nan, np.nan]})
    row = summary.stage_summary(table, LOSS, STAGES).set_index("stage").loc["shortcut"]
    assert (row["n"], row["missing"]) == (0, 2)
    assert math.isnan(row["effect"]) and math.isnan(row["credit"])


def test_accuracy_comes_from_answers_and_leaves_out_examples_without_a_label() -> None:
    table = effect_table(
        {"pretrain": [0.0] * 4},
        labels=["a", "b", None, "a"],
        predictions=["a", "a", "a", "b"],
        without={"pretrain": ["b", "b", "b", "b"]},
    )
    rows = summary.stage_summary(summary.with_accuracy(table), summary.ACCURACY, STAGES)
    row = rows.iloc[0]
    assert (row["n"], row["missing"]) == (3, 1)
    assert row["final"] == pytest.approx(1 / 3)
    assert row["without"] == pytest.approx(1 / 3)
    assert row["credit"] == pytest.approx(1 / 3)  # right only with the stage
    assert row["blame"] == pytest.approx(-1 / 3)  # wrong only with the stage


def test_no_accuracy_without_labels() -> None:
    table = effect_table({"pretrain": [1.0]}, labels=["a"]).assign(label=None)
    assert "accuracy" not in set(summary.with_accuracy(table)["behaviour"])


def test_boundaries_come_in_order_with_the_sets_own_columns() -> None:
    boundaries = pd.DataFrame(
        {
            "set": "test",
            "example_id": ["e0", "e1"] * 3,
            "boundary": ["shortcut"] * 2 + ["base"] * 2 + ["pretrain"] * 2,
            "behaviour": "loss",
            "value": [0.5, 0.7, 2.0, 2.2, 1.0, 1.2],
            "prediction": ["a", "b", "b", "a", "a", "a"],
            "confidence": 0.5,
        }
    )
    examples = pd.DataFrame({"example_id": ["e0", "e1"], "label": ["a", "b"], "group": ["x", "y"]})
    table = summary.boundaries_with_accuracy(boundaries, examples)
    means = summary.boundary_summary(table, LOSS, STAGES)
    assert means["boundary"].tolist() == ["base", *STAGES]
    assert means["value"].tolist() == pytest.approx([2.1, 1.1, 0.6])
    right = summary.boundary_summary(table, summary.ACCURACY, STAGES, "group")
    assert right[["boundary", "group", "value"]].to_numpy().tolist() == [
        ["base", "x", 0.0],
        ["base", "y", 0.0],
        ["pretrain", "x", 1.0],
        ["pretrain", "y", 0.0],
        ["shortcut", "x", 1.0],
        ["shortcut", "y", 1.0],
    ]


def test_groups_are_columns_of_few_values_with_group_first() -> None:
    table = pd.DataFrame(
        {"label": ["a", "b"] * 10, "group": ["x", "y"] * 10, "one": 1, "many": range(20)}
    )
    assert summary.group_columns(table, ["many", "one", "label", "group"]) == ["group", "label"]


# --------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("behaviour", "effect", "said"),
    [
        (LOSS, -0.41, "Without shortcut, the loss would be 0.41 higher."),
        (LOSS, 0.41, "Without shortcut, the loss would be 0.41 lower."),
        (MARGIN, 3.0, "Without shortcut, the margin would be 3.00 lower."),
        (PROBABILITY, -0.5, "Without shortcut, the probability of the label would be 50 points "
         "higher."),
        (LOSS, 0.0, "Without shortcut, the loss would be the same."),
        (LOSS, 1e-7, "Without shortcut, the loss would be practically the same."),
    ],
)  # fmt: skip
def test_an_effect_is_said_from_the_side_of_the_counterfactual(
    behaviour: Behaviour, effect: float, said: str
) -> None:
    assert str(summary.example_sentence("shortcut", behaviour, effect)) == said


def test_a_changed_answer_is_said_with_its_verdict() -> None:
    sentence = summary.example_sentence("shortcut", LOSS, 2.0, EXACT, ("3", "9"), "9")
    assert str(sentence) == (
        "Without shortcut, the loss would be 2.00 lower, and the answer 9 (right) instead of 3."
    )
    assert sentence.trust is EXACT
    same = summary.example_sentence("shortcut", LOSS, 2.0, EXACT, ("3", "3"), "9")
    assert "answer" not in str(same)


def test_a_refused_stage_says_why_instead_of_a_number() -> None:
    sentence = summary.example_sentence("shortcut", LOSS, math.nan, REFUSED, ("3", "nan"))
    assert str(sentence) == "Without shortcut: not known. It would diverge."


def test_an_example_without_a_label_has_no_number_but_still_an_answer() -> None:
    sentence = summary.example_sentence("shortcut", LOSS, math.nan, EXACT, ("3", "9"))
    assert (
        str(sentence) == "Without shortcut, the loss is not known, and the answer 9 instead of 3."
    )


@pytest.mark.parametrize(
    ("column", "group", "said"),
    [
        ("group", "stamped", "accuracy on stamped images would be 41 points higher."),
        ("label", "7", "accuracy on images labelled 7 would be 41 points higher."),
        ("camera", "old", "accuracy on images with camera old would be 41 points higher."),
        ("group", None, "accuracy on all images would be 41 points higher."),
    ],
)
def test_a_group_is_named_as_people_would(column: str, group: str | None, said: str) -> None:
    row = {"stage": "shortcut", "group": group, "effect": -0.41}
    sentence = summary.mean_sentence(row, summary.ACCURACY, "image", column, EXACT)
    assert str(sentence) == f"Without shortcut, {said}"


def test_names_from_data_stay_apart_from_words() -> None:
    row = {"stage": "a_b", "group": "<b>*x*</b>", "effect": -0.41}
    parts = summary.mean_sentence(row, summary.ACCURACY, "image", "group").parts
    assert [part.text for part in parts if part.kind == "group"] == ["<b>*x*</b>"]
    assert [part.text for part in parts if part.kind == "stage"] == ["a_b"]


# --------------------------------------------------------------------------------- headlines


def accuracy_table(count: int = 100) -> pd.DataFrame:
    """``shortcut`` makes every second stamped example wrong; ``pretrain`` makes all right."""
    groups = ["stamped", "clean"] * (count // 2)
    final = ["b" if g == "stamped" and i % 4 == 0 else "a" for i, g in enumerate(groups)]
    return summary.with_accuracy(
        effect_table(
            {"pretrain": [0.0] * count, "shortcut": [0.0] * count},
            labels=["a"] * count,
            predictions=final,
            without={"pretrain": ["b"] * count, "shortcut": ["a"] * count},
            groups=groups,
        )
    )


def test_the_strongest_blame_comes_first_and_names_its_group() -> None:
    found = summary.headlines(
        accuracy_table(), summary.ACCURACY, STAGES, {"shortcut": EXACT}, "image", "group"
    )
    assert [str(sentence) for sentence in found] == [
        "Without shortcut, accuracy on stamped images would be 50 points higher.",
        "Without pretrain, accuracy on clean images would be 100 points lower.",
    ]
    assert found[0].trust is EXACT


def test_a_part_of_the_set_is_never_called_all_of_it() -> None:
    table = accuracy_table()
    part = table[table["group"] == "stamped"]
    found = summary.headlines(
        part, summary.ACCURACY, STAGES, {}, "image", "group", groups_only=True
    )
    assert found and all("all images" not in str(sentence) for sentence in found)


def test_what_does_not_stand_out_is_not_said() -> None:
    noise = list(np.random.default_rng(0).normal(0, 1, 200))
    table = effect_table({"pretrain": noise})
    assert summary.headlines(table, LOSS, STAGES, {}) == []


def test_an_effect_within_training_noise_is_no_finding() -> None:
    table = effect_table({"pretrain": list(np.linspace(1.0, 1.1, 50))})
    assert len(summary.headlines(table, LOSS, STAGES, {})) == 1
    table["within_noise"] = pd.array([True] * 50, dtype="boolean")
    assert summary.headlines(table, LOSS, STAGES, {}) == []


def test_a_refused_stage_makes_no_headline() -> None:
    table = effect_table({"pretrain": [np.nan] * 50})
    assert summary.headlines(table, LOSS, STAGES, {}) == []


# ----------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.0312, "0.031"), (0.0, "0"),
     (1e-6, "0"), (-0.5, "−0.50"), (math.nan, "n/a"), (math.inf, "n/a")],
)  # fmt: skip
def test_numbers_have_two_or_three_digits_and_a_true_minus(value: float, text: str) -> None:
    assert summary.number(value) == text


@pytest.mark.parametrize(
    ("difference", "behaviour", "text"),
    [(0.412, summary.ACCURACY, "+41 points"), (-0.034, summary.ACCURACY, "−3.4 points"),
     (0.01, summary.ACCURACY, "+1.0 points"), (0.0001, summary.ACCURACY, "0.0 points"),
     (-0.41, LOSS, "−0.41"), (0.0, LOSS, "0"), (math.nan, LOSS, "n/a")],
)  # fmt: skip
def test_differences_carry_their_sign(difference: float, behaviour: Behaviour, text: str) -> None:
    assert summary.signed_text(difference, behaviour) == text


def test_shares_are_printed_as_percentages() -> None:
    assert summary.value_text(0.875, PROBABILITY) == "87.5 %"
    assert summary.value_text(0.875, LOSS) == "0.88"
