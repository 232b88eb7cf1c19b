"""What later stages are like, and what the calibration bench holds no example of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stagelens.estimators.course import course, unlike_the_bench
from stagelens.runs.boundary_facts import WeightAverage
from stagelens.runs.objective_facts import ObjectiveFacts
from stagelens.runs.optimizer_facts import OptimizerFacts, ParameterGroup
from stagelens.runs.optimizer_kinds import update_of
from stagelens.runs.states import TrainingState
from stagelens.tasks import ImageClassification
from tests.support.small_runs import Phase, record


def _adam(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, 1e-2)


def _sgd(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, 1e-2, momentum=0.9)


def test_the_course_of_the_later_stages(tmp_path: Path) -> None:
    phases = [Phase("a", _adam), Phase("b", _sgd, steps=3), Phase("c", _adam, steps=4)]
    run = record(tmp_path / "run", "batch norm", phases)
    found, last = course(run, run.stage("a")), course(run, run.stage("b"))
    assert (found.sgd, found.batch_norm, found.first) == (True, True, True)
    assert (found.stages, found.steps) == (2, 7)
    assert found.optimizers == {"AdamW", "SGD"} and last.optimizers == {"SGD", "AdamW"}
    assert (last.sgd, last.first, last.stages, last.steps) == (False, False, 1, 4)
    replayed = course(run, run.stage("a"), run.stage("b"))
    assert (replayed.stages, replayed.steps) == (1, 4)


def test_how_far_the_later_stages_went_and_where(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "linear", [Phase("a", _adam), Phase("b", _sgd, steps=3)])
    start, end = run.stage("a").start().model, run.stage("a").end().model
    final = run.last.end().model
    mine = torch.cat([(end[n] - start[n]).flatten() for n in run.stage("a").facts.trainable])
    after = torch.cat([(final[n] - end[n]).flatten() for n in run.stage("a").facts.trainable])
    found = course(run, run.stage("a"))
    assert found.moved == pytest.approx(float(after.norm() / mine.norm()))
    assert found.turned == pytest.approx(float(mine @ after / after.norm() / mine.norm()))
    assert math.isfinite(found.hardness)


class OwnLoss(ImageClassification):
    """A task whose loss is nobody else's."""

    def loss(
        self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        return super().loss(model, batch) * 2


def test_what_the_bench_holds_is_not_unlike_it(tmp_path: Path) -> None:
    phases = [Phase("a", _adam), Phase("b", None, clip_norm=1.0), Phase("c", _sgd)]
    run = record(tmp_path / "run", "cnn", phases)
    assert unlike_the_bench(run, run.stage("a")) == ""


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        (Phase("b", _adam, accumulation=2), "accumulated gradients"),
        (Phase("b", lambda g: torch.optim.SGD(g, 1e-2, 0.9, dampening=0.5)), "dampening"),
        (
            Phase(
                "b",
                _adam,
                groups=lambda m: [
                    {"params": list(m.parameters())[:1], "lr": 1e-3},
                    {"params": list(m.parameters())[1:]},
                ],
            ),
            "several learning rates",
        ),
        (Phase("b", _adam, network="encoder"), "parameters came or went"),
        (Phase("b", lambda g: torch.optim.NAdam(g, 1e-3)), "was trained with NAdam"),
        (Phase("b", lambda g: torch.optim.AdamW(g, 1e-3, amsgrad=True)), "AdamW with amsgrad"),
        (Phase("b", _adam, prepare=lambda m: m[1].eval()), "evaluation mode"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_the_bench_does_not_hold_is_named(tmp_path: Path, phase: Phase, says: str) -> None:
    run = record(tmp_path / "run", "cnn", [Phase("a", _adam), phase])
    assert says in unlike_the_bench(run, run.stage("a"))
    assert "stage b" in unlike_the_bench(run, run.stage("a"))


def test_a_loss_of_ones_own_is_unlike_the_bench(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "cnn", [Phase("a", _adam), Phase("b", _sgd)])
    task = run.task
    assert isinstance(task, ImageClassification)
    own = OwnLoss(task.classes, task.image_shape, model=task.model, make_model=task.make_model)
    from stagelens.runs.run import open_run

    found = open_run(run.path, own)
    assert "a loss of its own" in unlike_the_bench(found, found.stage("a"))


def test_another_objective_than_the_models_own_is_unlike_the_bench(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "cnn", [Phase("a", _adam), Phase("b", _sgd)])
    later = run.stage("b")
    later.facts = later.facts.model_copy(update={"objective": ObjectiveFacts(name="dpo")})
    assert unlike_the_bench(run, run.stage("a")) == "stage b minimised dpo"


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"embedding_noise": 5.0}, "noise was added to embeddings in stage b"),
        ({"kernels": ["liger"]}, "fused or compiled code computed stage b"),
        ({"average": WeightAverage(kind="mean")}, "an average of the weights ended stage b"),
        ({"boundary": {"grown": {"0.weight": 2}}}, "rows were added or cut before stage b"),
        ({"boundary": {"trimmed": {"0.weight": 2}}}, "rows were added or cut before stage b"),
        ({"boundary": {"casts": {"0.weight": ["float16"]}}}, "weights were cast before stage b"),
    ],
    ids=str,
)
def test_other_ways_of_handing_over_and_of_ending_are_unlike_the_bench(
    tmp_path: Path, facts: dict[str, Any], says: str
) -> None:
    run = record(tmp_path / "run", "cnn", [Phase("a", _adam), Phase("b", _sgd)])
    later = run.stage("b")
    if "boundary" in facts:
        facts = {"boundary": later.facts.boundary.model_copy(update=facts["boundary"])}
    later.facts = later.facts.model_copy(update=facts)
    assert unlike_the_bench(run, run.stage("a")) == says


