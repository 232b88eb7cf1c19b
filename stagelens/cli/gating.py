"""The command that says whether a model got worse, and which stage did it: gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .given_data import DatasetOption
from .options import (
    DeviceOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    opened_with,
    own_file,
)
from .terminal import Reporter, Table, print_table, say

if TYPE_CHECKING:
    import pandas as pd

    from stagelens.analyses.gate.report import GateReport

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens gate runs/old runs/new --set test --slice group --max-drop 2   "
    "stagelens gate runs/two --leaf dpo --leaf rl --set test --json   "
    "stagelens gate runs/old runs/new --set prompts --behaviour score:exact --estimand models"
)
def gate(
    old: RunFolder,
    new: Annotated[
        str | None,
        typer.Argument(metavar="NEW", help="The run that is judged [RUN, by its second --leaf]."),
    ] = None,
    set_name: SetOption = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="SLICE",
            help="all, a column, COLUMN=VALUE, or a saved slice; may be given several times [all, "
            "and the groups of every column].",
        ),
    ] = None,
    behaviour: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="accuracy, margin, score:NAME, ...; may be given several times [accuracy].",
        ),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DROP",
            help="How much a slice may drop: points of a share, else the behaviour's own unit [2].",
        ),
    ] = None,
    estimand: Annotated[
        str | None,
        typer.Option(
            help="recipes: what the change of recipe did, beyond what another seed does; models: "
            "what these two models differ by [recipes; models where only scores are judged, as "
            "redraws have none]."
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option(min=0, help="How often each recipe is trained again by replay.")
    ] = 8,
    old_repeat: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="A further recorded run of the old recipe, with another seed, in place of "
            "redraws; may be given several times.",
        ),
    ] = None,
    new_repeat: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="The same of the new recipe.")
    ] = None,
    stages: Annotated[
        bool,
        typer.Option(
            "--stages/--no-stages", help="Say which stage did it, where a slice got worse."
        ),
    ] = True,
    leaf: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help="Whose models are meant, where runs have several: the old one's, then the new's.",
        ),
    ] = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; see docs/gate.md.")] = False,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 whatever the verdict is.")
    ] = False,
    progress: ProgressFile = None,
) -> None:
    """Say whether any slice got worse from an old model to a new one, and which stage did it.

    Exit status: 0 none dropped by more than is allowed, 3 one did, 4 it could not be told, 1 an
    error, 2 wrong usage. What was found is kept with the new run, and shown on the dashboard.
    """
    leaves = _leaves(new, leaf or [])
    if estimand not in (None, "recipes", "models"):
        raise typer.BadParameter(
            f"{estimand!r} is none; give recipes or models", param_hint="--estimand"
        )
    limits = _limits(max_drop or [])
    with Reporter(own_file(progress)).running() as report:
        from stagelens.analyses.gate.asked import Asked
        from stagelens.analyses.gate.gate import gate as judge
        from stagelens.analyses.gate.stored import gate_path, keep_gate, with_judged

        paths = (old, old if new is None else new)
        sides = [
            (path, opened_with(path, task, leaf=each))
            for path, each in zip(paths, leaves, strict=True)
        ]
        repeats = [
            [opened_with(each, task) for each in given or []] for given in (old_repeat, new_repeat)
        ]
        asked = Asked(
            set_name=set_name,
            slices=slices or (),
            behaviours=behaviour or (),
            max_drop=limits,
            estimand=estimand,  # type: ignore[arg-type]
            draws=draws,
            stages=stages,
        )
        found = judge(sides[0], sides[1], asked, repeats[0], repeats[1], report)
        asked = with_judged(asked, found)
        path = gate_path(sides[0][1], sides[1][1], asked, repeats[0], repeats[1])
        keep_gate(path, sides[1][1], found)
    if as_json:
        say(found.model_dump_json(indent=1))
    else:
        _print(found)
    raise typer.Exit(0 if exit_zero else found.exit_status)


def _leaves(new: str | None, given: Sequence[str]) -> tuple[str | None, str | None]:
    if new is None and len(given) != 2:
        raise typer.BadParameter(
            "give two runs, or two leaves of one: --leaf OLD --leaf NEW", param_hint="--leaf"
        )
    if len(given) not in (0, 2):
        raise typer.BadParameter(
            "name a leaf of each run: --leaf OLD --leaf NEW", param_hint="--leaf"
        )
    return (given[0], given[1]) if given else (None, None)


def _limits(given: Sequence[str]) -> dict[str, float]:
    found = {}
    for one in given:
        name, _, text = one.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise typer.BadParameter(
                f"{one!r} is no drop; give a number of 0 or more, or NAME=NUMBER",
                param_hint="--max-drop",
            )
        found[name] = value
    return found


def _print(found: GateReport) -> None:
    from stagelens.analyses.gate import tables

    title = f"{found.new.run} against {found.old.run} on {found.set}"
    _print_table(title, tables.slice_rows(found), {"examples", "old", "new", "drop", "95 %"})
    if said := tables.trained(found):
        say(said)
    if found.stages:
        title = "What each stage of the new recipe has to do with it"
        _print_table(title, tables.stage_rows(found), {"drop", "95 %, all stages"})
        for said in (*tables.stage_reasons(found), tables.STAGES_ARE):
            say(said)
    for note in tables.notes(found):
        say(note)
    for row in found.slices:
        if row.verdict != "fine":
            say(f"{row.words}: {row.reason}")
    say(f"{found.verdict.upper()}: {tables.counted(found)}")


def _print_table(title: str, rows: pd.DataFrame, numbers: set[str]) -> None:
    table = Table(title=title)
    for name in rows.columns:
        table.add_column(name, justify="right" if name in numbers else "left")
    for row in rows.itertuples(index=False):
        table.add_row(*row)
    print_table(table)
