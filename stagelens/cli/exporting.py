"""The command that writes models of a run as checkpoints for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagelens.contracts import StageLensError

from .estimator_options import ModelsWithoutOption
from .given_data import DatasetOption
from .options import (
    BudgetOption,
    DeviceOption,
    ExactStagesOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProcessesOption,
    ProgressFile,
    RunFolder,
    TaskOption,
    chosen_settings,
    opened_together,
)
from .terminal import Reporter, say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens export runs/chat --without sft --out no-sft   "
    "stagelens export runs/chat --all --out models"
)
def export(
    run: RunFolder,
    out: Annotated[
        Path,
        typer.Option(
            help="A folder that is empty or does not exist yet: the checkpoint, or, of several "
            "models, a folder for each in it (final, without-STAGE, after-STAGE)."
        ),
    ],
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="The model without this stage; several times."),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="The model after this stage, or base; several times."),
    ] = None,
    final: Annotated[bool, typer.Option("--final", help="The final model.")] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="The final model, and those without each stage, if possible."),
    ] = False,
    estimator: ModelsWithoutOption = None,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    processes_wanted: ProcessesOption = None,
    progress: ProgressFile = None,
) -> None:
    """Write models of a run as checkpoints that evaluation harnesses and other tools open."""
    if not (without or after or final or every):
        raise StageLensError("say which models to write: --without STAGE, --after STAGE, or --all")
    with Reporter(progress).running() as report:
        opened = opened_together(run, task)
        _ = opened.last
        from stagelens.analyses.removal.exporting import CARD, export
        from stagelens.effects.model_names import AFTER, FINAL, WITHOUT, model_name
        from stagelens.estimators.registry import replay_if_possible

        models = [FINAL] if final or every else []
        models += [model_name(AFTER, name) for name in after or []]
        left_out = [stage.name for stage in opened.stages] if every else []
        models += [model_name(WITHOUT, name) for name in (*(without or []), *left_out)]
        written, refused = export(
            opened,
            models,
            out,
            estimator or replay_if_possible(opened),
            chosen_settings(budget, exact_stages),
            report,
        )
    for model, folder in written.items():
        say(f"{folder}: {model.replace(':', ' ')}; {folder / CARD} says what is known of it")
    for model, reason in refused.items():
        say(f"Note: {model.replace(':', ' ')} was not written: {reason}", err=True)
