"""The command that checks whether first order says anything of a stage's training data."""

from __future__ import annotations

from typing import Annotated

import typer

from stagelens.analyses.smoothness.sentences import verdict
from stagelens.analyses.smoothness.smoothness import load_smoothness
from stagelens.contracts import Behaviour, ProgressCallback, no_progress
from stagelens.runs.run import Run

from .given_data import DatasetOption
from .options import (
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    opened_with,
)
from .terminal import Reporter, say

commands = typer.Typer()

CheckOption = Annotated[
    bool,
    typer.Option(
        "--check-smoothness",
        help="First check by three or four replays whether first order says anything here; see "
        "stagelens smoothness. It is kept, and said whenever it is known.",
    ),
]


@commands.command(
    epilog="Examples: stagelens smoothness runs/digits --stage mislabelled   "
    "stagelens smoothness runs/chat --stage sft --set test --horizon 32"
)
def smoothness(
    run: RunFolder,
    *,
    stage: Annotated[str, typer.Option(help="The stage whose training examples are weighed.")],
    set_name: SetOption = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ask so many steps of the stage later, from its middle on, in place of the final "
            "model.",
        ),
    ] = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """Check by replays whether behaviours change smoothly with some examples' weight.

    It takes three replays of the stage and all later ones; with --horizon one of up to half of the
    stage, then four of so many steps. What was checked before is stored, and takes none.
    """
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        from stagelens.analyses.smoothness.checking import check_smoothness

        examples = opened.evaluation_set(set_name)
        own = opened.stage(stage)
        found = check_smoothness(opened, own, examples.name, horizon, report)
    known = set(found.table["behaviour"])
    for kind in opened.task.behaviour_kinds:
        if kind.name in known:
            say(f"{kind.name}: {verdict(found, kind)}")
    if examples.table([])["label"].notna().any():
        say(
            "Accuracy has no line: it changes by whole answers and so has no derivative; what "
            "becomes of it, only a replay says."
        )


def checked(
    run: Run,
    stage: str,
    set_name: str,
    behaviour: Behaviour,
    check: bool,
    horizon: int | None = None,
    progress: ProgressCallback = no_progress,
) -> tuple[bool, str]:
    """Whether first order may be used, and what is said of it; empty where nothing is known.

    Args:
        run: The run.
        stage: Whose training examples.
        set_name: The evaluation set.
        behaviour: Which is asked about.
        check: Whether to replay where nothing is stored.
        horizon: How many steps later is asked; None for the final model.
        progress: Called for every step.
    """
    own, examples = run.stage(stage), run.evaluation_set(set_name)
    if horizon is not None and horizon >= own.steps:
        horizon = None
    found = load_smoothness(run, stage, examples, horizon)
    if found is None and check:
        from stagelens.analyses.smoothness.checking import check_smoothness

        found = check_smoothness(run, own, set_name, horizon, progress)
    if found is None:
        return True, ""
    return found.smooth(behaviour.name), verdict(found, behaviour)
