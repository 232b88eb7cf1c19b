"""The command that looks into a stage: what its steps and training examples contributed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import typer

from stagelens.derivatives.curvature_kinds import USUAL
from stagelens.effects.results import stored_results
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.trust.estimates import best_result

from .given_data import DatasetOption
from .options import (
    CurvatureOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    groups_of,
    opened_with,
)
from .terminal import Reporter, print_contributions, say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens contributions runs/digits --set test --example stamped-003   "
    "stagelens contributions runs/digits --set mixed-up --group label=4 --since mislabelled"
)
def contributions(
    run: RunFolder,
    set_name: SetOption = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="The example to ask about; given several times, their mean [the mean of the set].",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Ask about the mean of the examples with this value; given several times, of "
            "those that have all of them.",
        ),
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(help="The behaviour whose contributions are computed; by default the first."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="The earliest stage of interest; a later one saves work [the first].",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="How many training examples to print per stage.")
    ] = 5,
    curvature: CurvatureOption = USUAL,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """Compute what every step and every training example contributed, to first order."""
    groups = groups_of(group)
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        from stagelens.analyses.contributions.computing import contribute
        from stagelens.analyses.contributions.contribution_table import Question

        question = Question(ids=tuple(example or ()), groups=groups)
        found = contribute(opened, examples.name, question, behaviour, report, since, curvature)
        ids = set(question.of(examples))
        effects = _effects(opened, examples.name, found.facts.behaviour.name, ids)
    print_contributions(found, top, effects)
    if not effects:
        say(
            "Note: no stage effect is stored for this set, so what first order leaves unexplained "
            f"is not known; compute them: stagelens attribute {run} --set {examples.name}",
            err=True,
        )


def _effects(
    run: Run, set_name: str, behaviour: str, ids: Collection[str]
) -> dict[str, tuple[float, StageTrust]]:
    """Stage to its mean effect on these examples by the best stored table, with its trust."""
    if not stored_results(run, set_name):
        return {}
    best = best_result(run, set_name)
    rows = best.table[(best.table["behaviour"] == behaviour) & best.table["example_id"].isin(ids)]
    means = rows.groupby("stage", sort=False)["effect"].mean()
    return {str(stage): (float(mean), best.trust[str(stage)]) for stage, mean in means.items()}
