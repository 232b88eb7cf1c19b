"""Commands that look for what a stage made the model lean on."""

from __future__ import annotations

from typing import Annotated

import typer

from ..terminal import Reporter, print_features
from .options import ProgressFile, RunFolder, TaskOption, opened_with

commands = typer.Typer()


@commands.command(epilog="Example: stagelens features runs/digits --set test --top 5")
def features(
    run: RunFolder,
    set_name: Annotated[
        str | None, typer.Option("--set", help="Evaluation set; by default the only one, or test.")
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(help="Whose stage effects; by default as for attribute."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="What coarse-replay may spend, as a share of replay's cost [0.25]."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many features to print per stage.")] = 5,
    task: TaskOption = None,
    progress: ProgressFile = None,
) -> None:
    """Find features that go with a stage's effect, without being told what to look for."""
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        from ..estimators.ladder import default_estimator
        from ..spurious.features import find_features

        settings = None if budget is None else {"budget": budget}
        chosen = estimator or default_estimator(opened)
        found = find_features(opened, examples.name, chosen, settings, report)
    print_features(found, top)
