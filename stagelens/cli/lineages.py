"""Commands for runs with several leaves: what differs between two, and what made a merge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from stagelens.analyses.lineages.soup_table import PARENT, STAGE, given
from stagelens.analyses.lineages.two_leaves import (
    TwoLeaves,
    behaviours_of,
    differences,
    effects_since,
    final_answers,
    paired,
)
from stagelens.contracts import Behaviour, Progress
from stagelens.estimators.registry import free_estimator, help_text, make_estimator
from stagelens.runs.merge_words import merge_words
from stagelens.trust.estimates import stored_estimates
from stagelens.wording.numbers import signed_text, value_text
from stagelens.wording.trust_words import trust_explanation, trust_word

from .given_data import DatasetOption
from .options import (
    DeviceOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
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

ByOption = Annotated[
    str | None, typer.Option("--by", help="Column of the set to group by [the first with groups].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@commands.command(
    epilog="Example: stagelens compare runs/mine --leaf dpo --leaf rl --set test",
)
def compare(
    run: RunFolder,
    leaf: Annotated[
        list[str], typer.Option(metavar="STAGE", help="One of the two leaves; give it twice.")
    ],
    set_name: SetOption = None,
    by: ByOption = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="How what each stage since did is obtained, the same of both leaves: "
            f"{help_text()}. By default the best that is stored, else task vectors."
        ),
    ] = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    progress: ProgressFile = None,
) -> None:
    """Say what differs between two leaves of a run since they parted.

    What each stage since did is printed by the best stored effects of its leaf, or by the one
    estimator that is named, which computes what is missing.
    """
    if len(leaf) != 2:
        raise typer.BadParameter("name two leaves: --leaf A --leaf B", param_hint="--leaf")
    if estimator is not None:
        make_estimator(estimator)  # an unknown one is told before anything is measured
    with Reporter(own_file(progress)).running() as report:
        runs = [opened_with(run, task, leaf=each) for each in leaf]
        two = TwoLeaves.of(*runs)
        examples = two.first.evaluation_set(set_name)
        from stagelens.effects.computing import attribute, boundaries

        measured, parts = [], Progress(report)
        for number, own in enumerate(runs):
            part = parts.part(number / 2, (number + 0.5) / 2)
            measured.append(final_answers(own, examples, boundaries(own, examples.name, part)))
            stages = two.since[own.last.name]
            if stages and (estimator or not stored_estimates(own, examples.name)):
                part = parts.part((number + 0.5) / 2, (number + 1) / 2)
                wanted = None if estimator is None else stages
                named = estimator or free_estimator().name
                attribute(own, examples.name, named, wanted, progress=part)
    table = paired(two, examples, *measured)
    known = behaviours_of(table, measured[0])
    apart = pd.concat([differences(table, each, examples, by) for each in known])
    effects = pd.concat(
        [
            effects_since(own, two.since[own.last.name], examples, known[0], estimator)
            for own in runs
        ]
    )
    if as_json:
        said = effects.assign(trust=[_word(each) for each in effects["trust"]])
        content = {
            "set": examples.name,
            "leaves": list(two.names),
            "common": list(two.shared),
            "since": {name: list(stages) for name, stages in two.since.items()},
            "differences": _records(apart),
            "effects": _records(said),
        }
        say(json.dumps(content, indent=1))
        return
    say(f"{two.words()}.")
    _print_differences(two, apart, known, examples.name)
    _print_effects(effects, known[0])


@commands.command(
    epilog="Example: stagelens soup runs/mine --leaf soup --set test",
)
def soup(
    run: RunFolder,
    set_name: SetOption = None,
    by: Annotated[str | None, typer.Option("--by", help="Column to group by [none].")] = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Write every example's effects to a .parquet or .csv file.")
    ] = None,
    progress: ProgressFile = None,
) -> None:
    """Say of what a merge was made, and what each parent, and each stage on its way, gave to it.

    These are no counterfactuals of a training: nobody trained the merge without a parent.
    """
    check_table_file(out)
    with Reporter(own_file(progress)).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        from stagelens.analyses.lineages.soup import credit

        found = credit(opened, examples.name, report)
    known = list(found.behaviours.values())
    rows = pd.concat([given(found, each, examples, by) for each in known])
    merge = opened.last.facts.merge
    assert merge is not None  # credit refuses what is none
    if as_json:
        content = {
            "set": examples.name,
            "leaf": opened.last.name,
            "weights": merge.weights,
            "residual": merge.residual,
            "rows": _records(rows.assign(trust=[_word(each) for each in rows["trust"]])),
        }
        say(json.dumps(content, indent=1))
    else:
        say(f"{merge_words(opened.last.name, merge)}.")
        for kind in (PARENT, STAGE):
            _print_given(rows[rows["part"] == kind], known, kind, examples.name)
        for each in found.facts.parts:
            say(f"{each.kind} {each.name}: {_word(each.trust)}. {trust_explanation(each.trust)}")
    if out is not None:
        write_table(out, found.table)


def _word(trust: Any) -> str | None:
    return None if trust is None else trust_word(trust)


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: null where there is no number."""
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def _ends(row: dict[str, Any], behaviour: Behaviour) -> str:
    low, high = row["low"], row["high"]
    if low != low or high != high:
        return "not known"
    return f"{signed_text(low, behaviour)} to {signed_text(high, behaviour)}"


