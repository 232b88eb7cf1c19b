"""Reference models that are the model itself, and log-probabilities of one that batches hold."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

import stagelens
from stagelens.contracts import ReferenceModel, no_progress
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.replay_check import check_replay
from stagelens.replaying.coarse import CoarseModel
from stagelens.replaying.coarse_plan import coarse_steps
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.states import capture
from stagelens.tasks import ImageClassification, adapter_config
from tests.support.adapted import layers_task, lora
from tests.support.loops import CLASSES, SHAPE, differing, make_batches, make_task
from tests.support.own_objectives import Preferred, focal
from tests.unit.conftest import Command

LAYERS = layers_task()


def adapted(path: Path, without: str | None = None, record: bool = True) -> Any:
    """A pretraining, and preferences whose reference is the model with its adapter off."""
    torch.manual_seed(0)
    model: Any = LAYERS.build_model()
    recorder = stagelens.Recorder(path, LAYERS) if record else None
    objective = Preferred()
    for number, name in enumerate(("pretrain", "dpo")):
        torch.manual_seed(20 + number)
        if name == "dpo":
            model = get_peft_model(model, lora())
        if name == without:
            continue
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        declared: dict[str, Any] = {"on_problem": "raise", "model": model, "optimizer": optimizer}
        if name == "dpo":
            off = {"reference": ReferenceModel(adapter_off=True)}
            declared |= {"objective": objective, "references": off}
            declared["build_config"] = {"peft": adapter_config(model)}
        stage = recorder.stage(name, **declared).__enter__() if recorder else None
        for batch in make_batches(5, number):
            if name == "dpo":
                loss = objective.loss(LAYERS, model, batch, {"reference": Off(model)})
            else:
                loss = LAYERS.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if stage is not None:
                stage.step(batch, loss)
        if stage is not None:
            stage.__exit__(None, None, None)
    return model


class Off(nn.Module):
    """As people write it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.held = [model]

    def forward(self, images: Tensor) -> Tensor:
        (model,) = self.held
        model.eval()
        with model.disable_adapter(), torch.no_grad():
            outputs: Tensor = model(images)
        model.train()
        return outputs


def test_the_reference_is_the_model_with_its_adapter_off(tmp_path: Path) -> None:
    adapted(tmp_path / "run")
    run = stagelens.open_run(tmp_path / "run", LAYERS, {"dpo": Preferred()})
    assert measure_deviation(LAYERS, run.last).bitwise
    by_hand = adapted(tmp_path, without="pretrain", record=False)
    replayed = replay_without(run, run.stage("pretrain")).state
    assert differing(replayed.model, capture(by_hand, None, {}).model) == []


