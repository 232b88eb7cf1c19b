"""The command that says whether a model got worse, and which stage did it: gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from stagelens.contracts import ACCURACY, Behaviour

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
    from stagelens.analyses.gate.report import GateReport, SliceFinding

commands = typer.Typer()

_WORDS = {"fine": "FINE", "regressed": "REGRESSED", "could not tell": "COULD NOT TELL"}


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
        str,
        typer.Option(
            help="recipes: what the change of recipe did, beyond what another seed does; models: "
            "what these two models differ by."
        ),
    ] = "recipes",
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
    progress: ProgressFile = None,
) -> None:
    """Say whether any slice got worse from an old model to a new one, and which stage did it.

    Exit status: 0 none dropped by more than is allowed, 3 one did, 4 it could not be told, 1 an
    error, 2 wrong usage.
    """
    leaves = _leaves(new, leaf or [])
    if estimand not in ("recipes", "models"):
        raise typer.BadParameter(
            f"{estimand!r} is none; give recipes or models", param_hint="--estimand"
        )
    limits = _limits(max_drop or [])
    with Reporter(own_file(progress)).running() as report:
        from stagelens.analyses.gate.gate import Asked
        from stagelens.analyses.gate.gate import gate as judge

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
            estimand="models" if estimand == "models" else "recipes",
            draws=draws,
            stages=stages,
        )
        found = judge(sides[0], sides[1], asked, repeats[0], repeats[1], report)
    if as_json:
        say(found.model_dump_json(indent=1))
    else:
        _print(found)
    raise typer.Exit(found.exit_status)


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
    _print_slices(found)
    if found.stages:
        _print_stages(found)
    for note in found.notes:
        say(note if note.endswith((".", "!", "?")) else f"{note}.")
    for row in found.slices:
        if row.verdict != "fine":
            say(f"{row.words}: {row.reason}")
    say(f"{_WORDS[found.verdict]}: {_summary(found)}")


def _summary(found: GateReport) -> str:
    """What is judged, over how many slices."""
    counts = [f"{sum(s.verdict == v for s in found.slices)} {v}" for v in _WORDS]
    what = "what the change of recipe did" if found.estimand == "recipes" else "these two models"
    return (
        f"of {len(found.slices)} slices {', '.join(counts)} ({what}; at {100 * found.level:g} % "
        "for all slices together)."
    )


def _print_slices(found: GateReport) -> None:
    table = Table(title=f"{found.new.run} against {found.old.run} on {found.set}")
    for name in ("behaviour", "slice", "examples", "old", "new", "drop", "95 %", "verdict"):
        side = "left" if name in ("behaviour", "slice", "verdict") else "right"
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in found.slices:
        where = "all" if row.by is None else f"{row.by} = {row.group}"
        means = (_value(row.old, row), _value(row.new, row))
        drop = (_drop(row.drop, row), _ends(row.low, row.high, row))
        table.add_row(row.behaviour, where, f"{row.examples:,}", *means, *drop, row.verdict)
    print_table(table)
    both = (("old", found.old), ("new", found.new))
    told = [f"{name} {side.trainings} ({side.source})" for name, side in both]
    if found.estimand == "recipes":
        say(f"Drops are means over trainings of each recipe: {', '.join(told)}.")


def _print_stages(found: GateReport) -> None:
    table = Table(title="What each stage of the new recipe has to do with it")
    for name in ("slice", "stage", "how", "drop", "95 %, all stages", "trust", "did it"):
        side = "right" if name in ("drop", "95 %, all stages") else "left"
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    by_slice = {(s.behaviour, s.by, s.group): s for s in found.slices}
    for row in found.stages:
        one = by_slice[row.behaviour, row.by, row.group]
        numbers = (_drop(row.drop, one), _ends(row.low, row.high, one))
        did = "yes" if row.did_it else ""
        table.add_row(one.words, row.stage, row.how, *numbers, row.trust, did)
    print_table(table)
    for said in dict.fromkeys(f"{row.stage}: {row.reason}" for row in found.stages):
        say(said)
    say(
        "With the old run's stage in place of the new one (exchange) the new model would be better "
        "by the drop. These are of the recorded models; of several stages they need not add up."
    )


def _kind(row: SliceFinding) -> Behaviour:
    if row.behaviour == ACCURACY.name:
        return ACCURACY
    return Behaviour(row.behaviour, row.better, row.unit)


def _value(value: float | None, row: SliceFinding) -> str:
    from stagelens.wording.numbers import value_text

    return "-" if value is None else value_text(value, _kind(row))


def _drop(value: float | None, row: SliceFinding) -> str:
    from stagelens.wording.numbers import signed_text

    return "-" if value is None else signed_text(value, _kind(row))


def _ends(low: float | None, high: float | None, row: SliceFinding) -> str:
    if low is None or high is None:
        return "not known"
    return f"{_drop(low, row)} to {_drop(high, row)}"
