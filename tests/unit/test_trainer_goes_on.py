"""A Trainer's training goes on whatever its recording meets, and the run says what it lacks."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, Trainer

import stagelens
from stagelens import StageRecorderCallback
from stagelens.contracts import RecordingError, RecordingWarning
from stagelens.recording import trainer_callback, trainer_settings
from tests.support.loops import differing
from tests.support.small_trainings import arguments, made, trainer


def train(
    path: Path, callbacks: list[Any], make: type[Trainer] = Trainer, kind: type[Any] | None = None
) -> dict[str, Tensor]:
    """Three updates; gives the weights that they leave."""
    model, tokenizer = made("bert")
    model.__class__ = kind or type(model)
    args = arguments(path / "out", max_steps=3)
    trainer("bert", model, tokenizer, args, callbacks=callbacks, make=make).train()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def recorded(path: Path, stage: str = "sft", **settings: Any) -> tuple[dict[str, Tensor], str]:
    """The weights, and the only warning."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        weights = train(path, [StageRecorderCallback(path / "run", stage)], **settings)
    said = [str(each.message) for each in seen if each.category is RecordingWarning]
    assert len(said) == 1, said
    return weights, said[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(tmp_path_factory.mktemp("alone"), [])


class Heavier(torch.optim.SGD):
    """Nobody knows what it does."""


class Own(Trainer):
    """Brings an optimiser of its own."""

    def create_optimizer(self, *_: Any) -> Any:
        assert self.model is not None
        self.optimizer = Heavier(self.model.parameters(), lr=0.01)
        return self.optimizer


@pytest.mark.parametrize("how", ["an optimiser of its own", "a setting"])
def test_what_costs_the_replay_leaves_the_boundaries(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: type[Trainer] = Own if how.startswith("an") else Trainer
    alone = train(tmp_path / "alone", [], make=make)
    if make is Trainer:
        rows = [("a sauna", True, "it is too hot; train outside")]
        monkeypatch.setattr(trainer_settings, "_refused", lambda *_: rows)
    weights, said = recorded(tmp_path, make=make)
    assert differing(weights, alone) == []
    assert "stage 'sft' cannot be replayed" in said
    run = stagelens.open_run(tmp_path / "run")
    assert (run.last.name, run.last.steps, run.last.replayable) == ("sft", 3, False)
    end = run.last.end().model
    assert differing({name: end[name] for name in weights}, weights) == []
    assert len(run.problems) == 1 and "cannot be replayed" in run.problems[0]


def no_room(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["Recorder", "task_of_stage", "TrainingPasses", "TrainerSettings"])
def test_whatever_fails_at_the_start(
    what: str, alone: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_callback, what, no_room)
    if what == "TrainerSettings":
        monkeypatch.setattr(no_room, "read", no_room, raising=False)
    weights, said = recorded(tmp_path)
    assert differing(weights, alone) == []
    assert "stage 'sft' is not recorded: " in said and "No space left on device" in said


def damaged(folder: Path) -> None:
    (folder / "run.json").write_text("{")


def in_use(folder: Path) -> stagelens.Recorder:
    return stagelens.Recorder(folder, stagelens.open_run(folder).task, resume=True)


def not_a_run(folder: Path) -> None:
    folder.joinpath("run.json").rename(folder / "notes.txt")


@pytest.mark.parametrize(
    ("spoil", "stage", "says"),
    [
        (lambda _: None, "sft", "the name 'sft' is taken"),
        (damaged, "more", "run.json: Invalid JSON"),
        (in_use, "more", "another recorder has"),
        (not_a_run, "more", "is not empty and not a run"),
    ],
    ids=["name taken", "damaged", "in use", "not a run"],
)
def test_a_folder_that_cannot_be_recorded_into(
    spoil: Callable[[Path], Any], stage: str, says: str, alone: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(tmp_path, [StageRecorderCallback(folder, "sft")])
    held = spoil(folder)
    weights, said = recorded(tmp_path, stage)
    assert differing(weights, alone) == []
    assert f"stage {stage!r} is not recorded: " in said and says in said
    if stage == "sft":
        assert said.split(". The training goes on")[0] in stagelens.open_run(folder).problems
    if held is not None:
        held.close()


class Judge(BertForSequenceClassification):
    """A name that tells of no task."""


def test_a_model_of_no_known_task_is_trained_all_the_same(
    alone: dict[str, Tensor], tmp_path: Path
) -> None:
    weights, said = recorded(tmp_path, kind=Judge)
    assert differing(weights, alone) == []
    assert "stage 'sft' is not recorded" in said and "a Judge is trained for; pass" in said
    assert not (tmp_path / "run").exists()


def test_a_setting_of_the_recording_itself_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    with pytest.raises(RecordingError, match="keep_batches=0"):
        StageRecorderCallback(tmp_path / "run", "sft", keep_batches=0)