class Noted(ImageClassification):
    """DPO as it is often written: the reference's margins come with the batch."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        scores = model(batch["images"]).log_softmax(1)
        margins = scores[:, 0] - scores[:, 1] - batch["ref_chosen_logps"]
        return -nn.functional.logsigmoid(margins).mean()


def test_a_reference_moves_in_coarse_steps_of_any_optimiser(tmp_path: Path) -> None:
    task = make_task()
    recorder, model = stagelens.Recorder(tmp_path / "run", task), task.build_model()
    reference = copy.deepcopy(model)
    optimizer = torch.optim.NAdam(model.parameters(), lr=0.05)
    declared = {"reference": ReferenceModel(reference, sync_every=2, sync_mixing=0.5)}
    stage = recorder.stage(
        "dpo",
        model=model,
        optimizer=optimizer,
        objective=Preferred(),
        references=declared,
        on_problem="raise",
    )
    with stage:
        for step, batch in enumerate(make_batches(6), 1):
            loss = Preferred().loss(None, model, batch, {"reference": reference})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
            for own, other in zip(reference.parameters(), model.parameters(), strict=True):
                if step % 2 == 0:
                    own.data.mul_(0.5).add_(other.data, alpha=0.5)
    last = stagelens.open_run(tmp_path / "run", task, {"dpo": Preferred()}).last
    coarse = CoarseModel(task, last, last.start())
    for one in coarse_steps(last.read_steps(), 1.0, 1.0):  # each is a whole recorded step
        coarse.step(one)
    assert differing(coarse.snapshot().model, last.end().model) == []


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    task = Noted(CLASSES, SHAPE, model={"kind": "mlp", "hidden": [4]})
    path = tmp_path_factory.mktemp("noted") / "run"
    recorder, model = stagelens.Recorder(path, task), task.build_model()
    for name in ("sft", "dpo"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with recorder.stage(name, model=model, optimizer=optimizer, on_problem="raise") as stage:
            for images, _ in make_batches(3):
                batch = {"images": images, "ref_chosen_logps": torch.zeros(len(images))}
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    return stagelens.open_run(path, task)


def test_reference_log_probabilities_in_batches_are_not_exact(noted: stagelens.Run) -> None:
    found = {
        one.stage: one.trust
        for one in counterfactuals(noted, make_estimator("replay"), noted.stages)
    }
    assert found["sft"].trust == "estimated"
    assert "stage 'dpo' hold log-probabilities of a reference model" in found["sft"].reason
    assert "ref_chosen_logps" in found["sft"].reason
    assert found["sft"].expected_error is None
    assert found["dpo"].trust == "exact"  # nothing follows it


# The command line


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, the second on a loss of the user's own, with a set."""
    task = make_task()
    path = tmp_path_factory.mktemp("own") / "run"
    recorder, model = stagelens.Recorder(path, task), task.build_model()
    for name in ("one", "two", "three"):
        loss_of = task.loss if name == "one" else focal
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        objective = None if name == "one" else focal
        with recorder.stage(
            name, model=model, optimizer=optimizer, objective=objective, on_problem="raise"
        ) as stage:
            for batch in make_batches(3):
                loss = loss_of(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    images, labels = make_batches(1)[0]
    recorder.add_set("test", images=images.numpy(), labels=[CLASSES[n] for n in labels.tolist()])
    recorder.close()
    return path


def test_a_stored_check_is_not_taken_for_another_loss(own: Path) -> None:
    def checked(loss: Any) -> bool:
        run = stagelens.open_run(own, objectives={"two": loss, "three": focal})
        return check_replay(run, run.stage("two"), no_progress).bitwise

    def other(model: nn.Module, batch: Any) -> Tensor:
        return 2 * focal(model, batch)

    other.__name__ = "focal"
    assert [checked(loss) for loss in (focal, other, focal)] == [True, False, True]


FOCAL = "tests.support.own_objectives:focal"


@pytest.mark.slow  # it starts a helper process
def test_a_loss_is_given_on_the_command_line(own: Path, command: Command, tmp_path: Path) -> None:
    run = shutil.copytree(own, tmp_path / "run")  # what it stores is not for other tests
    words = ("attribute", run, "--estimator", "replay", "--processes", "2")
    answer = command(*words, "--objective", f"two={FOCAL}", "--objective", f"three={FOCAL}")
    assert answer.status == 0, answer.err
    assert "refused" not in answer.out
    assert "STAGELENS_OBJECTIVES" not in os.environ


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (f"one={FOCAL}", "was trained on the model's own loss"),
        (f"other={FOCAL}", "no stage 'other'"),
        ("two", "give it as STAGE=package.module:function"),
        ("two=no.such:loss", "'no.such:loss' cannot be imported"),
        ("two=tests.support.loops:CLASSES", "neither a function nor a stagelens.Objective"),
    ],
)
def test_a_loss_that_cannot_be_given_is_an_error(
    own: Path, objective: str, says: str, command: Command
) -> None:
    answer = command("attribute", own, "--objective", objective)
    assert answer.status == 1
    assert says in " ".join(answer.err.split())


def test_without_it_the_stages_before_are_refused_with_the_remedy(
    own: Path, command: Command
) -> None:
    answer = command("attribute", own, "--estimator", "coarse-replay", "--stage", "one")
    said = " ".join((answer.out + answer.err).split())
    assert "a loss of your own, focal" in said and "--objective two=" in said


def test_without_it_the_rest_is_settled_all_the_same(own: Path, command: Command) -> None:
    answer = command("attribute", own, "--time", "1m")
    assert answer.status == 0, answer.err
    assert "a loss of your own, focal" in " ".join(answer.out.replace("│", " ").split())
    later = stagelens.open_run(own).stage("two").no_replay
    assert "a loss of your own, focal" in later and "--objective two=" in later
    assert stagelens.open_run(own, objectives={"two": focal}).stage("two").no_replay == ""
