"""The command that follows answers from boundary to boundary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from stagelens.analyses.paths.answers import ENDS, LOST, Paths, ended, paths
from stagelens.analyses.paths.chance import (
    MISFIT,
    Counted,
    fits,
    flipped_by_end,
    lost_words,
    without_lucky_guesses,
)
from stagelens.analyses.paths.stages import by_stage
from stagelens.contracts import ACCURACY, BASE, StageLensError
from stagelens.effects.results import FIRST, load_result
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import clusters, with_sources
from stagelens.trust.estimates import stored_estimates
from stagelens.wording.numbers import count_text
from stagelens.wording.trust_words import trust_word

from .options import (
    DeviceOption,
    LeafOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    opened_with,
    own_file,
)
from .table_files import check_table_file, write_table
from .terminal import Reporter, Table, print_table, say

commands = typer.Typer()

_CAUSED = ("stage", "example_id", "label", "prediction_without")
"""Columns of an effect table that say which answers a stage caused."""


@commands.command(
    "paths",
    epilog="Examples: stagelens paths runs/digits --set test   "
    "stagelens paths runs/digits --out paths.csv",
)
def follow(
    run: RunFolder,
    set_name: SetOption = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write every example's answers and path to a .parquet or .csv file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    progress: ProgressFile = None,
) -> None:
    """Count what was learned, forgotten or flipped from boundary to boundary."""
    check_table_file(out)
    with Reporter(own_file(progress)).running() as report:
        opened = opened_with(run, task)
        _ = opened.last
        examples = opened.evaluation_set(set_name)
        from stagelens.effects.computing import boundaries

        measured = boundaries(opened, examples.name, report).table
        first = measured[measured["behaviour"] == measured["behaviour"].iloc[0]]
        stages = [stage.name for stage in opened.stages]
        found = paths([first], with_sources(examples), (BASE, *stages))
    if found is None:
        raise StageLensError(
            f"set {examples.name} has no paths: they take labels, and answers at two boundaries "
            "or more that can be compared with the final model's"
        )
    effects, trust = _effects(opened, examples.name)
    rows = by_stage(found, effects, stages)
    rows["trust"] = [trust.get(stage, "") for stage in rows["stage"]]
    if as_json:
        say(json.dumps(_json(found, rows), indent=1))
    else:
        _print(found, rows, examples.name)
        if (sharing := clusters(examples)) is not None:
            say(sharing.words(count_text(examples.count, "example")))
    if out is not None:
        write_table(out, _each(found, first))


def _effects(run: Run, set_name: str) -> tuple[pd.DataFrame | None, dict[str, str]]:
    """The best stored effect table's rows of one behaviour, and stage to its trust word."""
    stored = stored_estimates(run, set_name)
    for facts in stored.values():  # best first
        result = load_result(
            *(run, set_name, "effects", facts.estimator, facts.settings),
            behaviour=FIRST,
            columns=_CAUSED,
        )
        if result is not None:
            words: dict[str, str] = {
                one.stage: trust_word(one, ACCURACY.name) for one in facts.stages
            }
            return result.table, words
    return None, {}


def _each(found: Paths, answers: pd.DataFrame) -> pd.DataFrame:
    """One row per example: its answers after every boundary, its path and the kind of it."""
    wide = answers.pivot(index="example_id", columns="boundary", values="prediction")
    wide = wide.reindex(index=found.example_ids, columns=list(found.boundaries))
    wide.columns = [name if name == BASE else f"after {name}" for name in wide.columns]
    own = pd.DataFrame({"example_id": found.example_ids, "path": found.codes, "kind": found.kinds})
    own["learned_then_forgotten"] = [bool(c) and ended(c) == ENDS[1] for c in found.codes]
    return own.join(wide, on="example_id")


def _json(found: Paths, rows: pd.DataFrame) -> dict[str, object]:
    counted = without_lucky_guesses(found)
    known = fits(counted)

    def row(one: Counted) -> dict[str, object]:
        return {
            "kind": one.kind,
            "count": one.count,
            "without_lucky_guesses": one.corrected if known else None,
            "low": one.low if known and one.low == one.low else None,
            "high": one.high if known and one.high == one.high else None,
        }

    stages = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return {
        "boundaries": list(found.boundaries),
        "paths": found.counts(),
        "kinds": [row(one) for one in counted],
        "flipped_by_end": [row(one) for one in flipped_by_end(found)],
        "learned_then_forgotten": {**row(flipped_by_end(found)[1]), "kind": LOST},
        "choices": found.choices,
        "stages": stages,
    }


def _print(found: Paths, rows: pd.DataFrame, set_name: str) -> None:
    counts = found.counts()
    printed = Table(title=f"Paths of {sum(counts.values()):,} examples of {set_name}")
    for name in ("path", "examples", "without lucky guesses", "95 %"):
        printed.add_column(name, justify="left" if name == "path" else "right")
    counted = without_lucky_guesses(found)
    known = fits(counted)
    by_end = flipped_by_end(found)
    rows_of = [each for one in counted for each in (by_end if one.kind == "flipped" else (one,))]
    for one in rows_of:
        cells = (f"{one.shown()[0]:,.0f}", one.interval_text()) if known else ("-", "-")
        printed.add_row(one.kind, f"{one.count:,}", *cells)
    print_table(printed)
    say(lost_words(found, "example"))
    if not known:
        say(MISFIT)
    printed = Table(title="Where it became visible, and who caused it")
    headings = ("stage", "became right", "became wrong", "seen after", "right because")
    for name in (*headings, "wrong because", "trust"):
        printed.add_column(name, justify="left" if name in ("stage", "trust") else "right")
    for row in rows.to_dict("records"):
        names = ("became_right", "became_wrong", "seen_after", "right_because", "wrong_because")
        numbers = (_count(row[n], n == "seen_after") for n in names)
        printed.add_row(row["stage"], *numbers, row["trust"])
    print_table(printed)
    say(
        "Right or wrong because: the final answer is, and without the stage it would not be; by "
        "the best stored effects. What is seen after the stages sums to what training did."
    )


def _count(value: float, signed: bool) -> str:
    if value != value:
        return "-"
    return f"{value:+,.0f}" if signed else f"{value:,.0f}"
