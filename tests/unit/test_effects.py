"""The effect table: final - without, by example, stage and behaviour."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import stagelens
from stagelens.contracts import Behaviour, RunError, SetError
from stagelens.effects import computing
from stagelens.effects.computing import attribute, boundaries, effect_table
from stagelens.effects.results import load_result, result_key
from stagelens.estimators.protocol import Counterfactual
from stagelens.estimators.stage_trust import StageTrust
from stagelens.measuring import models
from stagelens.runs.sets.writer import write_set
from stagelens.tasks import ImageClassification
from tests.support.loops import Plan, make_batches, make_task, record_plans

COUNT = 50
# fmt: off
INTERFACE = [
    "set", "example_id", "stage", "behaviour", "final", "without", "effect", "estimator",
    "prediction", "prediction_without", "within_noise",
]
# fmt: on
"""Columns of the table as interfaces.md lists them."""


def sgd(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2)


def add_set(run: stagelens.Run, name: str, **more: Any) -> None:
    """Add a set; every tenth of its examples has no label."""
    images, labels = make_batches(1, seed=5, size=COUNT)[0]
    given = [None if row % 10 == 3 else int(label) for row, label in enumerate(labels)]
    recorder = stagelens.Recorder(run.path, run.task, resume=True)
    recorder.add_set(name, images=images, labels=given, **more)
    recorder.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, and a set."""
    plans = [Plan("first", sgd), Plan("second", sgd)]
    run = record_plans(tmp_path_factory.mktemp("recorded") / "run", make_task(), plans)
    add_set(run, "test", columns={"group": ["a", "b"] * (COUNT // 2), "size": range(COUNT)})
    return run.path


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> stagelens.Run:
    """A copy of ``recorded`` to change."""
    return stagelens.open_run(shutil.copytree(recorded, tmp_path / "run"))


def without(stage: str, weights: Any) -> Counterfactual:
    trust = StageTrust(stage=stage, estimator="hand", trust="exact", reason="Made by hand.")
    return Counterfactual(stage, weights, trust)


def of(table: pd.DataFrame, stage: str, behaviour: str) -> pd.DataFrame:
    rows = table[(table["stage"] == stage) & (table["behaviour"] == behaviour)]
    return rows.reset_index(drop=True)


def by_hand(task: ImageClassification, weights: Any, run: stagelens.Run) -> dict[str, np.ndarray]:
    """Behaviours of a model written out, in numpy and float64."""
    model = task.build_model()
    model.load_state_dict(weights)
    images, labels = task.collate(run.evaluation_set("test").examples())
    with torch.no_grad():
        logits = model(images).double().numpy()
    label = labels.numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = np.where(label < 0, np.nan, p[np.arange(len(p)), np.maximum(label, 0)])
    return {"loss": -np.log(own), "probability": own, "margin": np.log(own / (1 - own))}


def test_the_effect_is_final_minus_without(run: stagelens.Run) -> None:
    other = {name: 0.5 * tensor for name, tensor in run.last.end().model.items()}
    table, _ = effect_table(
        run, run.evaluation_set("test"), [without("first", other), without("second", None)], "hand"
    )
    final, changed = (by_hand(make_task(), w, run) for w in (run.last.end().model, other))
    for behaviour in ("loss", "probability", "margin"):
        rows = of(table, "first", behaviour)
        np.testing.assert_allclose(rows["final"], final[behaviour], rtol=1e-12)
        np.testing.assert_allclose(rows["without"], changed[behaviour], rtol=1e-12)
        np.testing.assert_allclose(
            rows["effect"], final[behaviour] - changed[behaviour], rtol=1e-9, atol=1e-15
        )
        refused = of(table, "second", behaviour)
        np.testing.assert_array_equal(refused["final"], rows["final"])
        assert refused["effect"].isna().all()


def test_a_stage_that_teaches_the_label_is_to_credit_in_every_behaviour(
    run: stagelens.Run,
) -> None:
    table = attribute(run, "test", "replay").table
    kinds = {b.name: b for b in run.task.behaviour_kinds}
    assert {name: kind.better for name, kind in kinds.items()} == {
        "loss": "lower",
        "margin": "higher",
        "probability": "higher",
    }
    credit = {
        name: np.sign(kind.sign * of(table, "first", name)["effect"].dropna())
        for name, kind in kinds.items()
    }
    assert set(credit["loss"]) == {1.0, -1.0}
    np.testing.assert_array_equal(credit["loss"], credit["margin"])
    np.testing.assert_array_equal(credit["loss"], credit["probability"])
    assert (Behaviour("a", "higher").sign, Behaviour("b", "lower").sign) == (1, -1)


def test_an_example_without_a_label_has_predictions_but_no_behaviour(run: stagelens.Run) -> None:
    table = attribute(run, "test", "replay").table
    unlabelled = table["label"].isna()
    assert table[unlabelled]["example_id"].nunique() == 5
    for column in ("final", "without", "effect"):
        assert (table[column].isna() == unlabelled).all()
    for column in ("prediction", "prediction_without"):
        assert table[column].isin(["a", "b", "c"]).all()
    for column in ("confidence", "confidence_without"):
        assert table[column].between(1 / 3, 1).all()


def test_the_table_has_the_columns_of_the_interface_and_the_sets_own(run: stagelens.Run) -> None:
    table = attribute(run, "test", "task-vector").table
    columns = [name for name in table.columns if not name.startswith("confidence")]
    assert columns == [*INTERFACE, "label", "group", "size"]
    assert len(table) == COUNT * 2 * 3
    assert not table.duplicated(["example_id", "stage", "behaviour"]).any()
    assert set(table["set"]) == {"test"}
    assert set(table["estimator"]) == {"task-vector"}
    assert table["within_noise"].isna().all()
    rows = of(table, "second", "loss")
    assert rows["example_id"].tolist() == [str(row) for row in range(COUNT)]
    assert rows["size"].tolist() == list(range(COUNT))


def test_several_batches_equal_one_batch(
    run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run.last.start().model
    examples = run.evaluation_set("test")
    whole, _ = effect_table(run, examples, [without("second", other)], "hand")
    for size, chunk in ((1, 8), (7, 2), (49, 1)):
        monkeypatch.setattr(models, "BATCH_SIZE", size)
        monkeypatch.setattr(models, "_CHUNK", chunk)
        parts, _ = effect_table(run, examples, [without("second", other)], "hand")
        # Logits are float32, and their last bit may depend on the batch.
        pd.testing.assert_frame_equal(parts, whole, rtol=1e-5, atol=1e-6)


class Counted(ImageClassification):
    """Counts the examples that are in memory as tensors."""

    alive = 0
    most = 0
    largest = 0

    def collate(self, examples: Any) -> Any:
        batch = super().collate(examples)
        Counted.largest = max(Counted.largest, len(examples))
        Counted.alive += len(examples)
        Counted.most = max(Counted.most, Counted.alive)
        weakref.finalize(batch[0], Counted._gone, len(examples))
        return batch

    @staticmethod
    def _gone(count: int) -> None:
        Counted.alive -= count


def test_memory_is_bounded_by_the_batches_of_a_chunk(
    run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "BATCH_SIZE", 4)
    monkeypatch.setattr(models, "_CHUNK", 2)
    task = make_task()
    counted = stagelens.open_run(run.path, Counted(**task.config))
    attribute(counted, "test", "task-vector")
    assert Counted.largest == 4
    assert Counted.most <= 2 * 2 * 4  # a chunk may be collated while the one before still lives
    assert Counted.alive == 0


def test_progress_rises_to_one(run: stagelens.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BATCH_SIZE", 4)
    told: list[float] = []
    attribute(run, "test", "replay", progress=lambda share, _text: told.append(share))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


# Results on disk


def test_a_stored_result_is_used_and_equals_what_was_computed(
    run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = attribute(run, "test", "replay")

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a model was measured again")

    monkeypatch.setattr(computing, "measure_set", refuse)
    stored = attribute(stagelens.open_run(run.path), "test", "replay")
    pd.testing.assert_frame_equal(stored.table, computed.table)
    assert stored.facts == computed.facts
    assert list(stored.trust) == ["first", "second"]
    only = attribute(run, "test", "replay", stages=["second"])
    assert set(only.table["stage"]) == {"second"}
    assert list(only.trust) == ["second"]


@pytest.mark.parametrize("stored", [False, True])
def test_a_stage_that_is_not_there_is_named(stored: bool, run: stagelens.Run) -> None:
    if stored:
        attribute(run, "test", "task-vector")
    with pytest.raises(RunError, match=r"no finished stage 'third'; it has 'first', 'second'"):
        attribute(run, "test", "task-vector", stages=["third"])


@pytest.mark.parametrize("first", ["first", "second"])
def test_a_chosen_stage_is_stored_and_a_further_one_joins_it(
    first: str, run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = attribute(run, "test", "replay", stages=[first])
    stored = load_result(run, "test", "effects", "replay")
    assert stored is not None and list(stored.trust) == [first]
    pd.testing.assert_frame_equal(stored.table, only.table)

    asked: list[str] = []
    inner = computing.counterfactuals
    monkeypatch.setattr(
        computing,
        "counterfactuals",
        lambda run, made, stages, report: (
            asked.extend(s.name for s in stages) or inner(run, made, stages, report)
        ),
    )
    whole = attribute(run, "test", "replay")
    assert asked == [name for name in ("first", "second") if name != first]
    assert list(whole.trust) == ["first", "second"]  # in training order, whichever came first
    stored = load_result(run, "test", "effects", "replay")
    assert stored is not None and stored.facts == whole.facts
    pd.testing.assert_frame_equal(stored.table, whole.table)
    pd.testing.assert_frame_equal(
        only.table, whole.table[whole.table["stage"] == first].reset_index(drop=True)
    )


def test_results_are_found_by_the_recording_the_set_the_estimator_and_its_settings(
    run: stagelens.Run, tmp_path: Path
) -> None:
    attribute(run, "test", "replay")
    assert load_result(run, "test", "effects", "replay") is not None
    assert load_result(run, "test", "effects", "task-vector") is None
    assert load_result(run, "test", "effects", "replay", {"budget": 0.5}) is None
    assert load_result(run, "test", "boundaries", "replay") is None

    add_set(run, "other", ids=[f"x{row}" for row in range(COUNT)])
    assert load_result(run, "other", "effects", "replay") is None

    longer = [Plan("first", sgd, batches=7), Plan("second", sgd)]
    another = record_plans(tmp_path / "another", make_task(), longer)
    add_set(another, "test", columns={"group": ["a", "b"] * (COUNT // 2), "size": range(COUNT)})
    assert another.evaluation_set("test").digest == run.evaluation_set("test").digest
    (run.path / "results").rename(another.path / "results")
    assert load_result(another, "test", "effects", "replay") is None

    keys = {
        result_key(r, set_name, "effects", estimator, {})
        for r, set_name in ((run, "test"), (run, "other"), (another, "test"))
        for estimator in ("replay", "task-vector")
    }
    assert len(keys) == 6


def test_a_result_that_belongs_elsewhere_is_ignored_and_made_anew(run: stagelens.Run) -> None:
    expected = attribute(run, "test", "replay").table
    attribute(run, "test", "task-vector")
    tables = run.path / "results" / "tables"
    replay, vector = (
        tables / f"{result_key(run, 'test', 'effects', estimator, {})}.parquet"
        for estimator in ("replay", "task-vector")
    )
    vector.replace(replay)
    assert load_result(run, "test", "effects", "replay") is None
    pd.testing.assert_frame_equal(attribute(run, "test", "replay").table, expected)
    facts = pq.read_schema(replay).metadata
    pq.write_table(pa.table({"effect": [1.0]}).replace_schema_metadata(facts), replay)
    assert load_result(run, "test", "effects", "replay") is None
    pd.testing.assert_frame_equal(attribute(run, "test", "replay").table, expected)


def test_a_set_under_another_name_does_not_borrow_its_results(run: stagelens.Run) -> None:
    same = {"columns": {"group": ["a", "b"] * (COUNT // 2), "size": range(COUNT)}}
    attribute(run, "test", "replay")
    add_set(run, "copy", **same)
    assert set(attribute(run, "copy", "replay").table["set"]) == {"copy"}
    assert attribute(run, "copy", "replay").facts.set_name == "copy"


def test_boundaries_are_measured_after_every_stage_and_at_the_base(run: stagelens.Run) -> None:
    table = boundaries(run, "test").table
    assert table["boundary"].unique().tolist() == ["base", "first", "second"]
    for boundary, state in [
        ("base", run.stage("first").start()),
        ("first", run.stage("first").end()),
        ("second", run.stage("second").end()),
    ]:
        expected = by_hand(make_task(), state.model, run)
        for behaviour, values in expected.items():
            rows = table[(table["boundary"] == boundary) & (table["behaviour"] == behaviour)]
            np.testing.assert_allclose(rows["value"], values, rtol=1e-12)


def test_inputs_that_the_task_does_not_take_are_refused_by_name(run) -> None:
    write_set(run.path, None, "words", texts=["a", "b"], labels=["0", "1"])
    for made in (attribute, boundaries):
        arguments = ("task-vector",) if made is attribute else ()
        with pytest.raises(SetError, match="'words' holds texts, but the run's task takes images"):
            made(stagelens.open_run(run.path, task=run.task), "words", *arguments)
