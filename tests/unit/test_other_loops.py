"""Loops of plain accelerate and of PyTorch Lightning are recorded, and replay bit for bit."""

from __future__ import annotations

import importlib
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import RecordingWarning
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import BATCH_NORM, make_batches, make_task

BATCHES: Any = make_batches(5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loop_of_accelerate(accumulation: int, tmp_path: Path) -> None:
    task = make_task(BATCH_NORM)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    with closing(stagelens.Recorder(tmp_path / "run", task)) as recorder:
        own = task.build_model()
        for name in ("first", "second"):
            optimizer = torch.optim.AdamW(own.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
            model, optimizer, loader, schedule = accelerator.prepare(
                own, optimizer, torch.utils.data.DataLoader(BATCHES, batch_size=None), schedule
            )
            with recorder.stage(
                name, model=model, optimizer=optimizer, clip_norm=0.5, on_problem="raise"
            ) as stage:
                for batch in loader:
                    with accelerator.accumulate(model):
                        loss = task.loss(model, batch)
                        accelerator.backward(loss)
                        if accelerator.sync_gradients:
                            accelerator.clip_grad_norm_(model.parameters(), 0.5)
                        optimizer.step()
                        schedule.step()
                        optimizer.zero_grad()
                    stage.step(tuple(batch), loss)
    run = stagelens.open_run(tmp_path / "run")
    # The last batch of a loader makes an update too, however few came before it.
    assert [stage.steps for stage in run.stages] == [-(-5 // accumulation)] * 2
    for done in run.stages:
        assert measure_deviation(run.task, done).bitwise


# ------------------------------------------------------------------------------------- Lightning

lightning: Any = None
with suppress(ModuleNotFoundError):
    lightning = importlib.import_module("lightning.pytorch")
needs_lightning = pytest.mark.skipif(
    lightning is None, reason="lightning is not installed (pip install stagelens[lightning])"
)


def module_of(task: Any, manual: bool = False, optimizers: int = 1) -> Any:
    """A LightningModule that trains the task's model."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.build_model()
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, _number: int) -> Tensor:
            loss: Tensor = task.loss(self.model, batch)
            if manual:
                own = self.optimizers()
                own = own if isinstance(own, list) else [own]
                for each in own:
                    each.zero_grad()
                self.manual_backward(loss)
                for each in own:
                    each.step()
            return loss

        def validation_step(self, batch: Any, _number: int) -> None:
            task.loss(self.model, batch)

        def configure_optimizers(self) -> Any:
            parameters = list(self.model.parameters())
            if optimizers > 1:
                first = torch.optim.AdamW(parameters[:3], lr=1e-2)
                return [first, torch.optim.SGD(parameters[3:], lr=1e-2, momentum=0.5)]
            optimizer = torch.optim.AdamW(parameters, lr=1e-2)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    return Module()


def fit(
    module: Any,
    callback: Any,
    folder: Path,
    validate: bool = False,
    loader: Any = None,
    **options: Any,
) -> None:
    if loader is None:
        loader = torch.utils.data.DataLoader(BATCHES, batch_size=None)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[callback], num_sanity_val_steps=1 if validate else 0, **options,
    )  # fmt: skip
    trainer.fit(module, loader, loader if validate else None)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.5, "validate": True},
    "accumulated": {"accumulate_grad_batches": 2},
    "manual": {"manual": True},
    "two optimizers": {"manual": True, "optimizers": 2},
}


@needs_lightning
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_trainings_of_lightning(case: str, tmp_path: Path) -> None:
    task, options = make_task(BATCH_NORM), dict(CASES[case])
    module = module_of(task, options.pop("manual", False), options.pop("optimizers", 1))
    for name in ("first", "second"):
        callback = stagelens.LightningStageRecorder(
            tmp_path / "run", name, task=task, on_problem="raise"
        )
        torch.manual_seed(3)
        fit(module, callback, tmp_path, **options)
    run = stagelens.open_run(tmp_path / "run")
    updates = 2 * -(-5 // options.get("accumulate_grad_batches", 1))
    assert [stage.steps for stage in run.stages] == [updates] * 2
    end = {name: tensor.detach() for name, tensor in module.model.state_dict().items()}
    for done in run.stages:
        assert measure_deviation(run.task, done).bitwise
    assert all(torch.equal(own, run.last.end().model[name]) for name, own in end.items())


@needs_lightning
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_batches_of_lightning_are_kept_as_rows(tmp_path: Path) -> None:
    task = make_task(BATCH_NORM)
    data = torch.utils.data.TensorDataset(*(torch.cat(e) for e in zip(*BATCHES, strict=True)))
    loader = torch.utils.data.DataLoader(data, batch_size=3, shuffle=True)
    callback = stagelens.LightningStageRecorder(
        tmp_path / "run", "only", task=task, as_rows=True, on_problem="raise"
    )
    fit(module_of(task), callback, tmp_path, loader=loader)
    run = stagelens.open_run(tmp_path / "run", datasets={"only": loader})
    assert run.problems == [] and run.last.facts.rows is not None
    assert all(each.rows for step in run.last.read_steps() for each in step.batches or ())
    assert measure_deviation(run.task, run.last).bitwise


@needs_lightning
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_recording_does_not_change_what_lightning_trains(tmp_path: Path) -> None:
    ends = []
    for recorded in (False, True):
        torch.manual_seed(3)
        task = make_task(BATCH_NORM)
        module = module_of(task)
        callback: Any = lightning.Callback()
        if recorded:
            callback = stagelens.LightningStageRecorder(tmp_path / "run", "only", task=task)
        torch.manual_seed(4)
        fit(module, callback, tmp_path, gradient_clip_val=0.5)
        ends.append(module.model.state_dict())
        if recorded:  # the optimiser is left as it was
            step = module.trainer.optimizers[0].step
            assert "lightning_callback" not in getattr(step, "__func__", step).__code__.co_filename
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@needs_lightning
@pytest.mark.filterwarnings("ignore:.*lightning.*", "ignore:.*dataloader.*")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
            "clips gradients by value",
        ),
        ({"model": "network"}, "no module called 'network'"),
        ({"wrong": True}, "the loss"),
    ],
)
def test_what_lightning_does_otherwise_is_told_and_trains_on(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    task = make_task()
    module = module_of(task)
    given = dict(options)
    if given.pop("wrong", False):
        module.training_step = lambda batch, batch_idx: 2 * task.loss(module.model, batch)
    callback = stagelens.LightningStageRecorder(
        tmp_path / "run", "only", task=task, model=given.pop("model", "model")
    )
    before = nn.utils.parameters_to_vector(module.model.parameters()).clone()
    with pytest.warns(RecordingWarning, match=message):
        fit(module, callback, tmp_path, **given)
    assert not torch.equal(before, nn.utils.parameters_to_vector(module.model.parameters()))


@needs_lightning
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_optimiser_that_needs_its_closure_is_given_it(tmp_path: Path) -> None:
    ends = []
    for recorded in (False, True):
        torch.manual_seed(3)
        task = make_task()
        module = module_of(task)
        module.configure_optimizers = lambda own=module: torch.optim.LBFGS(
            own.model.parameters(), max_iter=2
        )
        callback: Any = lightning.Callback()
        if recorded:
            callback = stagelens.LightningStageRecorder(tmp_path / "run", "only", task=task)
        fit(module, callback, tmp_path)
        ends.append(module.model.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert "LBFGS" in str(stagelens.open_run(tmp_path / "run").last.facts.problem)
