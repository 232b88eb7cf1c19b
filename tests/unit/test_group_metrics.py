"""Groups of a set: how well each does, the gap between them, and how sure that is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stagelens.contracts import SetError
from stagelens.effects.groups import GroupMetrics, crossed, group_metrics


def answers(right_clean: int, right_stamped: int, n: int = 50) -> pd.DataFrame:
    """``n`` clean and ``n`` stamped examples of class a; the wrong ones are called b."""
    right = [i < right_clean for i in range(n)] + [i < right_stamped for i in range(n)]
    return pd.DataFrame(
        {
            "label": "a",
            "prediction": ["a" if r else "b" for r in right],
            "margin": [1.0 if r else -1.0 for r in right],
            "group": ["clean"] * n + ["stamped"] * n,
        }
    )


def two_models() -> GroupMetrics:
    models = {"final": answers(48, 29), "without shortcut": answers(47, 45)}
    return group_metrics(models, ["group"])


def test_accuracy_and_margin_of_every_group_are_plain_means() -> None:
    groups = two_models().groups.set_index(["model", "group"])
    assert groups.loc[("final", "clean"), "accuracy"] == pytest.approx(0.96)
    assert groups.loc[("final", "stamped"), "accuracy"] == pytest.approx(0.58)
    assert groups.loc[("final", "stamped"), "margin"] == pytest.approx((29 - 21) / 50)
    everyone = two_models().groups.query("model == 'final' and group.isna()").iloc[0]
    assert (everyone["n"], everyone["accuracy"]) == (100, pytest.approx(0.77))


def test_the_gap_is_between_the_final_models_best_and_worst_group() -> None:
    found = two_models()
    assert (found.best, found.worst) == ("clean", "stamped")
    gaps = found.gaps.set_index("model")
    assert gaps.loc["final", "gap"] == pytest.approx(0.38)
    assert gaps.loc["without shortcut", "gap"] == pytest.approx(0.04)
    assert gaps.loc["without shortcut", "change"] == pytest.approx(0.34)


def test_copies_of_examples_do_not_narrow_the_interval_of_a_gap() -> None:
    once = answers(40, 25).assign(example_id=[f"e{i}" for i in range(100)])
    other = answers(42, 45).assign(example_id=once["example_id"])
    models = {"final": once, "without": other}
    copied = {name: pd.concat([table] * 4, ignore_index=True) for name, table in models.items()}
    shared = {name: table.assign(cluster=table["example_id"]) for name, table in copied.items()}
    widths = []
    for given in (models, shared, copied):
        found = group_metrics(given, ["group"])
        change = found.gaps.set_index("model").loc["without"]
        group = found.groups.set_index(["model", "group"]).loc[("final", "stamped")]
        widths.append(
            [change["change_high"] - change["change_low"]]
            + [group[f"{kind}_high"] - group[f"{kind}_low"] for kind in ("accuracy", "margin")]
        )
    assert widths[1] == pytest.approx(widths[0], rel=1e-9)
    assert widths[2] == pytest.approx([width / 2 for width in widths[0]], rel=0.15)


def test_a_gap_that_turned_round_is_negative() -> None:
    models = {"final": answers(48, 29), "without": answers(20, 45)}
    gaps = group_metrics(models, ["group"]).gaps.set_index("model")
    assert gaps.loc["without", "gap"] == pytest.approx(-0.5)
    assert gaps.loc["without", "worst"] == "clean"


@pytest.mark.slow
def test_intervals_hold_the_true_gap_in_about_95_of_100_sets() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        drawn = answers(0, 0, 80)
        right = random.random(160) < np.repeat([0.9, 0.6], 80)
        drawn["prediction"] = np.where(right, "a", "b")
        gap = group_metrics({"final": drawn}, ["group"]).gaps.iloc[0]
        held += gap["gap_low"] <= 0.3 <= gap["gap_high"]
    assert 0.90 <= held / 200 <= 0.99


def test_models_that_answer_alike_change_no_gap_as_far_as_so_many_examples_tell() -> None:
    same = answers(40, 30)
    gaps = group_metrics({"final": same, "again": same.copy()}, ["group"]).gaps.set_index("model")
    row = gaps.loc["again"]
    assert row["change"] == 0 and row["gap_low"] < row["gap_high"]
    # Others might have been answered otherwise; margins that are the same are the same model's.
    assert -0.08 < row["change_low"] < 0 < row["change_high"] < 0.08
    again = group_metrics({"final": same, "again": same.copy()}, ["group"], "margin").gaps
    assert again.set_index("model").loc["again", ["change_low", "change_high"]].tolist() == [0, 0]


def test_errors_are_told_by_class_as_missed_and_as_falsely_given() -> None:
    table = pd.DataFrame(
        {
            "label": ["a"] * 4 + ["b"] * 6,
            "prediction": ["a", "a", "b", "b"] + ["b"] * 5 + ["a"],
            "group": "all",
        }
    )
    rows = group_metrics({"final": table}, ["group"]).classes
    a = rows[(rows["label"] == "a") & (rows["group"] == "all")].iloc[0]
    assert (a["n"], a["missed"]) == (4, 0.5)
    assert (a["others"], a["false"]) == (6, pytest.approx(1 / 6))
    assert 0 <= a["missed_low"] < 0.5 < a["missed_high"] <= 1


def test_examples_without_label_are_left_out_and_counted() -> None:
    table = answers(40, 30)
    table.loc[:4, "label"] = None
    found = group_metrics({"final": table}, ["group"])
    assert found.unlabelled == 5
    assert found.groups.query("group == 'clean'")["n"].item() == 45


def test_examples_in_no_group_count_among_all() -> None:
    table = answers(40, 30)
    table.loc[:9, "group"] = None
    groups = group_metrics({"final": table}, ["group"]).groups
    assert groups[groups["group"].isna()]["n"].item() == 100
    assert groups.query("group == 'clean'")["n"].item() == 40


def test_a_group_of_few_examples_is_shown_but_is_not_the_worst() -> None:
    table = pd.concat([answers(45, 40), answers(0, 0, 2).assign(group="rare")], ignore_index=True)
    found = group_metrics({"final": table}, ["group"])
    assert "rare" in set(found.groups["group"])
    assert (found.best, found.worst) == ("clean", "stamped")


def test_a_single_group_has_no_gap() -> None:
    found = group_metrics({"final": answers(40, 30).assign(group="one")}, ["group"])
    assert found.gaps.empty
    assert found.best is None


def test_a_refused_model_has_no_figures_and_spoils_no_other() -> None:
    refused = answers(40, 30).assign(prediction=None, margin=np.nan)
    found = group_metrics({"final": answers(48, 29), "refused": refused}, ["group"])
    gaps = found.gaps.set_index("model")
    assert np.isnan(gaps.loc["refused", ["gap", "gap_low", "change"]].astype(float)).all()
    assert gaps.loc["final", "gap"] == pytest.approx(0.38)
    assert found.groups.query("model == 'refused'")["accuracy"].isna().all()


def test_the_gap_can_be_one_of_margins() -> None:
    gaps = group_metrics({"final": answers(48, 29)}, ["group"], measure="margin").gaps
    assert gaps["gap"].item() == pytest.approx(2 * 0.38)


def test_columns_are_crossed_by_their_values() -> None:
    table = pd.DataFrame({"group": ["clean", "stamped", None], "label": ["3", "8", "3"]})
    names = crossed(table, ["group", "label"])
    assert names.tolist()[:2] == ["clean · 3", "stamped · 8"]
    assert pd.isna(names[2])


def test_a_column_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SetError, match=r"no column 'sex'.*label, prediction"):
        group_metrics({"final": answers(1, 1)}, ["sex"])


def test_models_measured_on_different_examples_are_refused() -> None:
    one = answers(40, 30).assign(example_id=range(100))
    other = one.assign(example_id=range(1, 101))
    with pytest.raises(SetError, match="without was measured on other examples than final"):
        group_metrics({"final": one, "without": other}, ["group"])
