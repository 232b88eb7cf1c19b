"""Edits of the final weights, and what is measured of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from stagelens.analyses.removal import comparison, measurements, targets
from stagelens.analyses.removal.edits import EditedWeights, Material, layers_of, material
from stagelens.analyses.removal.parts import validation_part
from stagelens.analyses.removal.spec import Edit
from stagelens.contracts import Behaviour, Refused, RunError, SetError, StageLensError
from stagelens.effects.computing import attribute
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.runs.run import Run, open_run
from tests.conftest import DemoRun

STAGES = ["pretrain", "shortcut", "mislabelled", "adapt"]


@pytest.fixture
def run(digits_run: DemoRun, tmp_path: Path) -> Run:
    return open_run(shutil.copytree(digits_run.path, tmp_path / "digits"))


def replayed(strengths: dict[str, float], **more: object) -> Edit:
    return Edit.model_validate({"estimator": "replay", "strengths": strengths, **more})


def own_material(**stages: torch.Tensor) -> Material:
    """A final model of ones, and counterfactuals that hold something else."""
    final = {"a.weight": torch.ones(3), "b.running_var": torch.full((3,), 4.0)}
    from stagelens.estimators.protocol import Counterfactual
    from stagelens.estimators.stage_trust import StageTrust

    trust = StageTrust(stage="x", estimator="replay", trust="exact", reason="Exact.")
    without = {
        name: Counterfactual(name, {"a.weight": value, "b.running_var": value.abs()}, trust)
        for name, value in stages.items()
    }
    return Material(final, without)


# ------------------------------------------------------------------------------------ weights


def test_full_strength_gives_the_counterfactual_bit_for_bit_and_none_the_final_model(run) -> None:
    own = material(run, "replay", None, ["shortcut"])
    without = next(
        iter(counterfactuals(run, make_estimator("replay"), [run.stage("shortcut")]))
    ).weights
    assert without is not None
    all_of_it = EditedWeights(own, replayed({"shortcut": 1.0}))
    nothing = EditedWeights(own, replayed({"shortcut": 0.0}))
    final = run.last.end().model
    assert all(torch.equal(all_of_it[name], without[name]) for name in final)
    assert all(torch.equal(nothing[name], final[name]) for name in final)


def test_strengths_of_several_stages_add_up_and_differ_by_layer() -> None:
    own = own_material(one=torch.tensor([0.0, 1, 3]), two=torch.tensor([1.0, 1, 0]))
    edit = replayed({"one": 0.5, "two": 1.0}, layers={"one": {"b": 0.0}, "two": {"b": 0.5}})
    weights = EditedWeights(own, edit)
    assert weights["a.weight"].tolist() == [0.5, 1.0, 1.0]
    # 4 * (1 / 4) ** 0.5, the same, and unchanged where the ratio is no positive number
    assert weights["b.running_var"].tolist() == [2.0, 2.0, 4.0]


def test_whole_blocks_are_layers_where_there_are_many_modules() -> None:
    names = [f"encoder.layer.{n}.{part}.weight" for n in range(12) for part in "abcdef"]
    layers = layers_of([*names, "head.weight"])
    assert (
        layers["encoder.layer.3.b.weight"] == "encoder.layer.3" and len(set(layers.values())) == 13
    )
    assert set(layers_of(["0.weight", "0.bias", "2.weight"]).values()) == {"0", "2"}


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_a_strength_that_is_none_is_refused(strength: float) -> None:
    with pytest.raises(StageLensError, match="not between 0 and 1"):
        replayed({"shortcut": strength})


def test_a_stage_that_an_estimator_refuses_cannot_be_removed(run, monkeypatch) -> None:
    from stagelens.estimators.replay import Replay

    def refuse(*_: object) -> None:
        raise Refused("no batches were kept")

    monkeypatch.setattr(Replay, "counterfactuals", refuse)
    shutil.rmtree(run.path / "results" / "counterfactuals")
    with pytest.raises(Refused, match="shortcut cannot be removed: no batches were kept"):
        material(run, "replay", None, ["shortcut"])


# ---------------------------------------------------------------------------------- measuring


def test_an_edit_by_replay_has_the_answers_of_the_effect_table(run) -> None:
    examples = run.evaluation_set("test")
    (one,) = measurements.measure_edits(run, examples, [replayed({"shortcut": 1.0})])
    effects = attribute(run, "test", "replay").table
    rows = effects[(effects["stage"] == "shortcut") & (effects["behaviour"] == "loss")]
    assert one.table["prediction"].tolist() == rows["prediction_without"].tolist()
    np.testing.assert_allclose(one.table["loss"], rows["without"], atol=1e-9)
    assert one.trust["shortcut"].trust == "exact"


def test_what_was_measured_is_read_again_and_what_was_not_is_added(run, monkeypatch) -> None:
    examples = run.evaluation_set("mixed-up")
    edits = measurements.grid("task-vector", {}, ["shortcut"])
    first = measurements.measure_edits(run, examples, edits)
    monkeypatch.setattr(
        "stagelens.measuring.models.measure", None
    )  # nothing may be measured any more
    again = measurements.measure_edits(run, examples, edits)
    for one, other in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(one.table, other.table)
        assert one.trust == other.trust
    assert measurements.load_measurement(run, examples, replayed({"shortcut": 0.3})) is None


def test_a_measurement_of_another_set_or_a_damaged_one_is_measured_anew(run) -> None:
    edit = replayed({"shortcut": 0.5})
    examples = run.evaluation_set("mixed-up")
    measurements.measure_edits(run, examples, [edit])
    (file,) = (run.path / measurements.FOLDER).glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    assert measurements.load_measurement(run, examples, edit) is None
    assert measurements.load_measurement(run, run.evaluation_set("test"), edit) is None


def test_a_measurement_under_the_name_of_another_is_not_believed(run) -> None:
    examples = run.evaluation_set("mixed-up")
    edit, other = replayed({"shortcut": 0.5}), replayed({"shortcut": 0.25})
    measurements.measure_edits(run, examples, [edit])
    kept, wrong = (measurements.path(run, examples, each) for each in (edit, other))
    shutil.copy(kept, wrong)
    assert measurements.load_measurement(run, examples, other) is None
    assert measurements.load_measurement(run, examples, edit) is not None
    table = pq.read_table(kept)
    pq.write_table(table.slice(1), kept)
    assert measurements.load_measurement(run, examples, edit) is None
    wrong.unlink()


def test_a_stage_that_is_not_there_is_refused_before_any_work(run, monkeypatch) -> None:
    monkeypatch.setattr("stagelens.analyses.removal.edits.material", None)  # nothing is obtained
    with pytest.raises(RunError, match="nowhere"):
        measurements.measure_edits(
            run, run.evaluation_set("mixed-up"), [replayed({"shortcut": 0.5, "nowhere": 1.0})]
        )


# --------------------------------------------------------------------------------------- parts


def test_the_parts_are_halves_of_every_group_and_label_whatever_the_order() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "example_id": [f"e{n}" for n in range(400)],
            "label": random.choice(["a", "b", None], 400),
            "group": random.choice(["x", "y"], 400),
        }
    )
    chosen = pd.Series(validation_part(table, ["group"]), table["example_id"])
    for _, rows in table.groupby([table["group"], table["label"].astype(str)]):
        assert chosen[rows["example_id"]].sum() == len(rows) // 2
    shuffled = table.sample(frac=1, random_state=1)
    again = pd.Series(validation_part(shuffled, ["group"]), shuffled["example_id"])
    pd.testing.assert_series_equal(again.reindex(chosen.index), chosen)


# ------------------------------------------------------------------------------------ targeted


def target(**options: object) -> targets.Target:
    own = {"estimator": "replay", "stages": ["shortcut"], "by": "group", "group": "stamped"}
    return targets.Target.model_validate({**own, "control": "clean", **options})


def test_the_targeted_edit_mends_the_planted_gap_and_is_smaller_than_full_removal(run) -> None:
    examples = run.evaluation_set("test")
    found = targets.find(run, examples, target())
    assert found.gap_before > 0.2 and found.gap_after < 0.05
    assert found.closed == (found.gap_after <= 0)
    assert found.drop <= targets.TOLERANCE and 0 < found.size < 1
    table = examples.table()
    report = ~validation_part(table, ["group"])
    before, after = measurements.measure_edits(run, examples, [replayed({}), found.edit])
    for name, least in (("stamped", 0.8 * found.gap_before), ("clean", -0.03)):
        rows = report & (table["group"] == name).to_numpy()
        right = [
            (one.table["prediction"] == table["label"])[rows].mean() for one in (before, after)
        ]
        assert right[1] - right[0] >= least


def test_the_search_looks_at_the_validation_part_only(run, monkeypatch) -> None:
    examples = run.evaluation_set("test")
    table = examples.table()
    seen: set[str] = set()
    collate = type(run.task).collate

    def watched(self: object, batch: list) -> object:
        seen.update(example.example_id for example in batch)
        return collate(self, batch)

    monkeypatch.setattr(type(run.task), "collate", watched)
    targets.find(run, examples, target())
    assert seen == set(table["example_id"][validation_part(table, ["group"])])


def test_the_same_question_has_the_same_answer_and_is_kept(run) -> None:
    examples = run.evaluation_set("test")
    first = targets.find(run, examples, target())
    assert targets.load_found(run, examples, target()) == first
    shutil.rmtree(run.path / measurements.FOLDER)
    assert targets.load_found(run, examples, target()) is None
    assert targets.find(run, examples, target()) == first


def test_nothing_is_taken_out_where_nothing_keeps_the_tolerance(run) -> None:
    # Without the first stage the model knows no digit.
    found = targets.find(
        run, run.evaluation_set("test"), target(stages=["pretrain"], tolerance=0.0)
    )
    assert not found.closed and found.drop <= 0 and found.gap_after <= found.gap_before


def test_a_group_or_column_that_is_not_there_is_named(run) -> None:
    examples = run.evaluation_set("test")
    with pytest.raises(SetError, match="has no group 'torn'; choose one of clean, stamped"):
        targets.find(run, examples, target(group="torn"))
    with pytest.raises(SetError, match="no column 'colour'"):
        targets.find(run, examples, target(by="colour"))
    with pytest.raises(StageLensError, match="tolerance of 2 is not between 0 and 1"):
        targets.find(run, examples, target(tolerance=2.0))


# ---------------------------------------------------------------------------------- comparison


def said(*rows: tuple[object, str, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["label", "prediction", "confidence"])
    return table.assign(
        example_id=[f"e{n}" for n in range(len(rows))], loss=1 - table["confidence"]
    )


def test_flipped_answers_are_told_apart() -> None:
    before = said(
        ("a", "a", 0.9), ("a", "b", 0.8), ("a", "b", 0.7), ("a", "a", 0.6), (None, "a", 1)
    )
    after = said(("a", "b", 0.6), ("a", "a", 0.9), ("a", "c", 0.7), ("a", "a", 0.6), (None, "b", 1))
    table = comparison.changed_answers(before, after)
    assert table["example_id"].tolist() == ["e0", "e2", "e1", "e4"]
    assert table["change"].tolist()[:3] == ["broken", "other", "mended"]
    assert pd.isna(table["change"].iloc[3])
    assert comparison.answer_changes(table) == comparison.AnswerChange(mended=1, broken=1, other=1)


def test_calibration_is_perfect_where_answers_are_as_often_right_as_the_model_is_sure() -> None:
    rows = [("a", "a", 0.75)] * 3 + [("b", "a", 0.75)] + [("a", "a", 1.0)] * 4
    bins = comparison.calibration(said(*rows))
    assert bins["n"].tolist() == [4, 4] and comparison.calibration_error(bins) == 0
    worse = comparison.calibration(said(*rows, ("b", "a", 1.0)))
    assert comparison.calibration_error(worse) == pytest.approx(1 / 9)


def test_confusion_counts_labels_by_answers() -> None:
    counts = comparison.confusion(
        said(("a", "a", 1), ("a", "b", 1), ("b", "b", 1)), ["a", "b", "c"]
    )
    assert counts.loc["a"].tolist() == [1, 1, 0] and counts.to_numpy().sum() == 3


def test_mean_change_has_an_interval_around_it() -> None:
    random = np.random.default_rng(0)
    before = pd.DataFrame({"loss": random.normal(size=400)})
    after = pd.DataFrame({"loss": before["loss"] + random.normal(0.5, 1, 400)})
    (one,) = comparison.mean_changes(before, after, [Behaviour("loss", "lower")])
    assert one.low < one.change < one.high and one.change == pytest.approx(0.5, abs=0.15)
    assert one.high - one.low == pytest.approx(4 / 400**0.5, rel=0.15)


def test_a_preview_is_exact_at_computed_strengths_and_lies_between_them_elsewhere(run) -> None:
    examples = run.evaluation_set("test")
    table = examples.table()
    rows = ~validation_part(table, ["group"])
    grid = measurements.measure_edits(run, examples, measurements.grid("replay", {}, STAGES))
    guess = comparison.preview(grid, table, rows, "group")
    assert guess.groups == (None, "clean", "stamped")
    (half,) = [one for one in grid if one.edit.strengths == {"shortcut": 0.5}]
    right = (half.table["prediction"] == table["label"])[rows]
    assert guess.at({"shortcut": 0.5})[0] == pytest.approx(right.mean())
    low, middle, high = (guess.at({"shortcut": s})[2] for s in (0.5, 0.6, 0.75))
    assert min(low, high) <= middle <= max(low, high)
    assert guess.computed({"shortcut": 0.5}) and not guess.computed({"shortcut": 0.6})
    assert not guess.computed({"shortcut": 0.5, "adapt": 0.5})


def test_the_worst_stage_for_the_stamped_digits_is_the_one_with_the_stamp(run) -> None:
    table = run.evaluation_set("test").table()
    effects = attribute(run, "test", "replay").table
    everyone = np.ones(len(table), dtype=bool)
    choose = comparison.worst_stage
    assert choose(effects, everyone, STAGES, table["group"], "stamped") == "shortcut"
    assert choose(effects, everyone, ["pretrain"], table["group"], "clean") is None


def test_what_an_edit_found_is_said_with_names_as_they_are() -> None:
    target = targets.Target(estimator="replay", stages=["s"], by="group", group="non-toxic")
    edit = Edit(estimator="replay", strengths={"s": 0.5})
    found = targets.Found(
        target=target,
        run_digest="r",
        set_digest="s",
        edit=edit,
        closed=True,
        gap_before=0.1,
        gap_after=-0.02,
        drop=-0.01,
        size=0.5,
        tried=3,
        examples=1000,
    )
    said = found.sentence()
    assert "between all others and non-toxic: 10.0 points before, −2.0 after" in said
    assert "all others gains 1.0 points of accuracy" in said
