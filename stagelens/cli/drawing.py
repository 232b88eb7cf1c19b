"""The command that asks whether an effect would come again: draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import pandas as pd
import typer

from stagelens.contracts import ACCURACY, Progress, StageLensError
from stagelens.effects.draws import FEWEST, DrawnEffects, Kind, likely_draws
from stagelens.runs.files import check_changeable
from stagelens.runs.run import Run
from stagelens.trust.drawn_coalitions import DrawnCoalitions

from . import drawn_sharing
from .drawn_sharing import DrawsCost
from .drawn_tables import drawn_rows, print_drawn
from .estimator_options import OnlyStagesOption
from .given_data import DatasetOption
from .options import (
    DeviceOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProcessesOption,
    ProgressFile,
    RunFolder,
    TaskOption,
    opened_together,
    opened_with,
    own_file,
)
from .terminal import Reporter, say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens draws runs/digits --all-sets   "
    "stagelens draws runs/digits --number 20 --cost   "
    "stagelens draws runs/digits --same-data --width 0.1 --behaviour accuracy   "
    "stagelens draws runs/seed-0 --draws runs/seed-1 --draws runs/seed-2"
)
def draws(
    run: RunFolder,
    stage: OnlyStagesOption = None,
    set_names: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An evaluation set; may be given several times, and takes no more training then.",
        ),
    ] = None,
    all_sets: Annotated[
        bool, typer.Option("--all-sets", help="Every evaluation set of the run.")
    ] = False,
    number: Annotated[
        int, typer.Option(min=1, help="How many draws; with --width, how many the pilot has.")
    ] = 12,
    width: Annotated[
        float | None,
        typer.Option(
            help="Have as many draws as mean effects over all examples need for intervals of this "
            "width, from end to end, in the behaviour's unit (0.1 of accuracy is 10 points)."
        ),
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(help="Of --width [accuracy where there are labels, else the first]."),
    ] = None,
    most: Annotated[
        int, typer.Option("--at-most", min=1, help="Refuse a width that needs more draws.")
    ] = 64,
    same_data: Annotated[
        bool,
        typer.Option(
            "--same-data",
            help="Use every recorded batch, in another order, instead of batches drawn with "
            "replacement, which stand for other data of the same kind.",
        ),
    ] = False,
    given_earlier: Annotated[
        bool,
        typer.Option(
            "--given-earlier",
            help="Draw only the later stages anew: given the earlier stages as recorded.",
        ),
    ] = False,
    shares: Annotated[
        bool,
        typer.Option(
            "--shares",
            help="Train every set of stages in each draw, not only with and without single ones: "
            "shares of the recipe.",
        ),
    ] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Have the models of every draw answer prompts too, of sets that have scores by "
            "stagelens answer, and score what they say: intervals over draws for scores. Draws "
            "that were made without are trained once more.",
        ),
    ] = False,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--draws",
            metavar="RUN",
            help="Another recorded run of this recipe, taken as a draw; may be given several "
            "times. Nothing is drawn then.",
        ),
    ] = None,
    cost_only: Annotated[
        bool, typer.Option("--cost", help="Say what it would take, and compute nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    processes_wanted: ProcessesOption = None,
    progress: ProgressFile = None,
) -> None:
    """Would it happen again? Train the recipe again with its chance drawn anew, and compare.

    Every draw has batches drawn with replacement, other initial values where a stage added
    parameters, and other dropout, in all stages; it is trained with all stages and without each.
    What it costs is told beforehand. Draws are kept one by one: started again, the command goes on.
    """
    from stagelens.trust import drawing
    from stagelens.trust.runs_drawn import runs_as_draws

    whole: dict[str, DrawnCoalitions] = {}
    if cost_only and (runs or width is not None):
        raise StageLensError(
            "--cost is told of a number of draws: omit --draws, which takes no training, and "
            "--width, whose pilot says how many are needed"
        )
    kind = _kind(same_data, given_earlier, runs, width, number)
    if answers and (runs or cost_only):
        raise StageLensError(
            "--answers is of models that are trained here: leave out --draws; and what answers "
            "cost is not known beforehand, so leave out --cost"
        )
    if shares:
        drawn_sharing.check_options(given_earlier, runs, width, stage)
    with Reporter(own_file(progress)).running() as report:
        opened = opened_together(run, task)
        _ = opened.last
        chosen = _sets(opened, set_names or [], all_sets)
        names = [s.name for s in drawing.left_out(opened, stage or None, kind)]
        if answers:
            _tell_scores(opened, chosen)
        if cost_only:
            _say_cost(opened, names, number, kind, chosen, shares, as_json)
            return
        if runs:
            others = [opened_with(other, task) for other in runs]
            overall = Progress(report)
            drawn = {
                name: runs_as_draws(opened, name, others, overall.piece(n, len(chosen)), names)
                for n, name in enumerate(chosen)
            }
        else:
            if shares:
                whole = drawn_sharing.measured(opened, chosen, number, kind, report)
            _tell_cost(opened, names, number, kind, chosen)
            drawn = drawing.measure_on_sets(
                opened, chosen, number, report, names, kind, answers=answers
            )
            if width is not None:
                needed = max(
                    _needed(opened, each, behaviour, width, number, most, names)
                    for each in drawn.values()
                )
                low, high = likely_draws(needed, number)
                say(
                    f"The width needs {needed} draws, the pilot of {number} included. So small a "
                    f"pilot knows the spread only roughly: the true one would need {low} to {high} "
                    "(at least 8 of 10 pilots).",
                    err=True,
                )
                _tell_cost(opened, names, needed, kind, chosen)
                drawn = drawing.measure_on_sets(
                    opened, chosen, needed, report, names, kind, number, answers
                )
    rows = {name: drawn_rows(opened, name, each, names) for name, each in drawn.items()}
    if as_json:
        blocks = [*rows.values(), *drawn_sharing.rows_of(whole)]
        say(pd.concat(blocks).to_json(orient="records", indent=1))
        return
    for name, each in drawn.items():
        print_drawn(opened, name, each, rows[name])
    drawn_sharing.print_shares(whole)


def _sets(run: Run, given: Sequence[str], every: bool) -> list[str]:
    """The evaluation sets to measure on, in the order given."""
    if given and every:
        raise StageLensError("give --set or --all-sets, not both")
    if every and run.set_names:
        return list(run.set_names)
    found = [run.evaluation_set(name) for name in given] or [run.evaluation_set()]
    return list(dict.fromkeys(each.name for each in found))


def _tell_scores(run: Run, set_names: Sequence[str]) -> None:
    """Say which scores models of draws cannot be given.

    Raises:
        StageLensError: They can be given none.
    """
    from stagelens.effects.scoring_again import own_scores

    found = {name: own_scores(run, name) for name in set_names}
    for set_name, scores in found.items():
        for name, why in scores.left_out.items():
            say(f"{name} of set {set_name!r} is not drawn: {why}.", err=True)
    if not any(scores.found for scores in found.values()):
        raise StageLensError(
            "--answers: no set that was asked for has scores that further models can be given; "
            f"have the run's own scored first: stagelens answer {run.path} --scorer ..."
        )


def _kind(
    same_data: bool, given_earlier: bool, runs: list[str] | None, width: float | None, number: int
) -> Kind:
    if sum(map(bool, (same_data, given_earlier, runs))) > 1:
        raise StageLensError("give only one of --same-data, --given-earlier and --draws")
    if width is not None and not (same_data or given_earlier):
        raise StageLensError(
            "--width needs --same-data or --given-earlier: over other data an interval is as wide "
            "as the recorded data leave it, however many draws there are"
        )
    if width is not None and number < FEWEST:
        raise StageLensError(
            f"--number {number} is too small a pilot: fewer than {FEWEST} draws do not show how "
            "much effects vary"
        )
    if width is not None and width <= 0:
        raise StageLensError(f"--width is {width:g}; give a positive number")
    check_changeable("draws of runs")
    if runs:
        return "runs"
    if same_data:
        return "same data"
    return "given earlier" if given_earlier else "recipe"


def _tell_cost(
    run: Run, names: list[str], number: int, kind: Kind, set_names: Sequence[str]
) -> None:
    """Say beforehand what the draws that are not stored yet cost."""
    if (cost := _cost(run, names, number, kind, set_names)).draws:
        say(str(cost), err=True)


def _cost(
    run: Run, names: list[str], number: int, kind: Kind, set_names: Sequence[str]
) -> DrawsCost:
    """What the draws that are not stored yet cost; refused where they cannot be made."""
    from stagelens.trust import drawing
    from stagelens.trust.draws import load, predicted_cost

    # One training serves all sets.
    left = max(
        _unmade(load(run, run.evaluation_set(s).digest, kind), names, number) for s in set_names
    )
    if not left:
        return DrawsCost(0, 0, 0.0)
    drawing.check(run, kind)  # a refusal comes before any cost is told
    return DrawsCost(left, *predicted_cost(run, [run.stage(n) for n in names], left, kind))


def _say_cost(
    run: Run,
    names: list[str],
    number: int,
    kind: Kind,
    set_names: Sequence[str],
    shares: bool,
    as_json: bool,
) -> None:
    """Print what the command would take, and nothing else."""
    costs = {"draws": _cost(run, names, number, kind, set_names)}
    if shares:
        # Draws of every set of stages hold those with and without single ones.
        costs = {"shares": drawn_sharing.cost(run, set_names, number, kind)}
    if as_json:
        say(json.dumps({"kind": kind, **{k: asdict(one) for k, one in costs.items()}}, indent=1))
        return
    for one in costs.values():
        say(str(one) if one.draws else "Every draw was made before.", err=True)


def _unmade(stored: tuple[object, DrawnEffects] | None, names: Sequence[str], number: int) -> int:
    """How many of so many draws are not stored for all stages."""
    if stored is None:
        return number
    table = stored[1].table
    whole = table[table["stage"].isin(names)].groupby("draw")["stage"].nunique()
    return number - int((whole[whole.index < number] == len(names)).sum())


def _needed(
    run: Run,
    drawn: DrawnEffects,
    behaviour: str | None,
    width: float,
    pilot: int,
    most: int,
    names: Sequence[str],
) -> int:
    """How many draws a width needs on one set; refused where these are too many."""
    from stagelens.trust.drawing import needed_for_width

    labelled = ACCURACY.name in set(drawn.table["behaviour"])
    usual = ACCURACY.name if labelled else run.task.behaviour_kinds[0].name
    needed = needed_for_width(drawn, behaviour or usual, width, pilot, names)
    _check_needed(needed, most, width, behaviour or usual)
    return needed


def _check_needed(needed: int, most: int, width: float, behaviour: str) -> None:
    if needed > most:
        raise StageLensError(
            f"intervals of {width:g} on the {behaviour} need {needed:,} draws; ask for a wider "
            f"one, or allow that many with --at-most {needed} (the pilot is stored)"
        )