def test_weights_in_half_precision_are_unlike_the_bench(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "linear", [Phase("a", _adam), Phase("b", _sgd)])
    start = run.last.start()
    half = {name: tensor.bfloat16() for name, tensor in start.model.items()}
    run.last.start = lambda: TrainingState(half, start.optimizer)  # type: ignore[method-assign]
    assert unlike_the_bench(run, run.stage("a")) == "weights were in half precision in stage b"


def test_weights_of_no_optimiser_are_unlike_the_bench(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "linear", [Phase("a", _adam), Phase("b", _sgd)])
    later = run.last
    trainable = [*later.facts.trainable, "left.out"]
    later.facts = later.facts.model_copy(update={"trainable": trainable})
    assert "in no optimiser in stage b" in unlike_the_bench(run, run.stage("a"))


def test_an_assembled_stage_has_the_course_of_its_recorded_twin(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "linear", [Phase("a", _adam), Phase("b", _sgd, steps=3)])
    known = course(run, run.stage("a"))
    facts = run.stage("a").facts
    run.stage("a").facts = facts.model_copy(update={"trainable": []})
    found = course(run, run.stage("a"), recorded=False)
    assert (found.moved, found.turned) == pytest.approx((known.moved, known.turned))


def test_settings_beyond_the_bench_are_unlike_it(tmp_path: Path) -> None:
    run = record(
        tmp_path / "run", "linear", [Phase("a", _adam), Phase("b", _sgd), Phase("c", _sgd)]
    )
    stage = run.stage("a")
    assert unlike_the_bench(run, stage, {"budget": 0.25, "exact_stages": 1}) == ""
    assert "a budget of 1" in unlike_the_bench(run, stage, {"budget": 1.0})
    assert "2 exact stages" in unlike_the_bench(run, stage, {"budget": 0.25, "exact_stages": 2})


def test_adam_without_weight_decay_is_the_update_of_adamw() -> None:
    def of(name: str, decay: float | None = 0.0, **flags: bool) -> str:
        own = {} if decay is None else {"weight_decay": decay}
        group = ParameterGroup(parameters=["w"], hyperparameters={"lr": 1e-3, **own})
        return update_of(OptimizerFacts(name=name, groups=[group], flags=flags))

    assert of("Adam") == "AdamW" == of("AdamW", 0.01)
    assert of("Adam", 0.01) == of("Adam", None) == of("Adam", amsgrad=True) == "Adam"
    assert of("SGD") == "SGD" and of("NAdam") == "NAdam"
    # The very numbers, step by step.
    ends = []
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = kind([weight], 1e-2, weight_decay=0.0)
        for step in range(5):
            weight.grad = weight.detach() ** 3 + step
            optimizer.step()
        ends.append(weight.detach().clone())
    assert torch.equal(*ends)
