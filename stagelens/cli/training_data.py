"""The command that lists the training examples of a stage with what became of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from stagelens.analyses.contributions.parts_of_the_set import PARTS
from stagelens.analyses.training_data.tables import TrainingData
from stagelens.contracts import StageLensError
from stagelens.derivatives.curvature_kinds import USUAL
from stagelens.runs.run import Run
from stagelens.runs.sets.columns import SetColumns
from stagelens.wording.numbers import count_text
from stagelens.wording.signs import POSITIVE_IS, gain_range_text, gain_text
from stagelens.wording.trust_words import FIRST_ORDER

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
    with_columns,
)
from .smoothing import CheckOption, checked
from .table_files import check_table_file, write_table
from .terminal import Reporter, Table, print_table, say

commands = typer.Typer()


@commands.command(
    "training-data",
    epilog="Examples: stagelens training-data runs/digits --stage mislabelled --out data.csv   "
    "stagelens training-data runs/chat --stage sft --columns sft.jsonl --by source --contributions",
)
@with_columns
def training_data(
    run: RunFolder,
    *,
    stage: Annotated[str, typer.Option(help="The stage whose training examples are listed.")],
    contributions: Annotated[
        bool,
        typer.Option(
            "--contributions",
            help="Also what each contributed to a behaviour, to first order; see stagelens "
            "contributions.",
        ),
    ] = False,
    set_name: SetOption = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="As for stagelens contributions."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="As for stagelens contributions."),
    ] = None,
    behaviour: Annotated[
        str | None, typer.Option(help="Whose contributions are computed [the first].")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Also what groups of examples contributed together: a column of --columns, label, "
            "length, uses or doubted by.",
        ),
    ] = None,
    over_both: Annotated[
        bool,
        typer.Option(
            "--over-evaluation",
            help="With --by: intervals also say how far sums might be off had other evaluation "
            f"examples been drawn. Takes {PARTS} more sweeps.",
        ),
    ] = False,
    columns_file: Annotated[
        Path | None,
        typer.Option(
            "--columns",
            metavar="FILE",
            help="The training data with metadata (source, annotator, ...), in the form of an "
            "evaluation set; joined by the inputs, and kept.",
        ),
    ] = None,
    columns: SetColumns,
    out: Annotated[
        Path | None, typer.Option(help="Write a row per example to this .parquet or .csv file.")
    ] = None,
    groups_out: Annotated[
        Path | None, typer.Option(help="Write a row per group to this .parquet or .csv file.")
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
    """List a stage's training examples: answers, losses over time, duplicates, doubtful labels."""
    check_table_file(out)
    check_table_file(groups_out)
    if groups_out is not None and by is None:
        raise StageLensError("--groups-out needs --by COLUMN, which says what the groups are")
    if over_both and by is None:
        raise StageLensError("--over-evaluation needs --by COLUMN, which says what the groups are")
    groups = groups_of(group)
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        from stagelens.analyses.contributions.computing import contribute
        from stagelens.analyses.contributions.contribution_table import Question
        from stagelens.analyses.contributions.sweeping_parts import contribute_to_parts
        from stagelens.analyses.training_data.computing import training_data
        from stagelens.analyses.training_data.groups import (
            group_table,
            groupings,
            with_contributions,
        )
        from stagelens.analyses.training_data.marks import marked
        from stagelens.analyses.without_data.first_order import first_order_of_groups
        from stagelens.contracts import Progress

        told = Progress(report)
        wanted = contributions or by is not None
        part = told.part(0.0, 0.5 if wanted else 1.0)
        data = training_data(opened, stage, part, columns_file, columns)
        frame = marked(data)
        grouped, kind, parts, said = None, None, None, ""
        if wanted:
            examples = opened.evaluation_set(set_name)
            question = Question(ids=tuple(example or ()), groups=groups)
            asked = (opened, examples.name, question, behaviour)
            swept = told.part(0.5, 0.6 if over_both else 1.0)
            found = contribute(*asked, swept, stage, curvature)
            if stage in found.facts.steps_only:
                raise StageLensError(
                    f"no training example of {stage} has a contribution of its own: "
                    f"{found.facts.steps_only[stage]}; leave out --contributions and --by"
                )
            kind = found.facts.behaviour.behaviour()
            about = (opened, stage, examples.name, kind, check_smoothness)
            smooth, said = checked(*about, progress=report)
            if not smooth:
                by = None
            else:
                shown = data.facts.kind is not None
                frame = with_contributions(opened, frame, found, stage, shown)
            if over_both and smooth:
                parts = contribute_to_parts(
                    *(opened, examples.name, question, kind.name, stage),
                    *(told.part(0.6, 1.0), curvature),
                )
        if by is not None:
            known = groupings(data, frame)
            if by not in known:
                raise StageLensError(
                    f"examples of stage {stage} cannot be grouped by {by!r}; use one of "
                    f"{', '.join(known) or 'no column: they are all alike'}, or add --columns FILE"
                )
            each = None
            if found.facts.kind is not None:
                named = known[by].set_axis(frame["example_id"]).fillna("")
                each = first_order_of_groups(found, stage, named, "rest")
            grouped = group_table(frame, known[by], parts, each)
    _print(data, frame)
    if said:
        say(said)
    if grouped is not None and kind is not None:
        _print_groups(grouped, str(by), stage, kind)
    if out is not None:
        write_table(out, _table(opened, data, frame))
    if groups_out is not None and grouped is not None:
        write_table(groups_out, grouped)


