"""Regression and reward models: what they measure, and labels that no answer is held against."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stagelens.contracts import ACCURACY, Example, SetError, TaskError
from stagelens.effects.computing import attribute
from stagelens.effects.summary import with_accuracy
from stagelens.runs.sets.writer import write_set
from stagelens.tasks import Regression
from tests.support.small_texts import TEXTS, bert, bert_tokenizer
from tests.support.task_runs import record, regression, reward_model


def test_errors_of_a_regression_are_those_of_its_number() -> None:
    task = regression().task
    batch = task.collate([Example("a", {"text": "a dog"}, "2.5"), Example("b", {"text": "a cat"})])
    values = task.behaviours(torch.tensor([[3.0], [1.0]]), batch)
    assert {name: each[0].item() for name, each in values.items()} == {
        "squared error": 0.25,
        "absolute error": 0.5,
        "score": 3.0,
    }
    assert values["squared error"][1].isnan() and values["score"][1] == 1.0
    assert task.predictions(torch.tensor([[3.0], [math.nan]])).answers == ["3", "no answer"]


def test_labels_of_a_regression_are_numbers() -> None:
    task = regression().task
    assert [task.check_label(each) for each in (1, "2.50", 0.1, None)] == ["1", "2.5", "0.1", None]
    for wrong in ("good", math.inf, [1, 2]):
        with pytest.raises(ValueError, match="number"):
            task.check_label(wrong)
    with pytest.raises(TaskError, match="3 outputs"):
        Regression.from_model(bert(bert_tokenizer()), bert_tokenizer())


def test_tables_show_numbers_as_targets_and_know_no_accuracy(tmp_path: Path) -> None:
    run = record(tmp_path / "run", regression())
    examples = run.evaluation_set("test")
    table = examples.table()
    assert table["label"].isna().all() and examples.columns == ("target",)
    expected = [0.5, -1, 2.25, math.nan, 0]
    np.testing.assert_array_equal(table["target"], expected)
    assert "target" not in examples.table([])
    assert [each.label for each in examples.examples()] == ["0.5", "-1", "2.25", None, "0"]
    assert examples.facts.missing_labels == 1
    result = attribute(run, "test", "replay")
    assert ACCURACY.name not in set(with_accuracy(result.table)["behaviour"])
    with pytest.raises(SetError, match="'target' has a name that StageLens uses"):
        write_set(run.path, run.task, "other", texts=["a"], columns={"target": [1]})


def test_the_loss_of_pairs_is_that_of_bradley_and_terry() -> None:
    small = reward_model()
    task, model = small.task, small.model.eval()
    batch = task.pairs(["the cat"], [" sat"], [" barked"])
    assert batch["input_ids"].shape[0] == 2
    chosen, rejected = model(**batch).logits.flatten()
    loss = task.loss(model, batch)
    assert loss == -torch.nn.functional.logsigmoid(chosen - rejected)
    with_margin = task.loss(model, {**batch, "margin": torch.tensor([0.5])})
    assert with_margin == -torch.nn.functional.logsigmoid(chosen - rejected - 0.5)
    shown = task.examples(batch)
    given = [{"completion": "the cat sat", "rejected": "the cat barked"}]
    assert [each.input for each in shown] == given
    assert task.row_examples(batch) == [0, 0]


def test_a_pair_is_right_where_the_completion_has_the_higher_reward(tmp_path: Path) -> None:
    run = record(tmp_path / "run", reward_model())
    examples = run.evaluation_set("test")
    assert [each.label for each in examples.examples()] == ["completion"] * 3 + [None]
    table = with_accuracy(attribute(run, "test", "replay").table)
    first = table[table["stage"] == "first"].set_index(["behaviour", "example_id"])
    preference, right = first.loc["preference"], first.loc["accuracy"]
    np.testing.assert_array_equal(right["final"][:3], preference["final"][:3] > 0)
    assert math.isnan(preference["final"].iloc[3]) and pd.isna(right["final"].iloc[3])
    rewards = first.loc["reward", "final"]
    assert np.isfinite(rewards).all()
    # A single text has a number for an answer.
    assert float(first.loc["reward", "prediction"].iloc[3]) == pytest.approx(rewards.iloc[3], 1e-3)


def test_an_example_of_a_reward_model_needs_one_thing_to_reward() -> None:
    task = reward_model().task
    for value in ({}, {"text": "a", "completion": "b"}, {"prompt": TEXTS[0]}):
        with pytest.raises(ValueError, match="needs a text or a completion, not both"):
            task.check_input(value)
    with pytest.raises(ValueError, match="is not completion"):
        task.check_label("rejected")
    assert task.check_input({"prompt": " ".join(TEXTS), "completion": "a"}) == "cut to 24 tokens"
