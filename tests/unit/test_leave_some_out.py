"""The benchmark of group effects, where they are known: a loss that is linear in the weights."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.contributions.first_order import contributions
from stagelens.analyses.without_data.chosen import by_ids
from stagelens.analyses.without_data.computing import without_data
from stagelens.analyses.without_data.first_order import first_order
from stagelens.analyses.without_data.sentences import mean_effect
from stagelens.contracts import Example
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.replaying.left_out import Divisor
from stagelens.runs.run import Run
from stagelens.runs.training_rows import training_rows
from stagelens.tasks import ImageClassification
from tests.benchmarks import chosen_groups, group_scores, leave_some_out
from tests.benchmarks.group_agreement import (
    UseScores,
    between,
    membership,
    predicted,
    rank_correlations,
    relative_error,
    shifted,
    slope_between,
    slope_of_sizes,
)
from tests.benchmarks.group_replays import Group, Replays
from tests.benchmarks.group_scores import HELD, WEIGHTS, adjoint_scores, example_gradients
from tests.support.small_runs import SHAPE, Phase, record

DOUBLE = DerivativeOptions("float64")


class LinearLoss(ImageClassification):
    """Minus the label's logit, the mean over a batch: without curvature, effects simply add up."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        return -model(images).gather(1, labels[:, None]).mean()


