"""What a Trainer may do that replay could not do again is refused, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from torch import nn
from transformers import Trainer, TrainerCallback

import stagelens
from stagelens import StageRecorderCallback
from tests.support.loops import make_task, refused
from tests.support.small_trainings import arguments, collator, examples, made, trainer


def strictly(path: Path, stage: str) -> StageRecorderCallback:
    return StageRecorderCallback(path, stage, on_problem="raise")


def train(
    path: Path,
    *others: TrainerCallback,
    make: type[Trainer] = Trainer,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    model, tokenizer = made("bert")
    callbacks = [strictly(path / "run", "sft"), *others]
    args = arguments(path / "out", **settings)
    made_options = {"callbacks": callbacks, "make": make, **(options or {})}
    trainer("bert", model, tokenizer, args, **made_options).train()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"auto_find_batch_size": True}, ("auto_find_batch_size", "per_device_train_batch_size")),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_settings(settings: dict[str, Any], says: tuple[str, ...], tmp_path: Path) -> None:
    with refused(*says):
        train(tmp_path, **settings)
    assert not list((tmp_path / "run").glob("stages/*/steps*"))


class Scaler:
    """Stands for the gradient scaler that a Trainer has on an accelerator with fp16=True."""

    def is_enabled(self) -> bool:
        return True


def test_gradient_scaling(tmp_path: Path) -> None:
    class Scaling(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            given["optimizer"].scaler = Scaler()

    model, tokenizer = made("bert")
    callbacks = [Scaling(), strictly(tmp_path / "run", "sft")]
    args = arguments(tmp_path / "out")
    with refused("a Trainer with fp16 cannot be recorded", "use bf16=True"):
        trainer("bert", model, tokenizer, args, callbacks=callbacks).train()


class Own(Trainer):
    """Computes the loss beside the model."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        outputs = model(**inputs)
        return nn.functional.cross_entropy(outputs.logits, inputs["labels"])


class Penalised(Trainer):
    """Adds a penalty to the model's loss."""

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        penalty = sum(p.square().sum() for p in model.parameters())
        return super().compute_loss(model, *args, **kwargs) + 1e-2 * penalty


class Twice(Trainer):
    """Calls the model twice."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        return model(**inputs).loss + model(**inputs).loss


class Positional(Trainer):
    """Calls the model without names."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        return model(inputs["input_ids"], labels=inputs["labels"]).loss


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Own, ("is not the model's own", "compute_loss computes another", "objective=...")),
        (Penalised, ("a penalty", "a subclass or another callback")),
        (Twice, ("called twice with gradients", "torch.no_grad()")),
        (Positional, ("positional arguments", "model(**inputs)")),
    ],
)
def test_losses_at_the_first_step(
    make: type[Trainer], says: tuple[str, ...], tmp_path: Path
) -> None:
    with refused(*says):
        train(tmp_path, make=make)
    assert stagelens.open_run(tmp_path / "run").stages == []


class Between(TrainerCallback):
    """Does something between the second and the third update."""

    def __init__(self, act: Callable[[Any], None], event: str) -> None:
        setattr(self, event, lambda args, state, control, model, **_: self.see(state, model))
        self.act = act

    def see(self, state: Any, model: Any) -> None:
        if state.global_step == 2:
            self.act(model)


@torch.no_grad()
def shrink(model: Any) -> None:
    model.classifier.weight.mul_(0.9)


