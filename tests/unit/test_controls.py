"""Random choices that chosen training examples are held against, and groups left out one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.selection.exporting import with_places
from stagelens.analyses.without_data.chosen import Chosen, by_ids, by_values, read_table
from stagelens.analyses.without_data.computing import without_data
from stagelens.analyses.without_data.controls import against, control
from stagelens.analyses.without_data.stored import WithoutData, stored_without_data
from stagelens.contracts import StageLensError
from stagelens.runs.run import Run
from stagelens.runs.training_rows import TrainingRows, training_rows
from tests.unit.conftest import Command


@pytest.fixture(scope="module")
def rows(run: Run) -> TrainingRows:
    return training_rows(run, run.stage("second"))


def test_a_control_is_as_many_others_and_the_same_again(rows: TrainingRows) -> None:
    every = rows.table["example_id"].tolist()
    chosen = by_ids(rows, every[:3])
    first, again, other = (control(rows, chosen, number) for number in (0, 0, 1))
    assert first == again and len(first.ids) == 3 and first.ids != other.ids
    assert set(first.ids) <= set(every)
    one = by_ids(rows, every[:1])
    assert all(control(rows, one, number).ids != one.ids for number in range(len(every)))
    # Named in another order it is the same choice.
    assert control(rows, replace(chosen, ids=chosen.ids[::-1])) == first
    assert "among the others" in control(rows, one).words
    # Of half of a stage there is a single draw without any of them, which says nothing of chance.
    half = by_ids(rows, every[: len(every) // 2])
    draws = {frozenset(control(rows, half, number).ids) for number in range(8)}
    assert len(draws) == 8 and "among all" in control(rows, half).words
    most = by_ids(rows, every[: len(every) - 1])
    assert len(set(control(rows, most).ids)) == len(most.ids)
    with pytest.raises(StageLensError, match="there are no others to hold them against"):
        control(rows, by_ids(rows, every))


def _effects(run: Run, chosen: Chosen, size: float) -> WithoutData:
    """Made up: every margin of the set would be lower by ``size``."""
    found = without_data(run, "test", chosen)
    table = found.table
    margins = table["behaviour"] == "margin"
    return replace(found, table=table.assign(effect=table["effect"].where(~margins, size)))


def test_whether_they_did_more_than_random_ones_is_said_with_its_chance(
    run: Run, rows: TrainingRows
) -> None:
    chosen = by_ids(rows, rows.table["example_id"].tolist()[:3])
    margin = next(kind for kind in run.task.behaviour_kinds if kind.name == "margin")
    own = _effects(run, chosen, 0.5)
    small, large, away = (_effects(run, control(rows, chosen, 0), at) for at in (0.1, 0.6, -0.9))
    said = against(own, [small], margin)
    assert said.startswith("3 drawn at random: +0.1") and "less help than these" in said
    assert "One draw does not tell that from chance: for 1 in 20 it takes 39 draws." in said
    # What points the other way did not do more of the same.
    assert "2 times: −0.9" in (told := against(own, [small, away], margin))
    assert (
        "each less help than these. By chance alone that would be so in up to 2 of 3 cases" in told
    )
    assert "in up to 2 of 5 cases." in against(own, [small, away] * 2, margin)
    assert "1 of them as much as these or more. So few draws" in against(
        own, [small, large], margin
    )
    assert "3 of them as much as these or more." in against(own, [small, *[large] * 3], margin)
    assert against(own, [], margin) == ""
    # What hurt less is more as a number, and is not said to be less.
    hurt = against(_effects(run, chosen, -0.5), [small], margin)
    assert "less harm than these" in hurt and "less than" not in hurt


def test_chance_does_more_as_often_as_is_said_at_most(
    run: Run, rows: TrainingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = by_ids(rows, rows.table["example_id"].tolist()[:3])
    margin = next(kind for kind in run.task.behaviour_kinds if kind.name == "margin")
    found = without_data(run, "test", chosen)
    random = np.random.default_rng(0)
    for mean in (0.0, -0.7, 5.0):
        effects = iter(random.normal(mean, 1, 4 * 500).tolist())
        monkeypatch.setattr(
            "stagelens.analyses.without_data.controls.mean_effect", lambda *_, e=effects: next(e)
        )
        said = [against(found, [found] * 3, margin) for _ in range(500)]
        more = np.mean(["By chance alone" in one for one in said])
        assert all("in up to 2 of 4 cases" in one for one in said if "By chance" in one)
        assert more < 0.5 + 0.05  # one in four would be too little to say where the mean is 0
        if mean == 0.0:
            assert more > 0.3


def test_groups_of_a_column_leave_one_by_one(
    run: Run,
    rows: TrainingRows,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = rows.table
    every = by_ids(rows, table["example_id"].tolist())
    groups = by_values(rows, every, "label")
    assert sum(len(one.ids) for one in groups) == len(rows)
    for one in groups:
        value = one.words.removeprefix("with label ")
        assert set(one.ids) == set(table["example_id"][table["label"] == value])
    with pytest.raises(StageLensError, match="no column 'source'; they have label"):
        by_values(rows, every, "source")
    # A column of the file comes before one of the stage.
    ids, own = every.ids[:3], ("NA", "far", "")
    pd.DataFrame({"example_id": ids, "label": own}).to_csv(tmp_path / "odd.csv", index=False)
    odd = by_values(rows, by_ids(rows, ids), "label", read_table(tmp_path / "odd.csv"))
    assert [one.words for one in odd] == ["with label NA", "with label far"]
    own = ("near", "far", "near")
    pd.DataFrame({"example_id": ids, "label": own}).to_csv(tmp_path / "ids.csv", index=False)
    near, far = by_values(rows, by_ids(rows, ids), "label", read_table(tmp_path / "ids.csv"))
    assert near.ids == (ids[0], ids[2]) and far.words == "with label far"
    given = ("without-data", run.path, "--stage", "second", "--ids", tmp_path / "ids.csv")
    monkeypatch.setattr("stagelens.cli.without_data.opened_with", lambda *_: run)
    answer = command(*given, "--each", "label", "--controls", 1, "--out", tmp_path / "effects.csv")
    assert answer.status == 0, answer.err
    assert "2 examples of second with label near" in answer.out
    assert answer.out.count("drawn at random: ") == 2
    stored = stored_without_data(run, run.evaluation_set("test")).values()
    assert {near.ids, far.ids, control(rows, near).ids} <= {facts.ids for facts in stored}
    table = pd.read_csv(tmp_path / "effects.csv")  # of both groups, without the random ones
    groups = table[["without", "left_out", "divisor"]].drop_duplicates().values.tolist()
    assert groups == [
        ["2 examples of second with label near", 2, "rest"],
        ["1 example of second with label far", 1, "rest"],
    ]
    assert table["choice"].nunique() == 2


def test_kept_examples_say_where_each_was_used(rows: TrainingRows) -> None:
    kept = rows.table[["example_id"]].iloc[::-1].reset_index(drop=True)
    found = with_places(kept, rows)
    first = found["step"].astype(str) + "-" + found["position"].astype(str)
    assert (first == found["example_id"]).all()
    assert (found["places"].str.count(" ") + 1).tolist() == rows.table["uses"].tolist()[::-1]
    assert (with_places(kept, None)["places"] == kept["example_id"]).all()
