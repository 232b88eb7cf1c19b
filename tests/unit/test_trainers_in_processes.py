"""What the Trainer and TRL do around the steps of several processes is recorded with them."""

from __future__ import annotations

import copy
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import stagelens
from stagelens.contracts import Refused
from stagelens.effects.computing import attribute
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from stagelens.runs.states import model_tensors
from tests.support import launched
from tests.support.launched import as_launched
from tests.support.parallel_loops import end_of, farthest, said
from tests.support.small_trainings import arguments, made, trainer

pytestmark = pytest.mark.slow  # what each process imports takes longer than its training

CLOSE = 1e-6
BEST = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": True,  # so that it is not the last one
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def all_ended(folder: Path, work: Any, *more: Any) -> None:
    ended = launched.run(2, work, folder, *more)
    assert ended == [0, 0], said(folder, 0) + said(folder, 1)


def opened(folder: Path, leaf: str | None = None) -> Run:
    """The run, whose every stage comes to its recorded end when one process replays it."""
    run = stagelens.open_run(folder / "run", leaf=leaf)
    for stage in run.stages:
        assert (stage.facts.problem, stage.facts.processes) == (None, 2)
        found = measure_deviation(run.task, stage)
        assert (found.misfit, found.relative < CLOSE) == (None, True)
    return run


def train(folder: Path, name: str, model: Any, seed: int, **given: Any) -> Any:
    """A training by the Trainer, with its recording, in a folder of its own."""
    settings, resume = given.pop("settings", {}), given.pop("resume", None)
    others = given.pop("callbacks", [])
    args = arguments(folder / given.pop("out", name), ddp_backend="gloo", **settings)
    callback = stagelens.StageRecorderCallback(
        folder / "run", name, **{"on_problem": "raise", **given}
    )
    own = trainer("bert", model, made("bert")[1], args, seed=seed, callbacks=[callback, *others])
    own.train(resume_from_checkpoint=resume)
    return model


def fresh() -> Any:
    torch.manual_seed(0)
    return made("bert")[0].double()


def with_branches(rank: int, count: int, port: int, folder: Path) -> None:
    """One that ends at its best step, two that each go on from there."""
    as_launched(rank, count, port, folder)
    first = train(folder, "first", fresh(), 1, settings=BEST)
    parted = copy.deepcopy(first)
    train(folder, "second", first, 2)
    train(folder, "other", parted, 3, parent="first")
    torch.save(dict(model_tensors(parted)), folder / f"end-{rank}.pt")


def without_the_first(rank: int, count: int, port: int, folder: Path) -> None:
    as_launched(rank, count, port, folder)
    args = arguments(folder / "plain", ddp_backend="gloo")
    model = fresh()
    trainer("bert", model, made("bert")[1], args, seed=3).train()
    torch.save(dict(model_tensors(model)), folder / f"end-{rank}.pt")


def test_the_best_model_at_the_end_and_branches_from_it(tmp_path: Path) -> None:
    all_ended(tmp_path, with_branches)
    assert farthest(end_of(tmp_path, 1), end_of(tmp_path)) == 0
    one, other = (opened(tmp_path, leaf) for leaf in ("second", "other"))
    assert [stage.name for stage in one.stages] == ["first", "second"]
    assert [stage.name for stage in other.stages] == ["first", "other"]
    first = other.stages[0]
    assert first.facts.best_model is not None and first.facts.best_model.trained == 6
    assert first.steps < 6
    parts = first.facts.parts_of_each
    assert [sum(part.steps for part in own) for own in parts] == [first.steps] * 2
    assert farthest(other.last.end().model, end_of(tmp_path)) == 0

    without = replay_without(other, first).state.model
    (tmp_path / "alone").mkdir()
    all_ended(tmp_path / "alone", without_the_first)
    assert farthest(without, end_of(tmp_path / "alone")) < CLOSE
    with closing(stagelens.Recorder(tmp_path / "run", other.task, resume=True)) as recorder:
        recorder.add_set("test", texts=["the cat sat on the mat", "a dog barked"], labels=[0, 1])
    trust = attribute(opened(tmp_path, "other"), "test", "replay", ["first"]).trust["first"]
    assert trust.trust == "exact" or "trained by 2 processes" in trust.reason


class Stops(TrainerCallback):
    """Ends a training in its middle, in every process."""

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise ZeroDivisionError


def interrupted(rank: int, count: int, port: int, folder: Path) -> None:
    as_launched(rank, count, port, folder)
    given = {"settings": CHECKPOINTS, "out": "out", "checkpoint_every": 2}
    with pytest.raises(ZeroDivisionError):
        train(folder, "sft", fresh(), 1, callbacks=[Stops()], **given)


def gone_on(rank: int, count: int, port: int, folder: Path) -> None:
    as_launched(rank, count, port, folder)
    given = {"settings": CHECKPOINTS, "out": "out", "resume": True}
    model = train(folder, "sft resumed", fresh(), 1, **given)
    torch.save(dict(model_tensors(model)), folder / f"end-{rank}.pt")


def test_a_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    all_ended(tmp_path, interrupted)
    all_ended(tmp_path, gone_on)
    run = opened(tmp_path)
    assert [(stage.name, stage.steps) for stage in run.stages] == [("sft", 4), ("sft resumed", 2)]
    assert run.stages[1].facts.boundary.optimizer == "carried"
    assert farthest(run.last.end().model, end_of(tmp_path)) == 0


def by_trl(
    rank: int, count: int, port: int, folder: Path, kind: str, settings: dict[str, Any]
) -> None:
    as_launched(rank, count, port, folder)
    from tests.support.trl_trainings import Training, completions, load

    model, tokenizer = load(folder / "base")
    recording = stagelens.StageRecorderCallback(folder / "run", kind)
    training = Training(
        kind, completions if kind == "sft" else None, {"ddp_backend": "gloo", **settings}
    )
    own = training.trainer(model.double(), tokenizer, folder / "out", [recording])
    own.train()
    torch.save(dict(model_tensors(model)), folder / f"end-{rank}.pt")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sft", {}),  # multiplies by the number of processes what DDP then averages
        pytest.param(
            "sft",
            {"average_tokens_across_devices": False, "gradient_accumulation_steps": 2},
            marks=pytest.mark.extensive,
        ),
        # Divided by the tokens of all processes, of which each has its part.
        pytest.param("grpo", {}, marks=pytest.mark.extensive),
        pytest.param("dpo", {}, marks=pytest.mark.extensive),
    ],
)
def test_losses_of_trl_that_know_how_many_processes_there_are(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from tests.support.trl_trainings import save_base

    save_base(tmp_path / "base")
    all_ended(tmp_path, by_trl, kind, settings)
    run = opened(tmp_path)
    assert farthest(run.last.end().model, end_of(tmp_path)) == 0


@pytest.mark.extensive
def test_a_loss_of_trl_that_reads_what_other_processes_have_is_named(tmp_path: Path) -> None:
    from tests.support.trl_trainings import save_base

    save_base(tmp_path / "base")
    all_ended(tmp_path, by_trl, "kto", {})
    (stage,) = stagelens.open_run(tmp_path / "run").stages
    with pytest.raises(Refused, match="a KL over several processes"):
        measure_deviation(stagelens.open_run(tmp_path / "run").task, stage)
    assert farthest(stage.end().model, end_of(tmp_path)) == 0  # trained to its end
