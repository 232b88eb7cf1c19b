"""Runs and sets that are unusual have a defined answer: a right number, or a refusal in words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
from stagelens.analyses.own_example import answer, own_example
from stagelens.charts import credit_and_blame, time_line
from stagelens.charts.stages import MOST_BANDS
from stagelens.contracts import ACCURACY, Refused, RunError, SetError
from stagelens.effects.computing import attribute, boundaries
from stagelens.effects.learning_rates import learning_rates
from stagelens.effects.results import Result
from stagelens.effects.summary import stage_summary, with_accuracy
from stagelens.estimators.registry import estimators
from stagelens.measuring.loaded_weights import LoadedWeights
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.evaluation_set import footer_sha256
from stagelens.runs.sets.writer import write_set
from stagelens.tasks import ImageClassification
from stagelens.tasks.classification import NO_ANSWER, classifier_predictions
from stagelens.wording.folding import MOST
from tests.support.damage import edit_and_seal
from tests.support.odd_runs import (
    CLASSES,
    SHAPE,
    add_odd_sets,
    images,
    many_stages,
    one_step,
    record,
)

STAGES = {"first": (6, 0.05), "single": (1, 0.05), "still": (4, 0.0), "last": (6, 0.05)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A stage of one step, and one that changes nothing; with odd sets too."""
    made = record(tmp_path_factory.mktemp("odd") / "run", STAGES)
    add_odd_sets(made)
    return made


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose second stage ends with weights that are NaN, and whose third goes on so."""
    path = tmp_path_factory.mktemp("diverged") / "run"
    return record(path, {name: (4, 0.05) for name in ("first", "second", "third")}, ("second",))


def effects(result: Result, stage: str) -> np.ndarray:
    table = result.table
    rows = (table["stage"] == stage) & (table["behaviour"] == "margin")
    return table.loc[rows, "effect"].to_numpy(float)


# ---------------------------------------------------------------------------- weights and stages


@pytest.mark.parametrize("estimator", estimators())
def test_a_training_that_diverged_is_refused_by_stage_and_parameter(
    diverged: Run, estimator: str
) -> None:
    with pytest.raises(Refused, match=r"diverged in stage 'second'.*NaN or infinite \(1.weight\)"):
        attribute(diverged, "test", estimator)


def test_boundaries_behind_a_divergence_are_left_out(diverged: Run) -> None:
    table = boundaries(diverged, "test").table
    assert table["boundary"].unique().tolist() == ["base", "first"]
    assert np.isfinite(table["value"]).all()


def test_one_stage_that_diverged_and_was_undone_is_refused_alone(tmp_path: Path) -> None:
    """After the second stage a loop goes back to good weights, and declares it."""
    task = ImageClassification(CLASSES, SHAPE, model={"kind": "mlp", "hidden": [6]})
    model = task.build_model()
    good = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recorder = stagelens.Recorder(tmp_path / "run", task)
    for name, rate in (("first", 0.1), ("second", float("inf")), ("third", 0.1)):
        if name == "third":
            model.load_state_dict(good)
        optimizer = torch.optim.SGD(model.parameters(), rate)
        names = ["1", "3"] if name == "third" else []
        with recorder.stage(name, model=model, optimizer=optimizer, reinitialised=names) as stage:
            batch = torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 0])
            one_step(stage, task, model, optimizer, batch)
    recorder.close()
    write_set(tmp_path / "run", task, "test", images=images(), labels=["a", "b", "c"] * 8)
    made = attribute(open_run(tmp_path / "run"), "test", "task-vector")
    assert [made.trust[name].trust for name in ("first", "second", "third")] == [
        "estimated",
        "refused",
        "exact",
    ]
    assert "NaN or infinite" in made.trust["second"].reason
    assert np.isnan(effects(made, "second")).all() and np.isfinite(effects(made, "third")).all()


def test_a_model_of_nan_gives_no_answer() -> None:
    logits = torch.tensor([[torch.nan, 0.0, 1.0], [2.0, 0.0, 1.0]])
    assert classifier_predictions(logits, CLASSES).answers == [NO_ANSWER, "a"]


@pytest.mark.parametrize("estimator", estimators())
def test_a_stage_that_changed_nothing_has_exactly_no_effect(run: Run, estimator: str) -> None:
    made = attribute(run, "test", estimator)
    assert (effects(made, "still") == 0).all()
    assert made.trust["still"].trust == "exact"
    assert made.trust["still"].reason == "The stage changed nothing."


def test_an_own_example_is_answered_beside_a_stage_that_changed_nothing(run: Run) -> None:
    """Its counterfactual is the final model, which no cache holds."""
    made = attribute(run, "test", "replay")
    example = run.evaluation_set("test").examples()[0]
    own = answer(run, example, made.facts, LoadedWeights(2**30))
    found = own.table[own.table["stage"] == "still"]
    assert (found["effect"].dropna() == 0).all() and found["effect"].notna().any()


def test_what_changed_nothing_but_the_optimizer_is_not_called_exact(tmp_path: Path) -> None:
    """At rate 0 momentum still builds up, and goes on to the next stage."""
    task = ImageClassification(CLASSES, SHAPE, model={"kind": "mlp", "hidden": [6]})
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    for name, rate in (("still", 0.0), ("last", 0.1)):
        optimizer.param_groups[0]["lr"] = rate
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            batch = torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 0])
            one_step(stage, task, model, optimizer, batch)
    recorder.close()
    write_set(tmp_path / "run", task, "test", images=images(), labels=["a", "b", "c"] * 8)
    made = open_run(tmp_path / "run")
    assert attribute(made, "test", "task-vector").trust["still"].trust == "estimated"
    assert (effects(attribute(made, "test", "replay"), "still") != 0).any()


def test_a_stage_of_one_step_is_replayed_bit_for_bit(run: Run) -> None:
    made = attribute(run, "test", "replay")
    assert made.trust["single"].trust == "exact"
    assert (effects(made, "single") != 0).any() and np.isfinite(effects(made, "single")).all()


@pytest.mark.slow
def test_200_stages_are_opened_measured_and_drawn(tmp_path: Path) -> None:
    many = many_stages(tmp_path / "run", 200)
    names = [stage.name for stage in many.stages]
    assert len(names) == 200
    made = attribute(many, "test", "task-vector", [names[0], names[-1]])
    assert np.isfinite(made.table["effect"]).all()
    kind = made.behaviours["margin"]
    (means,) = [stage_summary(made.table, kind, names[:1])]
    bars = credit_and_blame(
        pd.concat([means.assign(stage=name) for name in names]), kind, made.trust
    )
    assert len(bars.figure.layout.yaxis.ticktext) == MOST  # and the others are counted
    assert "188 stages" in bars.alt and len(bars.rows) == 200
    line = time_line(dict.fromkeys(names, 1), learning_rates(many.stages), None, None)
    assert len(line.figure.layout.shapes) == MOST_BANDS + 1
    assert line.figure.layout.shapes[-1].x0 == pytest.approx(1)


# ------------------------------------------------------------------------------------------ sets


@pytest.mark.parametrize("estimator", ["task-vector", "coarse-replay", "replay"])
@pytest.mark.parametrize(
    ("name", "known"),
    [("one-example", 1), ("one-class", 24), ("some-labels", 16), ("no-labels", 0)],
)
def test_what_has_a_label_is_measured_and_what_has_none_is_counted(
    run: Run, name: str, known: int, estimator: str
) -> None:
    made = attribute(run, name, estimator)
    table = with_accuracy(made.table)
    names = [stage.name for stage in run.stages if made.trust[stage.name].trust != "refused"]
    means = stage_summary(table, made.behaviours["margin"], names).set_index("stage")
    assert (means.loc[names, "n"] == known).all()
    assert np.isfinite(means.loc[names, "effect"]).all() == (known > 0)
    assert means["error"].isna().all() == (known < 2)
    assert (table["behaviour"] == ACCURACY.name).any() == (known > 0)


def test_an_own_example_without_any_label_is_about_the_models_own_answer(run: Run) -> None:
    example = own_example(run.task, {"image": images(1)[0]}, None)
    found = answer(run, example, None, LoadedWeights(10**9))
    assert not found.label_given and found.label in CLASSES
    assert np.isfinite(found.table["effect"]).all()


def test_ids_that_stand_there_twice_are_refused_when_a_set_is_made(run: Run) -> None:
    with pytest.raises(SetError, match=r"ids appear more than once \('x'\)"):
        write_set(run.path, run.task, "twice", images=images(2), labels=["a", "b"], ids=["x", "x"])


def test_ids_that_stand_there_twice_in_a_forged_set_are_refused(tmp_path: Path) -> None:
    forged = record(tmp_path / "run", {"only": (1, 0.05)})
    path = forged.path / "sets/test/examples.parquet"
    table = pq.read_table(path)
    twice = pa.array(["0", *table["example_id"].to_pylist()[:-1]])
    pq.write_table(table.set_column(0, "example_id", twice), path)
    content = path.read_bytes()
    own = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    def mend(facts: Any) -> None:
        facts["table"] |= own
        facts["footer_sha256"] = footer_sha256(path)

    edit_and_seal(path.parent / "set.json", mend)
    examples = open_run(forged.path).evaluation_set("test")
    for read in (examples.table, lambda: examples.by_id(["1"])):
        with pytest.raises(RunError, match="ids are not text, or appear more than once"):
            read()


# ----------------------------------------------------------------------- another shape of answers


def grown(config: Mapping[str, Any]) -> nn.Module:
    """A network whose head has as many outputs as it is told."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, config["outputs"]))


def test_a_model_that_answers_with_more_classes_after_a_stage(tmp_path: Path) -> None:
    task = ImageClassification(CLASSES, SHAPE, model={"outputs": 3}, make_model=grown)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    model = grown({"outputs": 2})
    for name, outputs in (("two", 2), ("three", 3), ("last", 3)):
        if outputs != model[3].out_features:
            body, model = model[1], grown({"outputs": outputs})
            model[1] = body
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        config = {"outputs": outputs}
        with recorder.stage(name, model=model, optimizer=optimizer, build_config=config) as stage:
            batch = torch.randn(6, *SHAPE), torch.tensor([0, 1] * 3) % outputs
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
    recorder.close()
    write_set(tmp_path / "run", task, "test", images=images(), labels=["a", "b", "c"] * 8)
    made = open_run(tmp_path / "run", task)
    seen = boundaries(made, "test").table
    assert seen["boundary"].unique().tolist() == ["three", "last"]  # the others lack a class
    for estimator in estimators():
        result = attribute(made, "test", estimator)
        for name, trust in result.trust.items():
            assert np.isfinite(effects(result, name)).all() == (trust.trust != "refused")
    exact = attribute(made, "test", "replay")
    assert {trust.trust for trust in exact.trust.values()} == {"exact"}
