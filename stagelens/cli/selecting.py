"""The command that says what to train on next: a stage's examples by how much each helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagelens.contracts import ACCURACY, StageLensError
from stagelens.derivatives.curvature_kinds import USUAL
from stagelens.runs.files import atomic_path, check_writable
from stagelens.wording.numbers import count_text, phrase, value_text
from stagelens.wording.signs import POSITIVE_IS, gain_range_text, gain_text

from .given_data import DatasetOption
from .options import (
    CurvatureOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    TaskOption,
    groups_of,
    opened_with,
)
from .smoothing import CheckOption, checked
from .table_files import check_table_file, write_table
from .terminal import Reporter, Table, print_table, say

if TYPE_CHECKING:
    from stagelens.analyses.selection.outcomes import Outcome

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens select runs/digits --stage mislabelled --target test "
    "--group group=clean --prove 8   stagelens select runs/chat --stage sft --target test "
    "--keep 0.5 --horizon 32 --out kept.csv",
)
def select(
    run: RunFolder,
    *,
    stage: Annotated[str, typer.Option(help="The stage whose training examples are ordered.")],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="The evaluation set that is to become better; by default the only one, or test.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Only the target's examples with this value; may be given several times.",
        ),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(help="Only this example of the target; may be given several times."),
    ] = None,
    slice_name: Annotated[
        str | None,
        typer.Option(
            "--slice",
            metavar="NAME",
            help="Only the target's examples in this slice, as a page saved it.",
        ),
    ] = None,
    behaviour: Annotated[
        str | None, typer.Option(help="What is to become better [loss, else the first].")
    ] = None,
    keep: Annotated[
        float, typer.Option(help="The share of the stage's examples to keep, above 0, at most 1.")
    ] = 0.5,
    horizon: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="How many steps later the target is asked. Given several times, each is judged by "
            "replays of what one half of the target would choose, on the other half [a tenth of "
            "the stage, a third, all].",
        ),
    ] = None,
    across_labels: Annotated[
        bool,
        typer.Option(
            "--across-labels",
            help="Let labels compete. Otherwise the same share of every label is kept, because "
            "first order does not see that more of one label helps less and less.",
        ),
    ] = False,
    by: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="Value every example as the mean of its group: source, annotator. Single values "
            "are mostly chance where the target is small. A column of the recorded data set, or "
            "of a file that `stagelens training-data --columns` joined, or length.",
        ),
    ] = "",
    distinct: Annotated[
        bool,
        typer.Option(
            "--distinct",
            help="Of texts or images that are nearly the same, and of one input with several "
            "labels, keep only the best.",
        ),
    ] = False,
    prove: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="DRAWS",
            help="Replay the stage and all later ones with the chosen examples, random ones, the "
            "worst, and all, in so many draws of the order of batches: 3 or more, or 0 for no "
            "proof. The ranking then uses one "
            "half of the target's examples, and the other half judges.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the kept examples, best first, to this .parquet or .csv file."),
    ] = None,
    indices: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write their rows in the recorded data set to this file, for datasets' select and "
            "for samplers of PyTorch.",
        ),
    ] = None,
    curvature: CurvatureOption = USUAL,
    check_smoothness: CheckOption = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """Order a stage's examples by how much each helps a target, and choose the best."""
    check_table_file(out)
    if indices is not None:
        if indices.suffix != ".json":
            raise StageLensError(f"{indices}: name the file .json")
        check_writable(indices)
    if not 0 < keep <= 1:
        raise StageLensError(f"--keep {keep:g} is no share; give one above 0 and at most 1")
    if prove in (1, 2):
        raise StageLensError("--prove takes 3 draws or more: fewer have no interval")
    groups = groups_of(group)
    if slice_name is not None and example:
        raise StageLensError("give --slice or --example, not both: each says which examples")
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        from stagelens.analyses.contributions.contribution_table import Question
        from stagelens.analyses.selection.choosing import choose
        from stagelens.analyses.selection.exporting import row_numbers, rows_unknown, with_places
        from stagelens.analyses.selection.outcomes import Wanted, usual_horizons
        from stagelens.analyses.selection.ranking import target_behaviour
        from stagelens.analyses.selection.sentences import chosen, cost, rests_on
        from stagelens.analyses.slices.saved import slice_of
        from stagelens.runs.training_rows import load_training_rows

        own, examples = opened.stage(stage), opened.evaluation_set(target)
        if indices is not None and own.facts.rows is None:
            raise StageLensError(f"{rows_unknown(stage)}: --out kept.csv in place of --indices")
        ids = tuple(example or ())
        if slice_name is not None:
            ids = slice_of(opened, examples, slice_name).example_ids
        wanted = Wanted(
            stage=stage,
            set_name=examples.name,
            question=Question(ids=ids, groups=groups),
            slice_name=slice_name or "",
            behaviour=target_behaviour(opened, behaviour).name,
            horizons=tuple(
                sorted({min(each, max(own.steps, 1)) for each in horizon})
                if horizon
                else usual_horizons(own.steps)
            ),
            keep=keep,
            per_label=not across_labels,
            by=by,
            distinct=distinct,
            draws=prove,
            curvature=curvature,
        )
        say(cost(opened, wanted))
        outcome = choose(opened, wanted, report)
        rows = None if indices is None else row_numbers(outcome.kept, stage)
        kept = with_places(outcome.kept, load_training_rows(opened, own))
        looked, set_name = outcome.facts.ranking.horizon, wanted.set_name
        kind = outcome.behaviour
        _, said = checked(opened, stage, set_name, kind, check_smoothness, looked, report)
    say(chosen(outcome))
    if said:
        say(said)
    if resting := rests_on(outcome):
        say(resting)
    _print_horizons(outcome)
    _print_proof(outcome)
    if out is not None:
        write_table(out, kept)
    if indices is not None and rows is not None:
        with atomic_path(indices) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")
        say(f"{indices}: {count_text(len(rows), 'row')}")


