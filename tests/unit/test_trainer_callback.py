"""Trainings by transformers' Trainer are recorded as stages, and replay gives them again."""

from __future__ import annotations

import functools
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer

import stagelens
from stagelens import StageRecorderCallback
from stagelens.effects.computing import attribute
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from tests.support.grids import part
from tests.support.loops import differing
from tests.support.small_texts import TEXTS
from tests.support.small_trainings import KINDS, arguments, made, trainer

Options = dict[str, Any]


def sgd(model: nn.Module) -> Options:
    """Two groups, one of them with momentum."""
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    weights = [p for n, p in model.named_parameters() if not n.endswith("bias")]
    groups = [{"params": weights, "momentum": 0.9}, {"params": biases, "lr": 0.1}]
    return {"optimizers": (torch.optim.SGD(groups, lr=0.05), None)}


def adamw(_model: nn.Module) -> Options:
    """The Trainer's own default: fused, with two groups."""
    return {}


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def end_of(run: Run) -> dict[str, Tensor]:
    buffers = {name for name, _ in run.task.build_model().named_buffers()}
    return {n: t for n, t in run.last.end().model.items() if n not in buffers}


def record(kind: str, path: Path, stage: str = "sft", **settings: Any) -> Run:
    """One training into a new run."""
    model, tokenizer = made(kind)
    callback = StageRecorderCallback(path / "run", stage)
    args = arguments(path / "out", **settings)
    trainer(kind, model, tokenizer, args, callbacks=[callback]).train()
    return stagelens.open_run(path / "run")