def _two_classes(_config: Any) -> nn.Module:
    # Of two logits the margin is a difference, so it is linear in the weights too.
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two stages of SGD with momentum and decay, each example in several batches."""
    path = tmp_path_factory.mktemp("groups") / "run"
    task = LinearLoss(("a", "b"), SHAPE, model={"kind": "own"}, make_model=_two_classes)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(20, *SHAPE, generator=random, dtype=torch.float64)
    labels = torch.randint(2, (20,), generator=random)
    torch.manual_seed(0)
    model, recorder = task.build_model(), stagelens.Recorder(path, task, name="linear")
    for name in ("one", "two"):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            for _ in range(5):
                rows = torch.randint(20, (12,), generator=random)  # none loses all
                loss = task.loss(model, (images[rows], labels[rows]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step((images[rows], labels[rows]), loss)
    asked = np.random.default_rng(1).normal(size=(6, *SHAPE[1:]))
    recorder.add_set("test", images=asked, labels=[0, 1] * 3)
    return stagelens.open_run(path, task)


def _questions(count: int = 3) -> list[Example]:
    images = np.random.default_rng(0).normal(size=(count, *SHAPE[1:]))
    return [Example(str(i), {"image": image}, label="ab"[i % 2]) for i, image in enumerate(images)]


@pytest.mark.parametrize("divisor", ["rest", "kept"])
def test_what_adds_up_is_predicted_in_full(linear: Run, tmp_path: Path, divisor: Divisor) -> None:
    replays = Replays(linear, 0, _questions(), tmp_path / "rows.jsonl")
    scores = adjoint_scores(linear, "margin", _questions(), DOUBLE)
    for stage in ("one", "two"):
        for fraction in (0.1, 0.5):
            groups = [Group(stage, fraction, number, 0, divisor) for number in range(5)]
            effects = np.stack([replays.effect(group) for group in groups], 1)
            members = [replays.members(group) for group in groups]
            uses = membership(members, replays.rows_of_uses(stage))
            for name in (HELD, WEIGHTS):  # the same where no denominator is held
                prediction = predicted(scores[name].by_stage[stage], uses, divisor)
                assert prediction == pytest.approx(effects, abs=1e-12)
                same = rank_correlations(effects.round(9), prediction.round(9))  # keeps ties
                assert same == pytest.approx(np.ones(3))
                assert slope_between(effects, prediction) == pytest.approx(1)
                assert slope_of_sizes(effects, prediction) == pytest.approx(1)
                assert relative_error(effects, prediction) < 1e-10
    again = Replays(linear, 0, _questions(), tmp_path / "rows.jsonl")
    again.run = None  # type: ignore[assignment] # so that it could replay nothing
    again.rows = replays.rows
    kept = [replays.values(key, dict) for key in replays.known]
    assert np.array_equal([again.values(key, dict) for key in replays.known], kept)


@pytest.mark.parametrize("divisor", ["rest", "kept"])
def test_what_pages_say_to_first_order_is_exact_then(linear: Run, divisor: Divisor) -> None:
    rows = training_rows(linear, linear.stages[0])
    asked = contribute(linear, "test", Question(), "margin")
    for ids in (["0-0"], list(rows.table["example_id"][2:9])):
        chosen = by_ids(rows, ids)
        found = without_data(linear, "test", chosen, divisor)
        estimate, known = first_order(asked, chosen, divisor)
        assert known == len(ids)
        exact = mean_effect(found, found.behaviours["margin"])
        assert estimate == pytest.approx(exact, abs=1e-12)


def test_with_no_curvature_the_order_of_batches_changes_effects_by_decay_alone(
    linear: Run, tmp_path: Path
) -> None:
    replays = Replays(linear, 0, _questions(), tmp_path / "rows.jsonl")
    groups = [Group("one", 0.5, number, order, "rest") for order in (0, 1) for number in range(6)]
    effects = np.stack([replays.effect(group) for group in groups], 1)
    assert not np.allclose(effects[:, :6], effects[:, 6:])
    assert rank_correlations(effects[:, :6], effects[:, 6:]).min() > 0.5


def test_each_example_has_one_gradient_and_each_use_one_number(tmp_path: Path) -> None:
    def adamw(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, 0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1)

    run = record(tmp_path / "run", "cnn", [Phase("one", adamw, 4), Phase("two", adamw, 3)])
    asked = [Example("q", {"image": np.ones(SHAPE[1:])}, label="a")]
    scores = adjoint_scores(run, "margin", [*asked, *asked], DOUBLE)
    table = contributions(run, "margin", asked, with_examples=True, options=DOUBLE).examples
    assert table is not None
    for stage in run.stages:
        own = table[(table["stage"] == stage.name) & (table["part"] == "example")]
        found = scores[HELD].by_stage[stage.name]
        assert found.steps.tolist() == own["step"].tolist()
        assert found.values[1] == pytest.approx(own["contribution"].to_numpy(), abs=1e-12)
        assert not np.allclose(found.values, scores[WEIGHTS].by_stage[stage.name].values)
    first = LinearStage(run, run.stages[0], active_names(run, run.stages), DOUBLE)
    record_ = run.stages[0].read_steps()[0]
    whole = first.loss.gradient(first.start.values, record_).gradient
    for name, parts in example_gradients(first.loss, first.start.values, record_).items():
        assert torch.allclose(parts.sum(0), whole[name], atol=1e-12)
    # Batches of texts have no gradient per example; their products with vectors are the same.
    each = example_gradients(first.loss, first.start.values, record_)
    lanes = [{name: torch.randn_like(t) for name, t in whole.items()} for _ in range(2)]
    products = first.loss.example_products(first.start.values, record_, lanes)
    for lane, found in zip(lanes, products, strict=True):
        expected = sum((each[name] * t).flatten(1).sum(1) for name, t in lane.items())
        assert torch.allclose(found, torch.as_tensor(expected), atol=1e-10)


def test_the_rest_of_a_batch_weighs_more_where_its_mean_is_taken() -> None:
    scores = UseScores(np.array([0, 0, 0, 1, 1]), np.array([[1.0, 2.0, 4.0, 8.0, 16.0]]))
    out = np.array([[True, False, False, True, True], [False, True, True, False, False]])
    assert predicted(scores, out, "kept").tolist() == [[25.0, 6.0]]
    # 1 - (2 + 4) / 2 and all of step 1; 2 + 4 - 2 * 1 and nothing of step 1.
    assert predicted(scores, out, "rest").tolist() == [[22.0, 4.0]]


def test_agreement_is_counted_per_question() -> None:
    effects = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    prediction = np.array([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5], [0.5, 1.0, 1.5]])
    scores = rank_correlations(effects, prediction)
    assert scores[:2].tolist() == [1.0, -1.0]
    assert np.isnan(scores[2])
    assert slope_between(effects[:1], prediction[:1]) == pytest.approx(2)
    # A part that all groups have in common counts for sizes, not between groups.
    assert slope_between(effects[:1] + 5, prediction[:1]) == pytest.approx(2)
    assert slope_of_sizes(effects[:1] + 5, prediction[:1]) > 2
    assert between(effects[:1] + 5).tolist() == [[-1.0, 0.0, 1.0]]
    # ||(2, 2, 2)|| over ||(1, 2, 3)||
    assert relative_error(effects[:1], between(effects[:1])) == pytest.approx((12 / 14) ** 0.5)


def test_one_replay_tells_what_groups_have_in_common() -> None:
    prediction = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 1.0]])
    effects = prediction + np.array([[5.0], [-1.0]])
    rest, moved = shifted(effects, prediction, [1])
    assert moved.tolist() == rest.tolist() == [[6.0, 9.0], [2.0, 0.0]]


def test_groups_are_drawn_apart_and_the_same_whatever_is_done_with_them(linear: Run) -> None:
    count = len(training_rows(linear, linear.stages[0]))
    drawn = [
        Group("two", fraction, number, 0, "rest").members(3, ["one", "two"], count)
        for fraction in (0.1, 0.5)
        for number in range(4)
    ]
    assert len(set(drawn)) == 8
    assert [len(group) for group in drawn] == [round(0.1 * count)] * 4 + [round(0.5 * count)] * 4
    again = Group("two", 0.1, 0, 1, "kept").members(3, ["one", "two"], count)
    assert again == drawn[0]


def test_lines_of_a_run_say_what_was_compared(
    linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave_some_out, "recorded", lambda *_: linear)
    monkeypatch.setattr(leave_some_out, "QUESTIONS", {"digits": 3})
    options = Namespace(
        cache=tmp_path,
        stages=["two"],
        replays_only=False,
        divisors=["rest"],
        groups=8,
        other_groups=4,
    )
    scenario = leave_some_out.SCENARIOS["digits-sgd-0.01"]
    lines = leave_some_out.measure_run(scenario, 3, options)
    assert {line["stage"] for line in lines} == {"two"}
    by_method = {(line["method"], line["fraction"]): line for line in lines}
    assert by_method[HELD, 0.5]["lds"] == pytest.approx(1)
    assert by_method[HELD, 0.5]["slope"] == pytest.approx(1, abs=1e-6)
    assert abs(by_method["random", 0.5]["lds"]) < 0.9
    assert by_method["TracIn", 0.1]["seconds"] > 0
    assert by_method["another order", 0.1]["groups"] == 4
    assert by_method[leave_some_out.ONE_REPLAYED, 0.5]["error"] == pytest.approx(0, abs=1e-6)
    assert by_method[leave_some_out.ONE_REPLAYED, 0.5]["groups"] == 7
    assert by_method[WEIGHTS, 0.1]["groups"] == 8
    # Scores come from their files the second time, replays from theirs.
    monkeypatch.setattr(group_scores, "adjoint_scores", None)
    monkeypatch.setattr(Replays, "_without", None)
    assert leave_some_out.measure_run(scenario, 3, options) == lines


def test_chosen_groups_are_predicted_in_full_where_effects_add_up(
    linear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_groups, "recorded", lambda *_: linear)
    monkeypatch.setattr(chosen_groups, "SIZE", 3)
    measured = chosen_groups.of_scenario("digits-sgd-0.01", 3, tmp_path)
    groups = chosen_groups.by_label(measured.replays, "two")
    table = measured.replays.table("two").table
    assert {name: len(own) for name, own in groups.items()} == dict(table["label"].value_counts())
    lines = {line["method"]: line for line in measured.labels("two")}
    exact = lines[WEIGHTS]
    assert exact["groups"] == len(groups) == 2
    for name in ("rank", "slope", "size", "sign", "weighted sign", "top", "top of mean"):
        assert exact[name] == pytest.approx(1, abs=1e-5), name
    assert exact["error"] == pytest.approx(0, abs=1e-5) and exact["top lost"] == 0
    assert lines["another order"]["error"] > 1e-3
    found = measured.chosen("two", chosen_groups.WORST, 4)
    found += measured.chosen("two", chosen_groups.BEST, 4)
    for line in found:
        assert line[WEIGHTS] == pytest.approx(line["effect"], abs=1e-5)
    worst, best = ([line[HELD] for line in found if line["kind"] == kind] for kind in
                   (chosen_groups.WORST, chosen_groups.BEST))  # fmt: skip
    assert max(worst) < min(best)
    told = chosen_groups.of_chosen(pd.DataFrame(found))
    assert told["sign"].tolist() == [1.0] * 4 and told["groups"].tolist() == [4] * 4
    ratios = told.loc[told["method"] == WEIGHTS, ["ratio", "ratio 10 %", "ratio 90 %"]]
    assert ratios.to_numpy() == pytest.approx(1, abs=1e-3)


def test_agreement_of_a_few_groups_tells_which_hurt_most() -> None:
    effects = np.array([[-3.0, 1.0, 2.0, 3.0], [-1.0, -2.0, 2.0, 1.0]])
    prediction = np.array([[-1.0, 1.0, 2.0, 3.0], [-2.0, -1.0, 2.0, -1.0]])
    found = chosen_groups.agreement(effects, prediction)
    assert (found["top"], found["in 3"]) == (0.5, 1.0)
    assert found["top lost"] == pytest.approx((0 + 1 / 4) / 2)
    assert found["sign"] == 7 / 8 and found["weighted sign"] == pytest.approx(14 / 15)
    assert found["top of mean"] == 1.0
