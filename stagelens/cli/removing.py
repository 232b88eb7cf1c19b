"""The command that takes stages out of the final model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagelens.contracts import StageLensError

from .estimator_options import CounterfactualOption
from .given_data import DatasetOption
from .options import (
    BudgetOption,
    ExactStagesOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    chosen_settings,
    opened_with,
)
from .terminal import Reporter, print_removal, say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens remove runs/digits --stage shortcut --strength 0.8   "
    "stagelens remove runs/digits --stage shortcut --close-gap stamped --out edited",
)
def remove(
    run: RunFolder,
    stage: Annotated[
        list[str], typer.Option(help="The stage to take out; may be given several times.")
    ],
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="How much of it to take out, 0 to 1; one per --stage, in the same order [1.0]."
        ),
    ] = None,
    estimator: CounterfactualOption = None,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    set_name: SetOption = None,
    by: Annotated[
        str | None,
        typer.Option(help="Column of groups to measure separately [group, if there is one]."),
    ] = None,
    close_gap: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP",
            help="Look for the smallest edit, layer by layer, with which the model serves this "
            "group as well as --control.",
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(metavar="GROUP", help="The group to compare it with [all other examples]."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Share of right answers that the control group may lose [0.02]."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Save the edited model as a checkpoint in a folder that is empty or does not "
            "exist yet."
        ),
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", hidden=True)] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """Take a stage out of the final model, measure what that does, and save the edited model."""
    # Not strict: the error below says which of the two is short.
    strengths = dict(zip(stage, strength or [1.0] * len(stage), strict=False))
    if len(set(stage)) != len(stage) or (strength and len(strength) != len(stage)):
        raise StageLensError(
            f"--stage names {len(set(stage))} stages and --strength gives "
            f"{len(strength or stage)} strengths; give each stage once, with one strength each"
        )
    if close_gap is None and (control is not None or tolerance is not None):
        raise StageLensError("--control and --tolerance belong to --close-gap; give it a group")
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        from stagelens.analyses.removal import measurements, saving
        from stagelens.analyses.removal.spec import Edit
        from stagelens.analyses.removal.targets import TOLERANCE, Target, find
        from stagelens.estimators.registry import default_estimator, make_estimator
        from stagelens.trust.estimates import usual_estimator

        examples = None
        if opened.set_names or set_name is not None:
            examples = opened.evaluation_set(set_name)
        measured = None if examples is None else examples.name
        usual = usual_estimator(opened, measured, stage)
        settings = chosen_settings(budget, exact_stages)
        chosen = estimator or (default_estimator(opened) if settings else usual)
        made = make_estimator(chosen, settings)
        if examples is None and (close_gap is not None or out is None):
            opened.evaluation_set(set_name)  # says how to add one
        if by is None and examples is not None and "group" in examples.columns:
            by = "group"
        edit = Edit(estimator=chosen, settings=dict(made.settings), strengths=strengths)
        if preview and examples is not None:
            # The dashboard interpolates between these edits while strengths are being moved.
            measurements.measure_edits(
                opened, examples, measurements.grid(chosen, edit.settings, stage), report
            )
            return
        if close_gap is not None and examples is not None:
            if by is None:
                raise StageLensError("--close-gap needs the column of the group; give it with --by")
            target = Target(
                estimator=chosen,
                settings=edit.settings,
                stages=stage,
                by=by,
                group=close_gap,
                control=control,
                tolerance=TOLERANCE if tolerance is None else tolerance,
            )
            found = find(opened, examples, target, report)
            say(found.sentence())
            edit = found.edit
        figures = None
        if examples is not None:
            figures, trusts = saving.before_and_after(opened, examples, edit, by, report)
        if out is not None:
            saving.save(opened, edit, out, examples, by, report)
    if figures is not None and examples is not None:
        print_removal(figures, trusts, edit.strengths, examples.name)
    if out is not None:
        say(f"{out}: the edited model; {out / 'README.md'} says how it was made")
