"""Commands about whether a run is what was recorded: check and upgrade."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stagelens.contracts import Progress, RunError, StageLensError
from stagelens.runs.lineage import NEWEST
from stagelens.trust.checking import Checked, check_run

from .given_data import DatasetOption
from .options import (
    DeviceOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    TaskOption,
    opened_with,
)
from .terminal import Reporter, say

commands = typer.Typer()

WRONG, COULD_NOT_TELL = 3, 4
"""Exit statuses: something is wrong; nothing is, but not everything could be told."""


@commands.command(
    epilog="Examples: stagelens check runs/digits   "
    "stagelens check runs/digits --full --report report.html"
)
def check(
    run: RunFolder,
    full: Annotated[
        bool,
        typer.Option("--full", help="Replay every step, instead of a few after each state."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Check an exported report (.html or .json) against the run too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    progress: ProgressFile = None,
) -> None:
    """Verify every digest of a run, compute a sample of its numbers again, and say what holds.

    Of several leaves all are checked, unless one is named.

    Exit status: 0 everything holds, 3 something is wrong, 4 nothing is wrong but not everything
    could be told, 1 there is no such run or report.
    """
    from stagelens.report import checking as reports

    if report is not None:
        reports.read(report)  # before minutes of other checks
    with Reporter(progress).running() as told:
        found: list[Checked] = []
        try:
            leaves = opened_with(run, task, leaf=leaf or NEWEST).lineage.leaves
            if report is not None and leaf is None and len(leaves) > 1:
                raise StageLensError(
                    f"the report is about one leaf of the run, which has {', '.join(leaves)}; say "
                    "about which with --leaf NAME"
                )
            wanted = [leaf] if leaf else leaves or [NEWEST]
            opened = [opened_with(run, task, leaf=each) for each in wanted]
        except RunError as error:
            if not (Path(run).expanduser() / "run.json").is_file():
                raise
            # A run that is too damaged to be opened is what this command is asked about.
            found = [Checked("run", False, str(error))]
        else:
            overall = Progress(told)
            every = [
                each
                for n, one in enumerate(opened)
                for each in check_run(one, full, overall.piece(n, len(opened)))
            ]
            found = list(dict.fromkeys(every))  # what leaves share is told once
            if report is not None:
                found += reports.check_report(opened[0], report)
    if as_json:
        say(json.dumps([asdict(each) for each in found], indent=1))
    else:
        _print(found)
    raise typer.Exit(_status(found))


_WORDS = {True: "holds", False: "WRONG", None: "not known"}


def _print(found: Sequence[Checked]) -> None:
    width = max(len(each.what) for each in found)
    # What is wrong comes last, where people see it.
    for each in sorted(found, key=lambda each: (each.holds is False, each.holds is None)):
        say(f"{_WORDS[each.holds]:9}  {each.what:{width}}  {each.said}")


def _status(found: Sequence[Checked]) -> int:
    holds = {each.holds for each in found}
    return WRONG if False in holds else COULD_NOT_TELL if None in holds else 0


@commands.command(epilog="Example: stagelens upgrade runs/digits")
def upgrade(run: RunFolder, task: TaskOption = None) -> None:
    """Bring a run folder of an earlier version to the present layout; its numbers stay valid."""
    from stagelens.runs.upgrading import upgrade as rewrite

    opened = opened_with(run, task, leaf=NEWEST)
    written = rewrite(opened)
    if not written:
        say(f"{opened.path}: already in the present layout")
        return
    say(f"{opened.path}: {', '.join(written)} rewritten with checksums; nothing else changed")
