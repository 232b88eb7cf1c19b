"""Trainers whose loss is not the model's own: recorded, replayed, and left out."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

import stagelens
from stagelens import StageRecorderCallback
from stagelens.contracts import RecordingWarning, Refused
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.states import capture
from tests.support.loops import differing, refused
from tests.support.own_objectives import summed
from tests.support.small_trainings import arguments, made, trainer

ACCUMULATED = {"gradient_accumulation_steps": 3, "max_steps": 4}


class Weighing(Trainer):
    """Computes its loss beside the model, from what it takes out of its inputs."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        labels = inputs.pop("labels")
        inputs["output_hidden_states"] = False
        return weighed(model, {**inputs, "labels": labels})


def weighed(model: Any, inputs: Any) -> torch.Tensor:
    labels = inputs["labels"]
    given = {name: value for name, value in inputs.items() if name not in ("labels", "num_items")}
    given.pop("num_items_in_batch", None)
    weight = torch.tensor([1.0, 2.0, 0.5])
    return nn.functional.cross_entropy(model(**given).logits, labels, weight=weight)


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # name: kind of model, settings of the Trainer, its options, the callback's
    "smoothing": ("bert", {"label_smoothing_factor": 0.1}, {}, {}),
    "smoothing of tokens": ("gpt", {"label_smoothing_factor": 0.2, **ACCUMULATED}, {}, {}),
    "smoothing in bfloat16": ("gpt", {"label_smoothing_factor": 0.2, "bf16": True}, {}, {}),
    "own function": ("bert", ACCUMULATED, {"compute_loss_func": summed}, {}),
    "subclass": ("bert", ACCUMULATED, {"make": Weighing}, {"objective": weighed}),
    "noise": ("gpt", {"neftune_noise_alpha": 5.0, **ACCUMULATED}, {}, {}),
    "noise and smoothing": (
        "bert",
        {"neftune_noise_alpha": 5.0, "label_smoothing_factor": 0.1, "max_grad_norm": 0.1},
        {},
        {},
    ),
}
FUNCTIONS = {"own function": summed, "subclass": weighed}


def trained(case: str, path: Path, record: bool, without: str | None = None) -> Any:
    """Two trainings in turn; the model that they end with."""
    kind, settings, options, callback = CASES[case]
    torch.manual_seed(3)
    model, tokenizer = made(kind)
    for number, name in enumerate(("one", "two")):
        if name == without:
            continue
        callbacks: list[TrainerCallback] = []
        if record:
            own = StageRecorderCallback(path / "run", name, on_problem="raise", **callback)
            callbacks = [own]
        args = arguments(path / f"out-{number}", **settings)
        trainer(kind, model, tokenizer, args, seed=number, callbacks=callbacks, **options).train()
    return model


def opened(case: str, path: Path) -> stagelens.Run:
    function = FUNCTIONS.get(case)
    given: Any = {} if function is None else {"one": function, "two": function}
    return stagelens.open_run(path / "run", objectives=given)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_is_replayed_and_left_out_bit_for_bit(case: str, tmp_path: Path) -> None:
    trained(case, tmp_path, record=True)
    run = opened(case, tmp_path)
    assert run.problems == []
    assert measure_deviation(run.task, run.last).bitwise
    by_hand = trained(case, tmp_path, record=False, without="one")
    replayed = replay_without(run, run.stages[0]).state
    assert differing(replayed.model, capture(by_hand, None, {}).model) == []


def test_recording_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    states = [
        capture(trained("subclass", tmp_path, record), None, {}).model for record in (True, False)
    ]
    assert differing(*states) == []


def test_what_was_minimised_is_read_off_the_trainer(tmp_path: Path) -> None:
    trained("smoothing of tokens", tmp_path, record=True)
    facts = opened("smoothing of tokens", tmp_path).last.facts
    assert facts.objective is not None and facts.objective.name == "cross-entropy"
    assert facts.objective.settings["smoothing"] == 0.2 and facts.objective.settings["shift"]
    steps = opened("smoothing of tokens", tmp_path).last.read_steps()
    assert "num_items_in_batch" in (steps[0].batches or [])[0].batch


def test_a_function_of_the_trainer_has_to_be_given_again(tmp_path: Path) -> None:
    trained("own function", tmp_path, record=True)
    run = stagelens.open_run(tmp_path / "run")
    with pytest.raises(Refused, match="a loss of your own, summed"):
        replay_without(run, run.stages[0])


def test_another_function_than_named_is_told_at_the_first_step(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    own = StageRecorderCallback(
        tmp_path / "run", "sft", objective=lambda m, b: m(**b).loss, on_problem="raise"
    )
    args = arguments(tmp_path / "out")
    with refused("the loss of the first step", "the objective '<lambda>' gives"):
        trainer("bert", model, tokenizer, args, callbacks=[own], make=Weighing).train()


class Changing(Trainer):
    """Changes a tensor of its inputs."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        loss = weighed(model, inputs)
        inputs["attention_mask"].zero_()
        return loss


class Twice(Trainer):
    """Computes its loss twice."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.compute_loss(model, dict(inputs))
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        return weighed(model, inputs)


class Several(Trainer):
    """Returns a loss per example."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        return weighed(model, inputs).detach().requires_grad_(False)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.compute_loss(model, dict(inputs))
        loss = weighed(model, inputs)
        self.accelerator.backward(loss)
        return loss.detach()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Changing, "compute_loss changes its inputs in place"),
        (Twice, "compute_loss was called twice"),
        (Several, "no loss with a gradient"),
    ],
)
def test_what_cannot_be_seen_is_told_and_the_training_goes_on(
    make: type[Trainer], says: str, tmp_path: Path
) -> None:
    model, tokenizer = made("bert")
    own = StageRecorderCallback(tmp_path / "run", "sft", objective=weighed)
    args = arguments(tmp_path / "out")
    training = trainer("bert", model, tokenizer, args, callbacks=[own], make=make)
    with pytest.warns(RecordingWarning, match=says):
        training.train()
    assert training.state.global_step == 6
    run = stagelens.open_run(tmp_path / "run")
    assert says in str(run.last.facts.problem)


def test_afterwards_the_trainer_is_as_before(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    own = StageRecorderCallback(tmp_path / "run", "sft", objective=weighed)
    args = arguments(tmp_path / "out")
    training = trainer("bert", model, tokenizer, args, callbacks=[own], make=Weighing)
    training.train()
    assert "compute_loss" not in training.__dict__
    gone = weakref.ref(training)
    del training, own
    gc.collect()
    assert gone() is None


def test_a_registered_name_takes_its_settings_from_the_trainer(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    own = StageRecorderCallback(tmp_path / "run", "sft", objective="cross-entropy")
    args = arguments(tmp_path / "out", label_smoothing_factor=0.3)
    trainer("bert", model, tokenizer, args, callbacks=[own]).train()
    facts = stagelens.open_run(tmp_path / "run").last.facts.objective
    assert facts is not None and facts.settings["smoothing"] == 0.3