def add_noise(model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad.add_(torch.randn_like(parameter))


def run_it(model: Any) -> None:
    model(input_ids=torch.ones(1, 2, dtype=torch.int64), labels=torch.tensor([1]))


@pytest.mark.parametrize(
    ("act", "event", "says"),
    [
        (shrink, "on_step_end", "changed outside optimizer.step(), after update 2"),
        (add_noise, "on_pre_optimizer_step", "was changed between backward and optimizer.step()"),
        (run_it, "on_step_begin", "called twice with gradients"),
    ],
)
def test_what_another_callback_changes(
    act: Callable[[Any], None], event: str, says: str, tmp_path: Path
) -> None:
    with refused(says):
        train(tmp_path, Between(act, event), max_grad_norm=0.0)


def test_weights_that_are_changed_after_the_last_update(tmp_path: Path) -> None:
    with refused("changed outside optimizer.step(), after update 2"):
        train(tmp_path, Between(shrink, "on_epoch_end"), max_steps=2)


def test_a_model_whose_task_is_not_known(tmp_path: Path) -> None:
    classifier, tokenizer = made("bert")
    model = transformers.BertForQuestionAnswering(classifier.config)
    callback = strictly(tmp_path / "run", "sft")
    args = arguments(tmp_path / "out")
    with refused("a BertForQuestionAnswering is trained for", "task=..."):
        trainer("bert", model, tokenizer, args, callbacks=[callback]).train()
    assert not (tmp_path / "run").exists()


def test_a_trainer_without_a_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    options = {
        "train_dataset": examples("bert", tokenizer),
        "data_collator": collator("bert", tokenizer),
        "callbacks": [strictly(tmp_path / "run", "sft")],
    }
    with refused("the Trainer has no tokenizer", "processing_class=tokenizer"):
        Trainer(model, arguments(tmp_path / "out"), **options).train()


def test_a_stage_of_another_task(tmp_path: Path) -> None:
    train(tmp_path)
    model, tokenizer = made("gpt")
    callback = strictly(tmp_path / "run", "more")
    with refused("its task was 'text-classification' there and is 'causal-lm' here"):
        trainer("gpt", model, tokenizer, arguments(tmp_path / "out"), callbacks=[callback]).train()


def with_tokenizer(tokenizer: Any, path: Path) -> None:
    """Train on what a first stage left, with another tokenizer."""
    model, first = made("gpt")
    callback = strictly(path / "run", "sft")
    args = arguments(path / "out", max_steps=1)
    trainer("gpt", model, first, args, callbacks=[callback]).train()
    model.resize_token_embeddings(len(tokenizer))
    callback = strictly(path / "run", "more")
    trainer("gpt", model, tokenizer, args, callbacks=[callback]).train()


def edited(tokenizer: Any, change: Callable[[dict[str, Any]], object]) -> Any:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    change(content)
    own = tokenizers.Tokenizer.from_str(json.dumps(content))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def test_what_a_stage_may_change_of_its_tokenizer_is_noted(tmp_path: Path) -> None:
    tokenizer = made("gpt")[1]
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 12
    tokenizer.add_tokens(["<|user|>"])
    with_tokenizer(tokenizer, tmp_path)
    run = stagelens.open_run(tmp_path / "run")
    assert len(run.stages) == 2
    (note,) = run.problems
    assert "stage 'more' was trained with a tokenizer that differs from the run's in" in note
    assert all(key in note for key in ("added_tokens", "padding_side", "model_max_length"))


def test_the_side_that_is_padded_is_not_worth_a_note(tmp_path: Path) -> None:
    tokenizer = made("gpt")[1]
    tokenizer.padding_side = "left"  # as some trainers of TRL set it
    with_tokenizer(tokenizer, tmp_path)
    assert stagelens.open_run(tmp_path / "run").problems == []


def test_a_tokenizer_that_reads_texts_otherwise(tmp_path: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    with refused("'a' had the id", "with the run's tokenizer"):
        with_tokenizer(edited(made("gpt")[1], swap), tmp_path / "swapped")
    lower = edited(made("gpt")[1], lambda own: own.update(normalizer={"type": "Lowercase"}))
    with refused("its normalizer (tokenizer.json) is another here"):
        with_tokenizer(lower, tmp_path / "lower")


def test_a_stage_from_another_model(tmp_path: Path) -> None:
    train(tmp_path)
    model, tokenizer = made("bert", seed=5)
    callback = strictly(tmp_path / "run", "more")
    with refused("differs from its value at the end of the previous stage"):
        trainer("bert", model, tokenizer, arguments(tmp_path / "out"), callbacks=[callback]).train()


def test_a_task_that_does_not_take_the_models_arguments(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    task = make_task(make_model=lambda _: made("bert")[0])
    callback = StageRecorderCallback(tmp_path / "run", "sft", task=task, on_problem="raise")
    with refused("task.loss(model, batch) cannot be recomputed"):
        trainer("bert", model, tokenizer, arguments(tmp_path / "out"), callbacks=[callback]).train()


def test_a_callback_that_comes_too_late(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    late = strictly(tmp_path / "run", "sft")

    class Adding(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            trained.add_callback(late)

    args = arguments(tmp_path / "out")
    trained = trainer("bert", model, tokenizer, args, callbacks=[Adding()])
    with refused("stage 'sft' is not being recorded", "before its training begins"):
        trained.train()
