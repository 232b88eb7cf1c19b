"""The commands about a stage's training examples: list them, and leave some of them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from stagelens.analyses.training_data.marks import ELSEWHERE, LEAK
from stagelens.analyses.without_data.as_stages import as_stage, effect_rows
from stagelens.analyses.without_data.chosen import (
    DIVISORS,
    DRAWN,
    Chosen,
    Divisor,
    by_filter,
    by_ids,
    by_slice,
    by_values,
    columns_of,
    listed,
    one_line,
    read_ids,
    read_table,
    save_slice,
)
from stagelens.analyses.without_data.controls import against, control
from stagelens.analyses.without_data.sentences import how, mean_effect, named, sentence
from stagelens.analyses.without_data.stored import WithoutData
from stagelens.contracts import ACCURACY, Behaviour, Progress, ProgressCallback, StageLensError
from stagelens.estimators.stage_trust import REPLAY
from stagelens.estimators.without_rows import ESTIMATORS
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.training_rows import TrainingRows
from stagelens.wording.intervals import mean_interval
from stagelens.wording.numbers import count_text, phrase, signed_text
from stagelens.wording.trust_words import trust_explanation, trust_word

from .given_data import DatasetOption
from .options import (
    BudgetOption,
    DeviceOption,
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
from .table_files import check_table_file, write_table
from .terminal import Reporter, Table, print_table, say

commands = typer.Typer()
_NOT_PRINTED = ("position", "answer", "text", LEAK, ELSEWHERE)
_LISTED = 20
"""Examples that are printed where no file is named."""

StageOption = Annotated[str, typer.Option(help="The stage whose training examples are meant.")]
WhereOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILTER",
        help='Examples that fit a filter, such as "label=4 & source=forum": = != < <= > >=, ~ for '
        "a part of a text, joined by & | ! and brackets.",
    ),
]
IdsOption = Annotated[
    Path | None,
    typer.Option(
        help="Examples by their ids: a file with one a line, or a .csv or .parquet file with a "
        "column example_id, as training-rows writes it."
    ),
]
ExampleOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ID", help="An example by its id; may be given several times."),
]
SliceOption = Annotated[
    str | None,
    typer.Option("--slice", help="The examples of a slice that training-rows saved."),
]


@commands.command(
    "training-rows",
    epilog="Examples: stagelens training-rows runs/digits --stage mislabelled --out rows.csv   "
    'stagelens training-rows runs/digits --stage mislabelled --where "label=4" --save fours',
)
def list_rows(
    run: RunFolder,
    stage: StageOption,
    where: WhereOption = None,
    save: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keep what is listed as a slice.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the list to a .parquet or .csv file.")
    ] = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """List the training examples of a stage: their ids, labels, columns and uses."""
    check_table_file(out)
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        rows = listed(opened, opened.stage(stage), report)
        chosen = None if where is None else by_filter(rows, where)
        if save is not None:
            save_slice(opened, save, chosen or by_ids(rows, rows.table["example_id"]))
    table = rows.table[[*columns_of(rows), "content"]]
    if chosen is not None:
        table = table[table["example_id"].isin(chosen.ids)]
    if out is not None:
        write_table(out, table)
        return
    printed = Table(title=f"{count_text(len(table), 'training example')} of {stage}")
    shown = [name for name in columns_of(rows) if name not in _NOT_PRINTED]
    for name in shown:
        printed.add_column(name)
    for row in table.head(_LISTED)[shown].itertuples(index=False):
        printed.add_row(*("" if pd.isna(value) else value for value in row))
    print_table(printed)
    if len(table) > _LISTED:
        say(f"{_LISTED} of {len(table):,} are shown; --out writes all of them to a file")


@commands.command(
    epilog="Examples: stagelens without-data runs/digits --stage mislabelled "
    '--where "label=4 | label=9"   '
    "stagelens without-data runs/digits --stage shortcut --ids ids.csv --divisor kept"
)
def without_data(
    run: RunFolder,
    stage: StageOption,
    where: WhereOption = None,
    ids: IdsOption = None,
    example: ExampleOption = None,
    slice_name: SliceOption = None,
    words: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="With --ids or --example: which examples these are, to follow their number where "
            'the result is shown: "with label 3".',
        ),
    ] = "",
    each: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="A replay for each value of a column, without these examples alone: of the "
            "training examples, or of the file that --ids names. Without --where, --ids, "
            "--example and --slice, of all examples.",
        ),
    ] = None,
    controls: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="DRAWS",
            help="Also replay without as many other examples of the stage, drawn at random: so "
            "many times. It says whether the chosen ones did more.",
        ),
    ] = 0,
    divisor: Annotated[
        str,
        typer.Option(
            help="What is left of a batch's loss: rest, the mean over the rest; or kept, the "
            "left-out ones weigh 0 and the divisor stays that of the whole batch."
        ),
    ] = "rest",
    estimator: Annotated[
        str,
        typer.Option(
            help=f"How the model is obtained: {' or '.join(ESTIMATORS)}, which replays this stage "
            "and the later ones coarsely."
        ),
    ] = REPLAY,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    set_name: SetOption = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the effect table, with trust and what was left out, to a .parquet or .csv "
            "file; with --each, of all groups."
        ),
    ] = None,
    progress: ProgressFile = None,
) -> None:
    """What the final model would do without some training examples of a stage, by replay."""
    named = sum(given is not None for given in (where, ids, example, slice_name))
    if named != 1 and not (named == 0 and each is not None):
        raise StageLensError(
            "say which training examples are left out by one of --where, --ids, --example and "
            "--slice"
        )
    if words and each is not None:
        raise StageLensError("--words is for one choice of examples; --each says its own")
    if words and ids is None and not example:
        raise StageLensError("--words needs --ids or --example; a filter and a slice say their own")
    if divisor not in DIVISORS:
        raise StageLensError(f"there is no divisor {divisor!r}; give {' or '.join(DIVISORS)}")
    own: Divisor = "kept" if divisor == "kept" else "rest"
    check_table_file(out)
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        rows = listed(opened, opened.stage(stage), _first(report))
        chosen = _chosen(opened, rows, where, ids, example, slice_name, words)
        from stagelens.analyses.without_data import computing

        settings = chosen_settings(budget, exact_stages)
        parts = [chosen]
        if each is not None:
            parts = by_values(rows, chosen, each, None if ids is None else read_table(ids))
        every = [
            [part, *(control(rows, part, number) for number in range(controls))] for part in parts
        ]
        overall, total = Progress(report), sum(map(len, every))
        found: list[list[WithoutData]] = []
        done = 0
        for group in every:
            found.append([])
            for one in group:
                found[-1].append(
                    computing.without_data(
                        *(opened, examples.name, one, own, estimator, settings),
                        overall.part(done / total, (done + 1) / total),
                    )
                )
                done += 1
    for first, *random in found:
        _print(first, random, examples)
    if out is not None:
        write_table(out, effect_rows([first for first, *_ in found]))


def _first(report: ProgressCallback) -> ProgressCallback:
    """Listing examples that were listed before takes no time, and is no part of what follows."""
    return lambda _, text: report(0.0, text)


def _chosen(
    run: Run,
    rows: TrainingRows,
    where: str | None,
    ids: Path | None,
    example: list[str] | None,
    slice_name: str | None,
    words: str,
) -> Chosen:
    if where is None and ids is None and slice_name is None and not example:
        return by_ids(rows, rows.table["example_id"].tolist())
    if where is not None:
        return by_filter(rows, where)
    if slice_name is not None:
        return by_slice(run, run.stage(rows.facts.stage), rows, slice_name)
    return by_ids(rows, (example or []) if ids is None else read_ids(ids), one_line(words))


def _print(found: WithoutData, random: Sequence[WithoutData], examples: EvaluationSet) -> None:
    facts = found.facts
    count = found.table["example_id"].nunique()
    printed = Table(
        title=f"Mean effect of {named(found.chosen)} on {facts.set_name} ({count:,} examples)"
    )
    printed.add_column("behaviour")
    for name in ("effect", "95 %", "trust"):
        printed.add_column(name, justify="left" if name == "trust" else "right")
    behaviours: list[Behaviour] = list(found.behaviours.values())
    one = as_stage(found, examples)
    said_of: list[str] = []
    for behaviour in (*behaviours, *(kind for kind in one.behaviours.values() if kind == ACCURACY)):
        effect = mean_effect(found, behaviour)
        number, ends = ("-" if effect != effect else signed_text(effect, behaviour)), "not known"
        means = one.means(behaviour)
        for row in means.to_dict("records"):
            interval = mean_interval(row, facts.trust, behaviour)
            if interval is not None:
                low, high = (
                    signed_text(end, behaviour, unit=False) for end in (interval.low, interval.high)
                )
                ends = f"{low} to {high}"
        said_of += map(str, one.sentences(means, behaviour, examples.kind))
        printed.add_row(
            f"{behaviour.name} ({behaviour.better} is better)",
            number,
            ends,
            trust_word(facts.trust, behaviour.name),
        )
    print_table(printed)
    if facts.trust.trust == "refused":
        said_of = [str(sentence(found, behaviours[0]))]
    for each in said_of:
        say(each)
    if said := against(found, random, behaviours[0]):
        say(f"{phrase(behaviours[0])[:1].upper()}{phrase(behaviours[0])[1:]}: {said}")
    say(f"{how(facts)} {DRAWN}")
    say(f"{trust_word(facts.trust)}: {trust_explanation(facts.trust)}")