def _table(run: Run, data: TrainingData, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are written: with their texts, and without what only identifies them."""
    from stagelens.analyses.training_data.reading import texts

    kept = frame.drop(columns="content").rename(columns=data.moment_names)
    said = texts(run, data.facts.stage)
    return kept if said is None else kept.assign(text=said.to_numpy())


def _print(data: TrainingData, frame: pd.DataFrame) -> None:
    from stagelens.analyses.training_data.marks import LEAK, NEAR, SAME, SUSPECT

    stage = data.facts.stage
    say(f"{count_text(len(frame), 'training example')} of {stage}, {frame['uses'].sum():,} uses")
    if data.facts.kind is None:
        say("The task shows no training data, so nothing is known of them beside their labels.")
    if SUSPECT in frame and data.labelled:
        counts = frame[SUSPECT].value_counts()
        said = ", ".join(f"{count:,} by {who}" for who, count in counts.items()) or "none"
        say(f"labels that models answer otherwise: {said}")
    for column, words in ((SAME, "the same elsewhere"), (NEAR, "nearly the same elsewhere")):
        if column in frame:
            say(f"{words}: {frame[column].notna().sum():,}")
    if LEAK in frame:
        say(f"of these in an evaluation set: {frame[LEAK].sum():,}")
    if data.column_facts is not None:
        say(
            f"columns of {data.column_facts.source}: {', '.join(data.columns)} "
            f"({data.column_facts.unmatched:,} rows of it are no example of the stage)"
        )


def _print_groups(grouped: pd.DataFrame, by: str, stage: str, kind: object) -> None:
    from stagelens.contracts import Behaviour

    assert isinstance(kind, Behaviour)
    title = f"Groups of {stage} by {by}: effect on the {kind.name}, {FIRST_ORDER}"
    printed = Table(title=title)
    known = bool(grouped["without"].notna().all())
    effect = ["effect"] if known else []
    for name in ("group", "examples", "uses", *effect, "contribution", "95 % interval"):
        printed.add_column(name, justify="left" if name == "group" else "right")
    for row in grouped.to_dict("records"):
        value = float(row["contribution"])
        ends = "-"
        if not pd.isna(row["low"]):
            ends = gain_range_text(row["low"], row["high"], kind, unit=False)
        counts = [f"{row[name]:,}" for name in ("examples", "uses")]
        taken = [gain_text(float(row["without"]), kind)] if known else []
        printed.add_row(str(row["group"]), *counts, *taken, gain_text(value, kind), ends)
    print_table(printed)
    both = grouped["evaluation_error"].notna().any()
    others = (
        "other examples of the group, and other evaluation examples,"
        if both
        else ("other examples of the group")
    )
    meant = "Effect: final - without the group, losses the mean over the rest. " if known else ""
    say(f"{POSITIVE_IS} {meant}Intervals are of contributions: had {others} been drawn.")