@pytest.mark.parametrize(
    ("kind", "optimizer", "schedule", "accumulation"),
    part(product(KINDS, [sgd, adamw], ["linear", "cosine"], [1, 4]), every=3),
)
def test_a_training_is_the_same_recorded_or_not_and_replays_bit_for_bit(
    kind: str, optimizer: Any, schedule: str, accumulation: int, tmp_path: Path
) -> None:
    args = arguments(
        tmp_path / "out",
        lr_scheduler_type=schedule,
        warmup_steps=2,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.5,
    )
    ends = []
    for callbacks in ([], [StageRecorderCallback(tmp_path / "run", stage="sft")]):
        model, tokenizer = made(kind)
        trainer(kind, model, tokenizer, args, callbacks=callbacks, **optimizer(model)).train()
        ends.append(own_weights(model))
    assert differing(*ends) == []

    run = stagelens.open_run(tmp_path / "run")
    assert (run.problems, [s.name for s in run.stages]) == ([], ["sft"])
    facts = run.last.facts
    assert facts.optimizer.name == {sgd: "SGD", adamw: "AdamW"}[optimizer]
    assert facts.optimizer.flags["fused"] == {sgd: None, adamw: True}[optimizer]
    assert (facts.accumulation, facts.clip_norm, facts.precision) == (accumulation, 0.5, "float32")
    assert (run.last.steps, len(facts.optimizer.groups)) == (6, 2)
    assert differing(end_of(run), ends[1]) == []
    assert measure_deviation(run.task, run.last).bitwise


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_first_training_is_the_second_training_of_the_base_model(
    kind: str, tmp_path: Path
) -> None:
    """The second is recorded in a model that was saved by the first, and loaded again."""
    first = arguments(tmp_path / "one", learning_rate=1e-2)
    second = arguments(tmp_path / "two", seed=3, warmup_steps=1, gradient_accumulation_steps=2)

    model, tokenizer = made(kind)
    callback = StageRecorderCallback(tmp_path / "run", "pretrain", name="two")
    trained = trainer(kind, model, tokenizer, first, callbacks=[callback])
    trained.train()
    trained.save_model(str(tmp_path / "saved"))
    loaded = type(model).from_pretrained(tmp_path / "saved", attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    callback = StageRecorderCallback(tmp_path / "run", "sft")
    trainer(kind, loaded, tokenizer, second, seed=1, callbacks=[callback]).train()

    base, _ = made(kind)
    trainer(kind, base, tokenizer, second, seed=1).train()
    run = stagelens.open_run(tmp_path / "run")
    assert (run.name, [s.name for s in run.stages]) == ("two", ["pretrain", "sft"])
    assert run.stages[1].facts.start.model == run.stages[0].facts.end.model  # type: ignore[union-attr]
    without = replay_without(run, run.stages[0]).state.model
    by_hand = own_weights(base)
    assert differing({name: without[name] for name in by_hand}, by_hand) == []
    assert differing(by_hand, own_weights(loaded)) != []


def test_a_recorded_training_is_attributed_like_any_other(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    for number, stage in enumerate(("general", "narrow")):
        callback = StageRecorderCallback(tmp_path / "run", stage)
        args = arguments(tmp_path / "out", gradient_accumulation_steps=2)
        trainer("bert", model, tokenizer, args, seed=number, callbacks=[callback]).train()
    run = stagelens.open_run(tmp_path / "run")
    recorder = stagelens.Recorder(run.path, run.task, resume=True)
    recorder.add_set("test", texts=list(TEXTS), labels=["calm", "loud", "odd", "calm", "loud"])
    recorder.close()
    for estimator in ("replay", "coarse-replay", "unrolled-jump", "task-vector"):
        result = attribute(run, "test", estimator)
        assert result.table["effect"].notna().all(), estimator


class Bag(nn.Module):
    """A classifier that is none of transformers', and does not normalise its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.EmbeddingBag(40, 6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Options:
        logits = self.head(self.dropout(self.embed(input_ids)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Bags(stagelens.tasks.TextClassification):
    """Its task."""

    name = "bags"

    def __init__(self) -> None:
        super().__init__(["a", "b", "c"], {"model_type": "bert"}, make_model=lambda _: Bag())

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return model(**batch)["loss"]


def test_the_last_accumulation_of_an_epoch_may_be_short(tmp_path: Path) -> None:
    """Every micro-batch's loss is divided by how many there really are."""
    _, tokenizer = made("bert")
    args = arguments(tmp_path / "out", gradient_accumulation_steps=4, max_steps=4)
    callback = StageRecorderCallback(tmp_path / "run", "sft", task=Bags())
    trainer("bert", Bag(), tokenizer, args, callbacks=[callback]).train()
    run = stagelens.open_run(tmp_path / "run", task=Bags())
    divisors = [step.divisors for step in run.last.read_steps()]
    assert divisors == [(4.0,) * 4, (2.0,) * 2, (4.0,) * 4, (2.0,) * 2]
    assert measure_deviation(run.task, run.last).bitwise


class Weighted(Trainer):
    """Weighs every batch's loss."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 0.25 * super().compute_loss(*args, **kwargs)


def test_a_factor_that_the_trainer_puts_on_the_loss_is_recorded(tmp_path: Path) -> None:
    model, tokenizer = made("gpt")
    callback = StageRecorderCallback(tmp_path / "run", "sft")
    args = arguments(tmp_path / "out")
    trainer("gpt", model, tokenizer, args, make=Weighted, callbacks=[callback]).train()
    run = stagelens.open_run(tmp_path / "run")
    assert [step.divisors for step in run.last.read_steps()] == [(4.0,)] * 6
    assert measure_deviation(run.task, run.last).bitwise


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
        {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "logging_first_step": True},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"max_grad_norm": 0.0},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"train_sampling_strategy": "group_by_length"},
    ],
    ids=lambda settings: " ".join(map(str, settings)),
)
def test_what_a_trainer_does_beside_its_updates_does_not_disturb(
    settings: Options, tmp_path: Path
) -> None:
    run = record("bert", tmp_path, gradient_accumulation_steps=2, **settings)
    assert run.last.steps == 6
    assert measure_deviation(run.task, run.last).bitwise


def test_frozen_parameters_stay_frozen_in_replay(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    model.bert.requires_grad_(False)
    callback = StageRecorderCallback(tmp_path / "run", "head")
    trainer("bert", model, tokenizer, arguments(tmp_path), callbacks=[callback]).train()
    run = stagelens.open_run(tmp_path / "run")
    assert run.last.facts.trainable == ["classifier.weight", "classifier.bias"]
    assert measure_deviation(run.task, run.last).bitwise


def test_a_head_that_is_new_in_the_second_stage_is_named(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    for stage in ("first", "second"):
        callback = StageRecorderCallback(
            tmp_path / "run", stage, reinitialised=["classifier"] if stage == "second" else []
        )
        trainer("bert", model, tokenizer, arguments(tmp_path), callbacks=[callback]).train()
        torch.nn.init.normal_(model.classifier.weight)
    boundary = stagelens.open_run(tmp_path / "run").last.facts.boundary
    assert boundary.new == ["classifier.weight", "classifier.bias"]


def test_a_stage_may_have_a_model_that_is_configured_otherwise(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    for stage, dropout in (("first", 0.1), ("second", 0.4)):
        model.config.hidden_dropout_prob = dropout
        changed = type(model)._from_config(model.config, attn_implementation="eager")
        changed.load_state_dict(model.state_dict())
        callback = StageRecorderCallback(tmp_path / "run", stage)
        trainer("bert", changed, tokenizer, arguments(tmp_path), callbacks=[callback]).train()
        model = changed
    run = stagelens.open_run(tmp_path / "run")
    assert run.stages[0].facts.build_config is None
    build_config = run.stages[1].facts.build_config or {}
    assert build_config["model"]["hidden_dropout_prob"] == 0.4
    assert all(measure_deviation(run.task, stage).bitwise for stage in run.stages)


def test_the_same_trainer_may_train_a_second_stage_with_its_optimiser(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    first, second = (StageRecorderCallback(tmp_path / "run", name) for name in ("one", "two"))
    trained = trainer("bert", model, tokenizer, arguments(tmp_path), callbacks=[first])
    trained.train()
    trained.remove_callback(first)
    trained.add_callback(second)
    trained.train()
    run = stagelens.open_run(tmp_path / "run")
    assert run.stages[1].facts.boundary.optimizer == "carried"
    assert measure_deviation(run.task, run.stages[1]).bitwise


BEST = {
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
}


def best_at(step: int, counted: list[int], _prediction: Any) -> dict[str, float]:
    """An accuracy that is highest at the evaluation of ``step``."""
    counted.append(len(counted))
    return {"accuracy": 1.0 - abs(2 * len(counted) - step) / 100}


@pytest.mark.parametrize("step", [2, 4, 8])
def test_the_best_model_ends_the_stage_and_replay_goes_back_to_it_too(
    step: int, tmp_path: Path
) -> None:
    model, tokenizer = made("bert")
    callback = StageRecorderCallback(tmp_path / "run", "first", checkpoint_every=3)
    args = arguments(tmp_path / "out", max_steps=8, **BEST)
    options: Options = {"compute_metrics": functools.partial(best_at, step, [])}
    trainer("bert", model, tokenizer, args, callbacks=[callback], **options).train()
    callback = StageRecorderCallback(tmp_path / "run", "second")
    second = arguments(tmp_path / "two", seed=3)
    trainer("bert", model, tokenizer, second, seed=1, callbacks=[callback]).train()

    run = stagelens.open_run(tmp_path / "run")
    best = run.stages[0].facts.best_model
    assert best is not None
    assert (best.trained, best.metric, best.value) == (8, "accuracy", 1.0)
    assert run.stages[0].steps == step
    assert all(measure_deviation(run.task, stage).bitwise for stage in run.stages)
    base, _ = made("bert")
    trainer("bert", base, tokenizer, second, seed=1).train()
    without = replay_without(run, run.stages[0]).state.model
    by_hand = own_weights(base)
    assert differing({name: without[name] for name in by_hand}, by_hand) == []


def test_early_stopping_ends_at_the_best_model(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    callbacks = [StageRecorderCallback(tmp_path / "run", "sft"), EarlyStoppingCallback(1)]
    args = arguments(tmp_path / "out", max_steps=20, **BEST)
    metrics = functools.partial(best_at, 4, [])
    trainer("bert", model, tokenizer, args, callbacks=callbacks, compute_metrics=metrics).train()
    run = stagelens.open_run(tmp_path / "run")
    assert run.last.facts.best_model is not None
    assert (run.last.steps, run.last.facts.best_model.trained) == (4, 6)
    assert differing(end_of(run), own_weights(model)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_mixed_precision_is_recorded_and_replays_bit_for_bit(
    kind: str, tmp_path: Path
) -> None:
    run = record(kind, tmp_path, bf16=True, gradient_accumulation_steps=2)
    assert run.last.facts.precision == "bf16"
    assert measure_deviation(run.task, run.last).bitwise
    full = record(kind, tmp_path / "full", gradient_accumulation_steps=2)
    assert full.last.facts.precision == "float32"
    assert differing(end_of(run), end_of(full)) != []
