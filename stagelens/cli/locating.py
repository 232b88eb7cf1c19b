"""The command that looks where in the network a stage's effect sits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.network.block_table import (
    READINGS,
    REST,
    Network,
    Reading,
    network_rows,
    sources_of,
)
from stagelens.analyses.network.sentences import INTERVENTION, for_json, network_sentence, notes
from stagelens.contracts import Behaviour, StageLensError
from stagelens.runs.sets.clusters import with_sources
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.numbers import axis_unit, count_text, signed_text
from stagelens.wording.sentences import Part, slice_parts
from stagelens.wording.trust_words import percent, trust_label

from .estimator_options import CounterfactualOption
from .options import (
    BudgetOption,
    DeviceOption,
    ExactStagesOption,
    LeafOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    chosen_settings,
    groups_of,
    opened_with,
    own_file,
)
from .table_files import check_table_file, write_table
from .terminal import Reporter, Table, print_table, say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens network runs/digits --stage shortcut --group group=stamped   "
    "stagelens network runs/digits --stage shortcut --example stamped-004 --json"
)
def network(
    run: RunFolder,
    stage: Annotated[str, typer.Option(help="The stage whose change is undone block by block.")],
    set_name: SetOption = None,
    behaviour: Annotated[
        str | None, typer.Option(help="The behaviour to print; by default the task's first.")
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Print this example; given several times, their mean."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Print the mean of the examples with this value; given several times, of those "
            "that have all of them.",
        ),
    ] = None,
    estimator: CounterfactualOption = None,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write what every block carries of every example, to a .parquet or .csv file."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    progress: ProgressFile = None,
) -> None:
    """Find where in the network a stage's effect sits, by undoing its change block by block."""
    check_table_file(out)
    groups = groups_of(group)
    with Reporter(own_file(progress)).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        chosen = _chosen(examples, example or [], groups)
        from stagelens.analyses.network.measuring import measure_network
        from stagelens.estimators.registry import default_estimator
        from stagelens.trust.estimates import usual_estimator

        settings = chosen_settings(budget, exact_stages)
        usual = usual_estimator(opened, examples.name, [opened.stage(stage).name])
        name = estimator or (default_estimator(opened) if settings else usual)
        found = measure_network(opened, examples.name, stage, name, settings, report)
    kind = _behaviour(found, behaviour)
    if as_json:
        _print_json(found, examples, kind, chosen)
    else:
        one = next(iter(groups.items())) if len(groups) == 1 and not example else None
        _print(found, examples, kind, chosen, one)
    if out is not None:
        write_table(out, _each(found))


def _chosen(examples: EvaluationSet, ids: list[str], groups: dict[str, str]) -> np.ndarray:
    """(N,) bool, the examples to print."""
    wanted = set(Question(ids=tuple(ids), groups=groups).of(examples))
    return np.asarray([name in wanted for name in examples.table([])["example_id"]])


def _behaviour(found: Network, name: str | None) -> Behaviour:
    kinds = found.behaviours
    if name is not None and name not in kinds:
        raise StageLensError(f"there is no behaviour {name!r} here; use {', '.join(kinds)}")
    return kinds[name or found.facts.behaviours[0].name]


def _rows(
    found: Network, examples: EvaluationSet, kind: Behaviour, chosen: np.ndarray
) -> tuple[dict[Reading, pd.DataFrame], float]:
    """Every reading's rows, and the stage effect over the same examples."""
    shared = sources_of(with_sources(examples))
    tables = {way: network_rows(found, kind.name, chosen, way, shared) for way in READINGS}
    total = found.total(kind.name)[chosen]
    known = total[np.isfinite(total)]
    return tables, float(known.mean()) if len(known) else float("nan")


def _print_json(
    found: Network, examples: EvaluationSet, kind: Behaviour, chosen: np.ndarray
) -> None:
    told = for_json(found, *_rows(found, examples, kind, chosen), kind)
    say(json.dumps({"set": examples.name, **told}, indent=1))


def _print(
    found: Network,
    examples: EvaluationSet,
    kind: Behaviour,
    chosen: np.ndarray,
    group: tuple[str, str] | None,
) -> None:
    tables, total = _rows(found, examples, kind, chosen)
    facts, count, unit = found.facts, int(chosen.sum()), axis_unit(kind)
    printed = Table(
        title=f"Where in the network {facts.stage} changes the {kind.name} of "
        f"{count_text(count)} of {examples.name}{f', in {unit}' if unit else ''}"
    )
    for heading in ("block", "carried", "95 %", "undone", "alone", "moved"):
        printed.add_column(heading, justify="left" if heading == "block" else "right")
    for place in range(len(tables["carried"])):
        row = tables["carried"].iloc[place]
        ends = [signed_text(row[end], kind, unit=False) for end in ("low", "high")]
        amounts = {way: signed_text(rows["effect"].iloc[place], kind, unit=False)
                   for way, rows in tables.items()}  # fmt: skip
        moved = "-" if pd.isna(row["moved"]) else percent(row["moved"]) if row["moved"] else "not"
        interval = " to ".join(ends) if np.isfinite(row["low"]) else "-"
        printed.add_row(
            row["block"], amounts["carried"], interval, amounts["undone"], amounts["alone"], moved
        )
    print_table(printed)
    about: tuple[Part, ...] | None = (Part(f"these {count_text(count)}"),)
    if count == 1:
        about = None
    elif group is not None or count == examples.count:
        about = slice_parts("example", *(group or ()))
    say(str(network_sentence(tables["carried"], total, facts.stage, kind, facts.trust, about)))
    readings = "; ".join(f"{way}: {meaning}" for way, meaning in READINGS.items())
    say(f"As stage effects, final minus undone. {readings}; moved: its weights, by their norm.")
    say(f"{INTERVENTION} By {facts.estimator}: {trust_label(facts.trust, kind.name)}.")
    for note in notes(found):
        say(note)


def _each(found: Network) -> pd.DataFrame:
    """One row per example, behaviour and block, with the three readings."""
    parts = []
    names = [*(block.name for block in found.facts.blocks), REST]
    for behaviour in found.behaviours:
        columns = {way: _flat(found, behaviour, way) for way in READINGS}
        ids = np.repeat(found.ids, len(names))
        own = {"example_id": ids, "behaviour": behaviour, "block": names * len(found.ids)}
        parts.append(pd.DataFrame(own).assign(**{str(way): each for way, each in columns.items()}))
    return pd.concat(parts, ignore_index=True)


def _flat(found: Network, behaviour: str, reading: Reading) -> np.ndarray:
    """Effects by example and, within it, by block, the rest last."""
    columns = [found.effects(behaviour, reading), found.rest(behaviour, reading)]
    return np.column_stack(columns).ravel()
