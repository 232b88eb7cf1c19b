"""Recording what a recipe trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from stagelens.recording.recorder import Recorder
from stagelens.runs.run import Run, open_run
from tests.benchmarks.calibration.recipes import Recipe
from tests.benchmarks.calibration.works import work


def recorded(recipe: Recipe, cache: Path) -> Run:
    """The recipe's run, recorded if the cache does not hold it whole."""
    path = cache / recipe.name
    own = work(recipe)
    if (path / "sets" / "test" / "set.json").exists():
        return open_run(path, task=own.task)
    shutil.rmtree(path, ignore_errors=True)
    torch.manual_seed(recipe.seed)
    model = own.model().train()
    optimizer = recipe.make_optimizer(model)
    generator = torch.Generator().manual_seed(recipe.seed)
    recorder = Recorder(path, own.task, name=recipe.name)
    for number, plan in enumerate(recipe.stages):
        if number and not recipe.carried:
            optimizer = recipe.make_optimizer(model)
        with recorder.stage(
            f"{number}-{plan.planted}",
            model=model,
            optimizer=optimizer,
            clip_norm=recipe.clip_norm,
        ) as stage:
            for rate in plan.rates():
                for group in optimizer.param_groups:
                    group["lr"] = rate
                rows = torch.randint(0, 1 << 30, (recipe.batch,), generator=generator)
                batch = own.batches[number](rows)
                loss = own.task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                optimizer.step()
                stage.step(batch, loss)
    recorder.add_set("test", **own.evaluation)
    recorder.close()
    return open_run(path, task=own.task)