def _table(title: str, names: Sequence[str], texts: int) -> Table:
    printed = Table(title=title)
    for number, name in enumerate(names):
        printed.add_column(name, justify="left" if number < texts else "right")
    return printed


def _print_differences(
    two: TwoLeaves, rows: pd.DataFrame, known: Sequence[Behaviour], set_name: str
) -> None:
    one, other = two.names
    names = ("behaviour", "group", "examples", one, other, "difference", "95 %")
    printed = _table(f"{one} less {other} on {set_name}", names, 2)
    by_name = {each.name: each for each in known}
    for row in rows.to_dict("records"):
        kind = by_name[row["behaviour"]]
        group = "all" if row["by"] is None or row["by"] != row["by"] else f"{row['group']}"
        values = (value_text(row["first"], kind), value_text(row["second"], kind))
        difference = signed_text(row["difference"], kind)
        printed.add_row(kind.name, group, f"{row['n']:,}", *values, difference, _ends(row, kind))
    print_table(printed)
    say("Intervals are those of the paired difference, over examples.")


def _print_effects(rows: pd.DataFrame, behaviour: Behaviour) -> None:
    names = ("leaf", "stage since", "estimator", "trust", f"{behaviour.name}", "95 %")
    printed = _table("What each stage since then did to its own leaf", names, 4)
    for row in rows.to_dict("records"):
        value = "-" if row["effect"] != row["effect"] else signed_text(row["effect"], behaviour)
        about = (row["leaf"], row["stage"], row["estimator"] or "nothing stored")
        printed.add_row(*about, _word(row["trust"]) or "-", value, _ends(row, behaviour))
    print_table(printed)
    say("Effects on two models: they do not add up to the difference between the two.")


def _print_given(rows: pd.DataFrame, known: Sequence[Behaviour], kind: str, set_name: str) -> None:
    names = (kind, "behaviour", "group", "trust", "weight", "effect", "95 %")
    printed = _table(f"What each {kind} gave to the merge, on {set_name}", names, 4)
    by_name = {each.name: each for each in known}
    for row in rows.to_dict("records"):
        behaviour = by_name[row["behaviour"]]
        group = "all" if row["group"] is None or row["group"] != row["group"] else row["group"]
        effect = row["effect"]
        value = "-" if effect != effect else signed_text(effect, behaviour)
        about = (row["name"], behaviour.name, group, _word(row["trust"]), f"{row['weight']:.3f}")
        printed.add_row(*about, value, _ends(row, behaviour))
    print_table(printed)