def _print_horizons(outcome: Outcome) -> None:
    trials, kind = outcome.facts.trials, outcome.behaviour
    if len(trials) < 2:
        return
    table = Table("Horizons, each judged by replays of its choice")
    table.add_column("steps later", justify="right")
    table.add_column(f"{phrase(kind)} of the target", justify="right")
    table.add_column("agreement of halves", justify="right")
    for one in trials:
        mark = " *" if one.horizon == outcome.facts.ranking.horizon else ""
        agreed = "" if one.agreement is None else f"{one.agreement:.2f}"
        table.add_row(f"{one.horizon:,}{mark}", value_text(one.mean, kind), agreed)
    if outcome.facts.random:
        mean = sum(outcome.facts.random) / len(outcome.facts.random)
        table.add_row("random", value_text(mean, kind), "")
    print_table(table)


def _print_proof(outcome: Outcome) -> None:
    """What replays gave: per behaviour one row per part, with the paired difference."""
    from stagelens.analyses.selection.sentences import FILLED_UP_BY_NOTHING, INTERVALS, trained_on

    if outcome.proof is None:
        return
    draws = outcome.facts.wanted.draws
    for facts in outcome.facts.behaviours:
        kind = facts.behaviour()
        measured = outcome.measured(kind.name)
        if kind.name not in (outcome.behaviour.name, ACCURACY.name) or not measured:
            continue
        table = Table(f"{phrase(kind)} by replay, {draws} draws, on examples that did not choose")
        table.add_column(f"{outcome.facts.wanted.stage} trained on")
        table.add_column("mean", justify="right")
        table.add_column("chosen is better by", justify="right")
        table.add_column("95 % interval", justify="right")
        for part, size, mean in measured:
            row = [trained_on(part, size), value_text(mean.mean, kind)]
            if part == "chosen":
                table.add_row(*row, "", "")
                continue
            gain = outcome.proof.gain(part, kind.name)
            ends = gain_range_text(gain.low * kind.sign, gain.high * kind.sign, kind)
            table.add_row(*row, gain_text(gain.mean * kind.sign, kind), ends)
        print_table(table)
    better = POSITIVE_IS.replace("because of the stage", "with the chosen examples")
    say(f"{INTERVALS} {FILLED_UP_BY_NOTHING} {better}")
