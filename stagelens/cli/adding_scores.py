"""Commands for scores of other tools: adding their logs, and listing what is stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import LeafOption, RunFolder, SetOption, TaskOption, opened_with
from .score_tables import in_json, number, print_score, scored_means
from .terminal import Table, print_table, say

if TYPE_CHECKING:
    from stagelens.effects.agreement import Agreement

commands = typer.Typer()


@commands.command(
    name="add-scores",
    epilog="Examples: stagelens add-scores runs/chat samples_gsm8k_2026-11-30T14-09-46.jsonl "
    "--model without:sft   stagelens add-scores runs/chat logs/sums.eval --model final   "
    "stagelens add-scores runs/chat judged.csv --model final --set prompts --better higher",
)
def add_scores(
    run: RunFolder,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="samples_TASK_DATE.jsonl of lm-eval --log_samples, a .eval or .json log of "
            "Inspect, or a .csv, .jsonl or .parquet file with the columns id, score and prompt.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="What was scored: final, after:STAGE or without:STAGE."),
    ],
    set_name: Annotated[
        str | None,
        typer.Option(
            "--set",
            help="The evaluation set that was scored, made of the log where the run has none of "
            "this name [the log's task].",
        ),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(help="A metric, scorer, or column of scores; several times [all of a log]."),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="Where ids are: a column, a field of lm-eval's documents, or of the metadata of "
            "Inspect's samples [the log's own].",
        ),
    ] = None,
    filter_name: Annotated[
        str | None, typer.Option("--filter", help="One of lm-eval's filters [all].")
    ] = None,
    name: Annotated[str, typer.Option(help="What the scorer is called [as in the log].")] = "",
    better: Annotated[
        Literal["higher", "lower"] | None,
        typer.Option(help="Which numbers are better, where the log does not say."),
    ] = None,
    lowest: Annotated[float | None, typer.Option(help="The lowest possible number.")] = None,
    highest: Annotated[float | None, typer.Option(help="The highest possible number.")] = None,
    unit: Annotated[str, typer.Option(help="Printed after numbers.")] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The folder that stagelens export wrote and that was scored [as in the log]."
        ),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(help="How a model without a stage was obtained that was not exported."),
    ] = None,
    by_id: Annotated[
        bool,
        typer.Option("--by-id", help="Match rows without contents by their ids alone."),
    ] = False,
    replacing: Annotated[
        bool, typer.Option("--replace", help="Replace other scores of this model and scorer.")
    ] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
) -> None:
    """Take over what another tool scored a model of the run with, as it is."""
    from stagelens.effects.given_scores import Obtained, add_scores, with_direction
    from stagelens.runs.logs import read_log
    from stagelens.runs.logs.log import Wanted

    opened = opened_with(run, task)
    _ = opened.last
    log = read_log(file, Wanted(tuple(score or ()), id_field, filter_name))
    log = with_direction(log, better, lowest, highest, unit, name)
    added = add_scores(
        opened, log, model, set_name, by_id, Obtained(checkpoint, estimator), replacing
    )
    count = log.rows["example_id"].nunique()
    names = ", ".join(scorer.name for scorer in added.scorers)
    made = " (a new set, made of the log)" if added.new_set else ""
    say(f"{count:,} examples of set {added.set_name!r}{made}: {names}, of the model {model}")
    for note in dict.fromkeys(added.notes):
        say(f"Note: {note}", err=True)
    for result in added.results:
        print_score(scored_means(opened, result))
    if not added.results:
        say("Effects follow once the final model and one without a stage have scores.")


@commands.command(
    epilog="Examples: stagelens scores runs/chat --set prompts   stagelens scores runs/chat --json"
)
def scores(
    run: RunFolder,
    set_name: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
) -> None:
    """List the scores that are stored for a set, and how far its scorers agree on answers."""
    from stagelens.effects.agreement import agreements
    from stagelens.effects.given_tables import all_tables
    from stagelens.effects.results import load_result
    from stagelens.effects.stored_scores import stored_scores

    opened = opened_with(run, task)
    examples = opened.evaluation_set(set_name)
    given = all_tables(opened, examples)
    found = []
    for score in stored_scores(opened, examples.name).values():
        for facts in score.facts.values():
            result = load_result(opened, examples, "scores", facts.estimator, facts.settings)
            if result is not None:
                found.append(scored_means(opened, result))
    alike = agreements(opened, examples.name)
    if as_json:
        said = [{name: number(value) for name, value in asdict(one).items()} for one in alike]
        models = {name: list(own) for name, own in given.items()}
        scores_ = [in_json(each) for each in found]
        say(json.dumps({"scores": scores_, "added": models, "agreement": said}, indent=1))
        return
    if not found and not given:
        say(
            f"Set {examples.name!r} has no scores yet: stagelens answer --scorer, or stagelens "
            "add-scores"
        )
    for each in found:
        print_score(each)
    for name, own in given.items():
        say(f"{name} was added of the models {', '.join(own)}.")
    if alike:
        _print_agreement(alike)


def _print_agreement(alike: Sequence[Agreement]) -> None:
    printed = Table(title="How far scorers agree on the same answers (Cohen's kappa)")
    for heading in ("scorers", "answers", "same score", "kappa (95 %)"):
        printed.add_column(heading, justify="left" if heading == "scorers" else "right")
    for one in alike:
        turned = " (turned)" if one.turned else ""
        cells = [f"{one.first}, {one.second}{turned}", f"{one.answers:,}"]
        if one.reason:
            printed.add_row(*cells, "-", one.reason)
            continue
        ends = f" ({one.low:.2f} to {one.high:.2f})" if isfinite(one.low) else ""
        printed.add_row(*cells, f"{one.same:.1%}", f"{one.kappa:.2f}{ends}")
    print_table(printed)
