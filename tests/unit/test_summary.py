"""Numbers from effect tables."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects import summary
from stagelens.wording import numbers
from tests.support.effect_tables import effect_table, other_orders

LOSS = Behaviour("loss", "lower", "nats")
MARGIN = Behaviour("margin", "higher", "nats")
PROBABILITY = Behaviour("probability", "higher")
STAGES = ["pretrain", "shortcut"]


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


def test_the_noise_of_a_mean_is_its_spread_over_orders_of_the_batches() -> None:
    table = effect_table({"pretrain": [1.0, 3.0], "shortcut": [0.1, 0.1]}, groups=["x", "y"])
    orders = other_orders(
        {"pretrain": [[1.0, 3.0], [3.0, 1.0]], "shortcut": [[0.1, 0.1], [1.1, -0.5]]}
    )
    all_of_them = summary.stage_summary(table, LOSS, STAGES, None, orders).set_index("stage")
    # one example's noise is another's luck: the means of pretrain are 2 in both orders
    assert all_of_them["noise_sd"].tolist() == pytest.approx([0.0, 0.2 / math.sqrt(2)])
    assert all_of_them["within_noise"].tolist() == [False, True]
    groups = summary.stage_summary(table, LOSS, STAGES, "group", orders)
    assert groups["noise_sd"].tolist()[:2] == pytest.approx([math.sqrt(2)] * 2)
    assert groups["within_noise"].tolist() == [True, False, True, True]
    part = table[table["group"] == "y"]
    assert summary.stage_summary(part, LOSS, STAGES, None, orders)["noise_sd"].tolist() == (
        groups[groups["group"] == "y"]["noise_sd"].tolist()
    )


def test_noise_that_was_not_measured_is_not_known() -> None:
    table = effect_table({"pretrain": [1.0, 3.0], "shortcut": [np.nan, np.nan]})
    assert summary.stage_summary(table, LOSS, STAGES)["within_noise"].isna().all()
    one_order = other_orders({"pretrain": [[1.0, 3.0]]})
    assert summary.stage_summary(table, LOSS, STAGES, None, one_order)["within_noise"].isna().all()
    orders = other_orders({"shortcut": [[1.0, 3.0], [2.0, 2.0]]})
    assert summary.stage_summary(table, LOSS, STAGES, None, orders)["within_noise"].isna().all()


def test_accuracy_comes_from_answers_and_leaves_out_examples_without_a_label() -> None:
    table = effect_table(
        {"pretrain": [0.0] * 4},
        labels=["a", "b", None, "a"],
        predictions=["a", "a", "a", "b"],
        without={"pretrain": ["b", "b", "b", "b"]},
    )
    rows = summary.stage_summary(summary.with_accuracy(table), ACCURACY, STAGES)
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
    right = summary.boundary_summary(table, ACCURACY, STAGES, "group")
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
    table["cluster"] = ["a", "b", "c", "d"] * 5  # who shares a source is no group
    assert summary.group_columns(table, ["cluster", "group"]) == ["group"]


# ----------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.0312, "0.031"), (0.0, "0"),
     (1e-6, "0"), (-0.5, "−0.50"), (math.nan, "n/a"), (math.inf, "n/a")],
)  # fmt: skip
def test_numbers_have_two_or_three_digits_and_a_true_minus(value: float, text: str) -> None:
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("difference", "behaviour", "text"),
    [(0.412, ACCURACY, "+41 points"), (-0.034, ACCURACY, "−3.4 points"),
     (0.01, ACCURACY, "+1.0 points"), (0.0001, ACCURACY, "0.0 points"),
     (-0.41, LOSS, "−0.41"), (0.0, LOSS, "0"), (math.nan, LOSS, "n/a")],
)  # fmt: skip
def test_differences_carry_their_sign(difference: float, behaviour: Behaviour, text: str) -> None:
    assert numbers.signed_text(difference, behaviour) == text


def test_shares_are_printed_as_percentages() -> None:
    assert numbers.value_text(0.875, PROBABILITY) == "87.5 %"
    assert numbers.value_text(0.875, LOSS) == "0.88"


def test_parts_of_a_table_have_the_means_of_the_whole() -> None:
    random = np.random.default_rng(0)
    values = {name: random.normal(size=60).tolist() for name in ("a", "b", "c")}
    table = effect_table(values, groups=["x", "y", "z"] * 20)
    parts = [table[table["stage"] != "c"], table[table["stage"] == "c"]]
    found = summary.stage_summaries(parts, LOSS, ["a", "b", "c"], [None, "group"])
    for summed, by in zip(found, (None, "group"), strict=True):
        whole = summary.stage_summary(table, LOSS, ["a", "b", "c"], by)
        pd.testing.assert_frame_equal(summed, whole)
    effects = table.groupby("stage")["effect"]
    np.testing.assert_allclose(found[0]["effect"], effects.mean())
    np.testing.assert_allclose(found[0]["error"], effects.sem())


@pytest.mark.parametrize("kind", [None, "category"])
@pytest.mark.parametrize("stages", [["adapt"], ["adapt", "polish"]])
def test_rows_without_a_group_belong_to_none(kind: str | None, stages: list[str]) -> None:
    rows = pd.DataFrame(
        {
            "behaviour": "margin",
            "example_id": [str(number) for number in range(5)],
            "group": pd.Series(["new", None, "old", None, "new"], dtype=kind),
            "effect": [1.0, 100.0, 2.0, 200.0, 3.0],
            "final": 1.0,
            "without": 0.0,
            "within_noise": pd.array([None] * 5, dtype="boolean"),
        }
    )
    table = pd.concat([rows.assign(stage=stage) for stage in stages], ignore_index=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = summary.stage_summary(table, MARGIN, stages, "group")
    for stage in stages:
        own = found[found["stage"] == stage].set_index("group")
        assert own["effect"].to_dict() == {"new": 2.0, "old": 2.0}
        assert own["n"].to_dict() == {"new": 2, "old": 1}


def test_standard_errors_of_means_go_by_the_column_cluster() -> None:
    once = effect_table({"pretrain": [0.0, 1.0, 2.0, 5.0]})
    thrice = pd.concat([once] * 3, ignore_index=True)
    sources = thrice.assign(cluster=[f"prompt {n % 4}" for n in range(len(thrice))])
    errors = [
        summary.stage_summary(table, LOSS, ["pretrain"])["error"].item()
        for table in (once, thrice, sources)
    ]
    assert errors[2] == pytest.approx(errors[0]) and errors[1] < 0.6 * errors[0]
